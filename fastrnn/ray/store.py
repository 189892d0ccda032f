"""The store of a cluster: checkpoints, epochs, the model and the owners of shards, through fsspec.

    STORE/NAME/SHARD/EPOCH-NUMBER.ckpt    a checkpoint of a shard; the last two are kept, the newest is last by name
    STORE/NAME/SHARD/EPOCH.epoch          an epoch that was claimed; empty
    STORE/NAME/owners-VERSION.json        which actor has which shard
    STORE/NAME/model.fastrnn              the model

What must be created by one process alone (an epoch, a version of the owners) is created only if it is not there, which
the file system has to offer.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import numpy as np

from ..errors import StateError
from ..machine.files import replace_file

# Protocols of fsspec whose `pipe_file(mode="create")` fails, atomically, if the object is there.
CREATING = {"memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}


class ObjectStore:
    """The objects of one cluster.

    Parameters
    ----------
    url : a folder, or a URL that fsspec opens, such as s3://bucket/folder
    name : of the cluster
    """

    def __init__(self, url: str, name: str):
        self.url, self.name = str(url), name
        if "/" in name or not name or name.startswith("."):
            raise StateError(f"the name of a cluster must be a file name, got {name!r:.60}")
        self.fs: Any = None
        if "://" not in self.url:  # as all processes see it: an actor has another working directory, or another home
            self.url = os.path.abspath(os.path.expanduser(self.url))
            self.root = os.path.join(self.url, name)
            return
        try:
            import fsspec
        except ImportError as error:
            raise ImportError("a store that is a URL needs fsspec: pip install 'fastrnn[ray]'") from error
        protocol = self.url.partition("://")[0]
        if protocol in ("file", "local"):
            self.url = os.path.normpath(self.url.partition("://")[2])
            if not self.url.startswith("/"):
                raise StateError(f"store {url!r:.80}: the path of such a URL begins with /, as in file:///folder")
            self.root = os.path.join(self.url, name)
            return
        if protocol not in CREATING:
            have = ", ".join(sorted(CREATING | {"file"}))
            raise StateError(
                f"store {self.url!r:.80}: {protocol} can't create an object only if it is absent; use {have}"
            )
        self.fs, path = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        self.root = f"{path.rstrip('/')}/{name}"

    # -- objects --
    def _list(self, folder: str) -> list[str]:
        path = f"{self.root}/{folder}".rstrip("/")
        try:
            if self.fs is None:
                return os.listdir(path)
            self.fs.invalidate_cache(path)
            return [str(p).rstrip("/").rpartition("/")[2] for p in self.fs.ls(path, detail=False)]
        except FileNotFoundError:
            return []

    def _read(self, name: str) -> bytes:
        path = f"{self.root}/{name}"
        if self.fs is not None:
            return self.fs.cat_file(path)
        with open(path, "rb") as file:
            return file.read()

    def _write(self, name: str, blob: bytes) -> None:
        """Write an object, whole or not at all."""
        path = f"{self.root}/{name}"
        if self.fs is not None:
            self.fs.pipe_file(path, blob)
            return
        try:
            replace_file(path, blob, private=True)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            replace_file(path, blob, private=True)

    def _put(self, name: str, blob: bytes) -> None:
        """The same without a wait for the disk: after a power failure the object may be torn. The shard's folder is
        there since its epoch was claimed; if not, the store is gone, and must not be made anew."""
        if self.fs is not None:
            return self._write(name, blob)
        path = f"{self.root}/{name}"
        temporary = f"{path}.{os.urandom(6).hex()}.tmp"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                left = memoryview(blob)
                while len(left):
                    left = left[os.write(handle, left) :]
            finally:
                os.close(handle)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _create(self, name: str, blob: bytes) -> None:
        """Write an object that is not there. FileExistsError: it is."""
        path = f"{self.root}/{name}"
        if self.fs is not None:
            self.fs.pipe_file(path, blob, mode="create")
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # A whole file appears under its name at once: link() fails if the name is taken.
        temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
        try:
            with open(temporary, "xb") as file:
                file.write(blob)
            os.link(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def _delete(self, name: str) -> None:
        path = f"{self.root}/{name}"
        with contextlib.suppress(FileNotFoundError):
            if self.fs is not None:
                self.fs.rm_file(path)
            else:
                os.unlink(path)

    # -- shards --
    def claim(self, shard: int) -> int:
        """Raise the epoch of a shard: the new one, which no other process gets."""
        epoch = self.epoch(shard) + 1
        while True:
            try:
                self._create(f"{shard}/{epoch:010d}.epoch", b"")
                break
            except FileExistsError:
                epoch += 1
        for name in self._list(str(shard)):
            late = name.endswith(".epoch") and int(name[:10]) < epoch - 1
            if late or (".ckpt." in name and name.endswith(".tmp")):  # of a writer that was killed, or is fenced now
                self._delete(f"{shard}/{name}")
        return epoch

    def epoch(self, shard: int, known: int = 0) -> int:
        """The newest epoch of a shard; 0 without one.

        known : an epoch of it. A folder says without a listing whether that is the newest still: the next one is not
        there, and it is there itself, which it is not once the one after the next was claimed.
        """
        if known and self.fs is None:
            folder = f"{self.root}/{shard}/"
            if not os.path.exists(f"{folder}{known + 1:010d}.epoch") and os.path.exists(f"{folder}{known:010d}.epoch"):
                return known
        return max((int(n[:10]) for n in self._list(str(shard)) if n.endswith(".epoch")), default=0)

    def names(self, shard: int) -> list[str]:
        """The checkpoints of a shard, newest last."""
        return sorted(n for n in self._list(str(shard)) if n.endswith(".ckpt"))

    def read(self, shard: int, name: str) -> bytes:
        """The bytes of a checkpoint."""
        return self._read(f"{shard}/{name}")

    def write(self, shard: int, name: str, blob: bytes) -> None:
        """Write a checkpoint, whole or not at all."""
        self._put(f"{shard}/{name}", blob)

    def delete(self, shard: int, name: str) -> None:
        """Delete a checkpoint, if it is there."""
        self._delete(f"{shard}/{name}")

    # -- the cluster --
    def owners(self) -> tuple[int, dict[str, Any]]:
        """(version, what `set_owners` wrote last); version 0 and {} without any."""
        names = sorted(n for n in self._list("") if n.startswith("owners-") and n.endswith(".json"))
        if not names:
            return 0, {}
        return int(names[-1][7:-5]), json.loads(self._read(names[-1]))

    def set_owners(self, version: int, owners: dict[str, Any]) -> bool:
        """Write this version of the owners; False if another process wrote it first."""
        try:
            self._create(f"owners-{version:010d}.json", json.dumps(owners).encode())
        except FileExistsError:
            return False
        for name in self._list(""):
            if name.startswith("owners-") and name.endswith(".json") and int(name[7:-5]) < version - 8:
                self._delete(name)
        return True

    def model(self) -> bytes:
        """The bytes of the model's .fastrnn file. FileNotFoundError: there is none."""
        return self._read("model.fastrnn")

    def set_model(self, blob: bytes) -> None:
        """Write the model."""
        self._write("model.fastrnn", blob)


def fence(store: str, name: str, shard: int) -> int:
    """Raise the epoch of a shard, so that the actor that has it stops: at its next look at the store, or when its lease
    ends. The actor that owns it takes it up again from its last checkpoint.

    Parameters
    ----------
    store, name : of a StreamCluster
    shard : int

    Returns
    -------
    The new epoch.
    """
    return ObjectStore(store, name).claim(int(shard))


def owners_of(content: dict[str, Any]) -> tuple[list[str], np.ndarray]:
    """(names of actors, int64 [shards]) of what `ObjectStore.owners` returns."""
    return list(content["actors"]), np.array(content["owner"], np.int64)
