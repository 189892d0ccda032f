"""Print the requirements of an extra in pyproject.toml, except fastrnn itself, one per line, for pip.

python tools/requirements_of.py clients
"""

import re
import sys
from pathlib import Path


def requirements(text: str, extra: str) -> list[str]:
    """The entries of a list in `[project.optional-dependencies]`. (tomllib came with Python 3.11.)"""
    found = re.search(rf"^{re.escape(extra)} = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise SystemExit(f"pyproject.toml has no extra {extra} that is written a line each")
    entries = re.findall(r'^\s*"([^"]+)"', found[1], re.MULTILINE)
    return [entry for entry in entries if not entry.startswith("fastrnn")]


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    print("\n".join(requirements((root / "pyproject.toml").read_text(encoding="utf-8"), *sys.argv[1:])))
