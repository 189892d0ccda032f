"""A record as a JSON file: written whole or not at all, and checked when read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from . import targets
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


def merge(records: Sequence[dict]) -> dict:
    """One record of several runs on the same machine: the cases and costs of all, of the last one that has each.

    Raises BenchError for records of different machines or settings, since ratios of both would share one table.
    """
    first, *others = records
    for record in others:
        for key, place in (("cpu", "machine"), ("threads", "settings"), ("isa", "settings")):
            a, b = first[place][key], record[place][key]
            if a != b:
                raise BenchError(f"can't merge records of different runs: {key} {a!r} and {b!r}; show each by itself")
    merged = dict(first)
    cases: dict[str, dict] = {}
    for record in records:
        cases |= {case["id"]: case for case in record["cases"]}
        merged["engines"] = merged["engines"] | {n: e for n, e in record["engines"].items() if e["status"] == "ok"}
        merged["costs"] = record.get("costs") or merged.get("costs")
        merged["grids"] = merged["grids"] | record["grids"]
    merged["cases"] = list(cases.values())
    merged["seconds"] = sum(record.get("seconds", 0) for record in records)
    merged["targets"] = targets.evaluate(merged)
    return merged
