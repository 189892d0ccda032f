"""A record as a JSON file: written whole or not at all, and checked when read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .errors import BenchError

FORMAT = 1
REQUIRED = ("format", "fastrnn", "machine", "settings", "engines", "cases", "grids", "targets")


def save(record: dict, path: str | os.PathLike) -> None:
    """Write a record or comparison under a temporary name and rename it: an interrupted run leaves no half file."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> dict:
    """Read a record. Raises BenchError if the file is not a record of this format, OSError if it can't be read."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path} is no JSON file: {error}") from None
    missing = [key for key in REQUIRED if not isinstance(record, dict) or key not in record]
    if missing:
        raise BenchError(f"{path} is not a record of fastrnn bench: it has no {', '.join(missing)}")
    if record["format"] != FORMAT:
        raise BenchError(f"{path} has format {record['format']!r}; this version reads format {FORMAT}")
    return record
