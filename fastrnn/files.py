"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path, blob: bytes) -> None:
    """Write `blob` to a temporary name beside `path` and rename it: no reader, and no crash, leaves half of a file.

    What was there before stays until the new file is on the disk. Raises OSError, with the old file untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        # Made like any new file, so that the user's umask decides who reads it; "x": it is nobody else's.
        with open(temporary, "xb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())  # or a power cut after the rename could leave an empty file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    finally:
        os.close(folder)
