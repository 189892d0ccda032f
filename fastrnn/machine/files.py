"""Atomic writing of files: a reader sees the whole file or none."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def check_place(path) -> None:
    """Raise the OSError that `replace_file` would raise, before the work: the folder is missing or read-only."""
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
    """Write `blob` to a temporary file next to `path` and rename it, so that no reader or crash sees half a file.

    An old file stays until the new one is on the disk. Raises OSError on failure and leaves the old file unchanged.
    """
    path = Path(path)
    check_place(path)
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        # Created like any new file, so the user's umask decides who may read it. "x" fails if the name exists.
        with open(temporary, "xb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())  # without it, a power failure after the rename could leave an empty file
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # report the name that the caller passed
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the new name durable
    finally:
        os.close(folder)
