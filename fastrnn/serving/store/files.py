"""A store in a folder or an object store, through fsspec.

An entry is a file `<folder>/<model>/<id>/<epoch>`; the highest epoch counts. Taking over is the exclusive creation of
the next epoch: of two servers one gets it, and what the holder before it still writes goes to a name that nobody reads
any more. A file begins with 32 bytes: a magic number, the epoch and the holder.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import secrets
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from .base import Fenced, Held, StoreError, without_password

MAGIC = b"FRNNKEY1"
HEAD = struct.Struct("<8sQ16s")
DIGITS = 16  # of an epoch in a name
THREADS = 4  # calls at once
OLD_TEMPORARY = 3600.0  # seconds after which a temporary file is of a server that was killed
_in_memory = threading.Lock()  # memory:// is one file system for the process


class FileStore:
    """A store through fsspec.

    Parameters
    ----------
    url : folder or URL

    Raises
    ------
    StoreError : fsspec does not know it, its file system has no exclusive creation, or the folder can't be made.
    ImportError : its library is missing.
    """

    def __init__(self, url: str):
        self.url = without_password(url)
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url)
        except (ValueError, TypeError) as error:  # TypeError: the URL lacks what its file system needs
            raise StoreError(f"store {self.url}: {error}") from None
        self._create, self._replace = _ways(self.fs, self.url)
        self._local = type(self.fs) is LocalFileSystem
        if self._local:
            try:
                os.makedirs(self.root, mode=0o700, exist_ok=True)
            except OSError as error:
                raise StoreError(f"store {self.url}: the folder can't be made: {error.strerror}") from None
            if not os.access(self.root, os.R_OK | os.W_OK | os.X_OK):
                raise StoreError(f"store {self.url}: the folder can't be read and written by this user")
        self.poll_seconds = 0.1 if type(self.fs) in (LocalFileSystem, MemoryFileSystem) else 1.0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="fastrnn-store")

    async def read(self, key: str) -> Held | None:
        """The entry of a key."""
        return await self._call(self._read, key)

    async def claim(self, key: str, after: int | None, holder: str, data: bytes) -> int:
        """Take a key over."""
        return await self._call(self._claim, key, after, holder, data)

    async def write(self, key: str, epoch: int, holder: str, data: bytes) -> None:
        """Replace one's own entry."""
        await self._call(self._write, key, epoch, holder, data)

    async def sweep(self, seconds: float) -> None:
        """Drop entries that have not been written for so long. Object stores do it by rules of their own."""
        if self._local:
            await self._call(self._sweep, seconds)

    async def close(self) -> None:
        """End its threads; a call that hangs keeps its own."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- in a thread --
    async def _call(self, function: Callable, *args: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
        except StoreError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise StoreError(f"store {self.url}: {type(error).__name__}: {error}") from error

    def _epochs(self, key: str) -> list[int]:
        """Those of a key, lowest first."""
        folder = self._folder(key)
        try:
            if self._local:  # fsspec takes 10 times as long
                names = os.listdir(folder)
            else:
                self.fs.invalidate_cache(folder)
                names = [str(name).rpartition("/")[2] for name in self.fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []
        return sorted(int(n, 16) for n in names if len(n) == DIGITS and set(n) <= set("0123456789abcdef"))

    def _read(self, key: str) -> Held | None:
        for _ in range(10):  # a file that was listed may have been taken over since
            epochs = self._epochs(key)
            if not epochs:
                return None
            try:
                data = self.fs.cat_file(self._name(key, epochs[-1]))
            except FileNotFoundError:
                continue
            epoch, holder = _head(data, self._name(key, epochs[-1]))
            if epoch != epochs[-1]:
                raise StoreError(f"{self._name(key, epochs[-1])} says that it is of epoch {epoch}: it is damaged")
            return Held(epoch, holder, data[HEAD.size :])
        raise StoreError(f"store {self.url}: {key} changes too fast to be read: try again")

    def _claim(self, key: str, after: int | None, holder: str, data: bytes) -> int:
        while True:
            epochs = self._epochs(key)
            found = epochs[-1] if epochs else 0
            if after is not None and after != found:
                raise Fenced(key, found)
            epoch = found + 1
            try:
                self._create(self.fs, self._name(key, epoch), HEAD.pack(MAGIC, epoch, bytes.fromhex(holder)) + data)
            except FileExistsError:
                if after is not None:
                    raise Fenced(key, epoch) from None
                continue
            self._require_highest(key, epoch)  # a faster server may have taken and tidied up this epoch and the next
            for old in epochs:
                self._remove(key, old)
            return epoch

    def _write(self, key: str, epoch: int, holder: str, data: bytes) -> None:
        name = self._name(key, epoch)
        data = HEAD.pack(MAGIC, epoch, bytes.fromhex(holder)) + data
        epochs = self._epochs(key)
        if not epochs:  # somebody has emptied the store
            try:
                self._create(self.fs, name, data)
            except FileExistsError:
                raise Fenced(key, epoch) from None
            return
        if epochs[-1] != epoch or self._holder(name) not in (holder, None):
            raise Fenced(key, epochs[-1])
        self._replace(self.fs, name, data)
        self._require_highest(key, epoch)

    def _require_highest(self, key: str, epoch: int) -> None:
        epochs = self._epochs(key)
        if epochs and epochs[-1] > epoch:
            self._remove(key, epoch)
            raise Fenced(key, epochs[-1])

    def _holder(self, name: str) -> str | None:
        """Who wrote a file; None: it is damaged, and its epoch is the caller's to write again."""
        try:
            if self._local:
                with open(name, "rb", buffering=0) as file:
                    return _head(file.read(HEAD.size), name)[1]
            return _head(self.fs.cat_file(name, start=0, end=HEAD.size), name)[1]
        except StoreError:
            return None

    def _remove(self, key: str, epoch: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._name(key, epoch))

    def _sweep(self, seconds: float) -> None:
        before = time.time() - seconds
        for model in _entries(self.root):
            for key in _entries(model.path) if model.is_dir(follow_symlinks=False) else ():
                with contextlib.suppress(OSError):  # others sweep and write too; a folder in use is not empty
                    _sweep_folder(key.path, before)

    def _folder(self, key: str) -> str:
        return f"{self.root.rstrip('/')}/{key}"

    def _name(self, key: str, epoch: int) -> str:
        return f"{self._folder(key)}/{epoch:0{DIGITS}x}"


