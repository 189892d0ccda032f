"""The list of fixtures, tests/data/manifest.json: one entry per model file, merged by the scripts that make them.

An entry holds `file` and `golden` (relative to tests/data), `made_by`, `opset`, `size` (T, batch of the traced
example), `inputs` and `outputs` (name -> one word an axis: "batch", "time" or a size), `states` (input -> output, if
the caller passes a state), `frozen` (which of batch and time the file fixes as a number), `streamable`, `context` (what
its streams are opened with), `ops` (how many of each operator) and `about`. An entry with `refused` is a file that must
not load: a word of the error instead.
"""

from __future__ import annotations

import json
from pathlib import Path

MANIFEST = Path(__file__).resolve().parent.parent / "tests" / "data" / "manifest.json"


def merge(entries: list[dict]) -> None:
    """Replace or add `entries` (by file) and write the manifest sorted by file."""
    known = {e["file"]: e for e in (json.loads(MANIFEST.read_text()) if MANIFEST.exists() else [])}
    known |= {e["file"]: e for e in entries}
    MANIFEST.write_text("[\n" + ",\n".join(json.dumps(known[f]) for f in sorted(known)) + "\n]\n")
