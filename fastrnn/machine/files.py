"""Atomic writing of files: a reader sees the old file or the whole new one.

A path may be a symbolic link (the file that it names is replaced, the link stays) or something that is not a regular
file, such as /dev/stdout or a FIFO (written as it is: there is nothing to replace).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

WRITERS = 8  # of one path at a time whose temporary files have names that the next writer knows
LONGEST = 200  # bytes of a file's name that go into the names of its temporary files; most file systems take 255


def check_place(path) -> None:
    """Raise the OSError that `replace_file` would raise, before the work: the folder is missing or read-only."""
    path = _target(path)
    folder = path.parent
    if path.is_dir():
        code = errno.EISDIR
    elif _is_special(path):
        return
    elif not folder.exists():
        code = errno.ENOENT
    elif not folder.is_dir():
        code = errno.ENOTDIR
    elif not os.access(folder, os.W_OK | os.X_OK):
        code = errno.EACCES
    else:
        return
    raise OSError(code, os.strerror(code), str(path))


def replace_file(path, blob: bytes | Iterable[bytes], *, private: bool = False) -> None:
    """Write `blob` to a temporary file next to `path` and rename it, so that no reader or crash sees half a file.

    The file that is replaced keeps its permissions, and its owner if the process may set it. What a writer of this path
    that was killed left behind is removed. Files and pipes of several writers don't mix: the last one to finish wins.

    Parameters
    ----------
    path : str or PathLike
        A symbolic link stays: the file that it names is replaced. Anything but a regular file (a device, a FIFO) is
        opened and written.
    blob : bytes, or an iterable of them
    private : bool
        Permissions of a new file: 0600, for states of users; else 0666 without the process's umask.

    Raises
    ------
    OSError
        With the caller's path; an old file is unchanged.
    """
    check_place(path)
    chunks = [blob] if isinstance(blob, bytes | bytearray | memoryview) else blob
    target = _target(path)
    try:
        if _is_special(target):
            with open(target, "wb", buffering=0) as file:
                _write_all(file, chunks)
            return
        _replace(target, chunks, private)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None  # under the name that the caller knows


def _replace(target: Path, chunks: Iterable[bytes], private: bool) -> None:
    with _temporary(target, 0o600 if private else 0o666) as (name, handle):
        with open(handle, "wb", buffering=0, closefd=False) as file:
            _write_all(file, chunks)
        with contextlib.suppress(FileNotFoundError):
            old = os.stat(target)
            with contextlib.suppress(PermissionError):  # only root may give a file away
                os.fchown(handle, old.st_uid, old.st_gid)
            os.fchmod(handle, stat.S_IMODE(old.st_mode))
        os.fsync(handle)  # without it, a power failure after the rename could leave an empty file
        os.replace(name, target)
    _sync_folder(target.parent)


def write_once(path: Path, chunks: Iterable[bytes], mode: int, modified: int) -> None:
    """Write a new file as `replace_file` does, with these permissions and time of modification (seconds).

    The time says that the whole file is on the disk. What has the name is replaced, a link too, and not what it names.
    """
    with _temporary(path, 0o600) as (name, handle):
        with open(handle, "wb", buffering=0, closefd=False) as file:
            _write_all(file, chunks)
        os.fsync(handle)
        os.fchmod(handle, mode)
        os.utime(handle, (modified, modified))
        os.fsync(handle)
        os.replace(name, path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    with contextlib.suppress(PermissionError):  # a folder that may be written but not read
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_all(file, chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        while len(view):  # a write may take less than it is given: Linux writes at most 2 GiB at once
            view = view[file.write(view) :]


def _target(path) -> Path:
    """What a path names at the end of its links; the path itself if that is not a file (/dev/stdout, a pipe)."""
    path = Path(path)
    return path if _is_special(path) else Path(os.path.realpath(path))


def _is_special(path: Path) -> bool:
    """A device, a pipe or a socket."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextlib.contextmanager
def _temporary(target: Path, mode: int) -> Iterator[tuple[Path, int]]:
    """(name, descriptor) of a new locked file beside `target`, which is removed unless it was renamed.

    Its writer holds a lock on it. A file of one of these names without a lock was left by a writer that was killed.
    """
    names = [target.with_name(f".{_short(target.name)}.{k}.partial") for k in range(WRITERS)]
    # Beyond WRITERS at once, or if locks don't work: a unique name, which no other writer removes.
    names.append(target.with_name(f".{_short(target.name)}.{os.urandom(8).hex()}.partial"))
    name, handle = next(
        (name, handle) for name in names if (handle := _create(name, mode, name == names[-1])) is not None
    )
    try:
        for other in names[names.index(name) + 1 :]:
            _remove_if_stale(other)
        yield name, handle
    except BaseException:
        name.unlink(missing_ok=True)
        raise
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing would leave it to a child that was forked meanwhile
        os.close(handle)


def _short(name: str) -> str:
    return name.encode(errors="surrogateescape")[:LONGEST].decode(errors="ignore")


def _create(name: Path, mode: int, unlocked: bool) -> int | None:
    """A descriptor of a new file that this writer has locked; None if the name is another writer's."""
    for _ in range(2):
        try:
            handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileExistsError:
            if not _remove_if_stale(name):
                return None
            continue
        if unlocked or _lock(handle, name):
            return handle
        os.close(handle)
    return None


def _lock(handle: int, name: Path) -> bool:
    """Lock an open file; False if another writer has it, or has removed it before the lock was taken."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), os.lstat(name))
    except OSError:
        return False


def _remove_if_stale(name: Path) -> bool:
    """Remove the temporary file of a writer that was killed; False if there is none, or one that a writer holds."""
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not _lock(handle, name):
            return False
        os.unlink(name)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