def _entries(folder: str) -> list[os.DirEntry]:
    """What is in a folder; nothing if there is none."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except FileNotFoundError:
        return []


def _sweep_folder(folder: str, before: float) -> None:
    for file in _entries(folder):
        temporary = file.name.startswith(".")
        if file.stat(follow_symlinks=False).st_mtime < (time.time() - OLD_TEMPORARY if temporary else before):
            os.unlink(file)
    os.rmdir(folder)


def _head(data: bytes, name: str) -> tuple[int, str]:
    """(epoch, holder) of a file. StoreError: it is none of ours."""
    if len(data) < HEAD.size:
        raise StoreError(f"{name} has {len(data)} bytes: it is torn, or not of fastrnn")
    magic, epoch, holder = HEAD.unpack_from(data)
    if magic != MAGIC:
        raise StoreError(f"{name} begins with {magic!r}: it is not of fastrnn")
    return epoch, holder.hex()


# -- how a file is created if it is absent, and replaced as a whole --
def _ways(fs: Any, url: str) -> tuple[Callable, Callable]:
    """(create, replace), each of (file system, name, bytes)."""
    if type(fs) is LocalFileSystem:  # a class that inherits from it may do otherwise
        return _create_local, _replace_local
    if type(fs) is MemoryFileSystem:
        return _create_in_memory, _replace_object
    own = getattr(type(fs), "_pipe_file", None) or type(fs).pipe_file
    plain = (fsspec.AbstractFileSystem.pipe_file, AsyncFileSystem._pipe_file)
    if own in plain or "mode" not in inspect.signature(own).parameters:
        raise StoreError(
            f"store {url}: {type(fs).__name__} can't create a file only if it is absent, so two servers could take one "
            "sequence over: use a folder, s3:// (s3fs), gs:// (gcsfs) or redis://"
        )
    return _create_object, _replace_object


def _create_local(fs: Any, name: str, data: bytes) -> None:
    with _temporary(name, data) as made:
        os.link(made, name)  # FileExistsError if the name is taken


def _replace_local(fs: Any, name: str, data: bytes) -> None:
    with _temporary(name, data) as made:
        os.replace(made, name)


@contextlib.contextmanager
def _temporary(name: str, data: bytes):
    """A whole file beside a name. It is not synced to the disk: after a power failure, a torn one is refused."""
    folder = os.path.dirname(name)
    made = f"{folder}/.{secrets.token_hex(8)}"
    for _ in range(3):
        try:
            handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            break
        except FileNotFoundError:  # the first entry of a key; or a sweep has removed the empty folder
            os.makedirs(folder, mode=0o700, exist_ok=True)
    else:
        raise StoreError(f"{folder} vanishes as soon as it is made")
    try:
        with open(handle, "wb") as file:
            file.write(data)
        yield made
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(made)


def _create_in_memory(fs: Any, name: str, data: bytes) -> None:
    with _in_memory:
        if fs.exists(name):
            raise FileExistsError(name)
        fs.pipe_file(name, data)


def _create_object(fs: Any, name: str, data: bytes) -> None:
    fs.pipe_file(name, data, mode="create")


def _replace_object(fs: Any, name: str, data: bytes) -> None:
    fs.pipe_file(name, data)
