"""Packed weights in files that processes share: the cache of `load(cache=...)`.

Each packed weight is a file of its own, in the container of safetensors: one tensor, and as metadata what it is and a
checksum. Its name is a digest of the layout, the instruction set, the number format, the sizes and the content of all
that it was packed from, so that no other weights, model, machine or release can be meant by it.

A file is written once: under a temporary name, to the disk, then renamed. Its time of modification is then set to a
number that follows from the checksum. As long as it is, the file has not been written since, and its content is not
read again to check it. Otherwise (a copy, a damaged file) the whole checksum is computed, and a file that does not have
it is packed anew. A cache that can't be used costs a warning and private memory, and never an answer or a load.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from . import container, files, pages
from .logs import log

FORMAT = "fastrnn packed 1"
SMALLEST = 64 << 10  # bytes of a packed weight that is kept in a file: a smaller one is packed in microseconds
MOST_WAIT = 60.0  # seconds for which a process waits for another one that is packing
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class DamagedError(ValueError):
    """A file of the cache can't be used; the text says why."""


class Store:
    """A cache folder, for one model. What it returns for the same weights is the same memory in all processes.

    Parameters
    ----------
    folder : str or PathLike; made if it is missing
    source : the path of the model's file, whose readers may read the packed weights; None: only this user may
    """

    def __init__(self, folder, source=None):
        self.folder = Path(os.path.abspath(folder))
        self.mode, self.owners = 0o400, {0, os.geteuid()}
        self.usable = True  # until it fails
        try:
            if source is not None:  # who owns the model decides what it computes anyway
                found = os.stat(source)
                self.mode |= found.st_mode & 0o444
                self.owners.add(found.st_uid)
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._give_up(error)

    def packed(self, what: tuple, arrays: tuple, nbytes: int, pack: Callable[[], np.ndarray]) -> np.ndarray | None:
        """The packed weights in a mapped file, float32 [nbytes / 4]; None if they belong in private memory.

        Parameters
        ----------
        what : texts and numbers that say how the weights are packed
        arrays : what they are packed from; None for absent ones
        pack : makes them, if no file has them
        """
        if not self.usable or nbytes < SMALLEST:
            return None
        text = repr((what, [None if array is None else pages.content(array).hex() for array in arrays]))
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.packed"
        try:
            found = self._found(path, text, nbytes, quiet=True)
            if found is not None:
                return found
            with _alone(self.folder):
                found = self._found(path, text, nbytes)
                return self._made(path, text, pack) if found is None else found
        except OSError as error:
            self._give_up(error)
        return None

    def _give_up(self, error: OSError) -> None:
        self.usable = False
        log("WARNING", "the cache %s can't be used (%s): packed weights take private memory", self.folder, error)

    def _found(self, path: Path, text: str, nbytes: int, quiet: bool = False) -> np.ndarray | None:
        """The weights in a file that is whole and unchanged; None without one, or if there is no room to map it."""
        try:
            return self._mapped(path, text, nbytes)
        except FileNotFoundError:
            return None
        except (DamagedError, container.ContainerError) as error:
            if not quiet:
                log("WARNING", "%s can't be used (%s): it is packed again", path, error)
            return None

    def _mapped(self, path: Path, text: str, nbytes: int) -> np.ndarray | None:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise DamagedError("it is a link") from None
            raise
        try:
            about = os.fstat(handle)
            self._check_owner(about)
            found = container.parse(pages.map_handle(handle, path))
            array, metadata = found.tensors.get("packed"), found.metadata
            whole = array is not None and array.dtype == np.float32 and array.nbytes == nbytes
            if array is None or not whole or (metadata.get("format"), metadata.get("of")) != (FORMAT, text):
                raise DamagedError("it holds something else")
            checksum = metadata.get("sha256", "")
            if about.st_mtime_ns != _time_of(checksum) * 10**9 and _checksum(array) != checksum:
                raise DamagedError("its checksum is wrong")
            return array
        except MemoryError:  # no address space: the weights may fit into private memory, or are there already
            return None
        finally:
            os.close(handle)

    def _check_owner(self, about: os.stat_result) -> None:
        if not stat.S_ISREG(about.st_mode) or not about.st_size:
            raise DamagedError("it is not a file, or empty")
        if about.st_uid not in self.owners or about.st_mode & OTHERS_WRITE:
            raise DamagedError(f"other users may write it: owner {about.st_uid}, mode {stat.S_IMODE(about.st_mode):o}")

    def _made(self, path: Path, text: str, pack: Callable[[], np.ndarray]) -> np.ndarray | None:
        array = pack()
        checksum = _checksum(array)
        metadata = {"format": FORMAT, "of": text, "sha256": checksum}
        files.write_once(path, container.chunks({"packed": array}, metadata), self.mode, _time_of(checksum))
        found = self._found(path, text, array.nbytes)
        if found is None:
            raise OSError(f"{path} does not hold what was written to it, or can't be mapped")
        return found


def _checksum(array: np.ndarray) -> str:
    digest = hashlib.sha256()
    for piece in pages.read(array):
        digest.update(piece)
    return digest.hexdigest()


def _time_of(checksum: str) -> int:
    """Seconds since 1970, in the years 2001 to 2010, when none of these files was written."""
    try:
        return 1_000_000_000 + int(checksum[:8], 16) % (1 << 28)
    except ValueError:
        raise DamagedError("its checksum is missing") from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process packs into this folder, so that one packs and the others map what it wrote.

    After MOST_WAIT, or on a disk without locks, it goes on: then several write the same file, and the last one stays.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + MOST_WAIT
        while time.monotonic() < end:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.005)
            except OSError:
                break
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing would leave it to a child that was forked meanwhile
        os.close(handle)
