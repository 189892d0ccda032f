"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def check_place(path) -> None:
    """Raise the OSError that `replace_file` would, before the work for it: no such folder, or none to write in."""
    path = Path(path)
    folder = path.parent
    if path.is_dir():
        code = errno.EISDIR
    elif not folder.exists():
        code = errno.ENOENT
    elif not folder.is_dir():
        code = errno.ENOTDIR
    elif not os.access(folder, os.W_OK | os.X_OK):
        code = errno.EACCES
    else:
        return
    raise OSError(code, os.strerror(code), str(path))


def replace_file(path, blob: bytes) -> None:
    """Write `blob` to a temporary name beside `path` and rename it: no reader, and no crash, leaves half of a file.

    What was there before stays until the new file is on the disk. Raises OSError, with the old file untouched.
    """
    path = Path(path)
    check_place(path)
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        # Made like any new file, so that the user's umask decides who reads it; "x": it is nobody else's.
        with open(temporary, "xb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())  # or a power cut after the rename could leave an empty file
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # said under the name that the caller knows
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    finally:
        os.close(folder)
