"""The actor of a cluster: a host of shards with a pool, threads that write checkpoints, and a clock."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .engine import PoolEngine
from .host import Host, finish
from .messages import answer, unpacked
from .shards import Job
from .store import ObjectStore, owners_of
from .words import Fenced, OtherCluster

logger = logging.getLogger("fastrnn")

STORE_THREADS, FOLDER_THREADS = 8, 2  # which write to an object store, and to a folder
SWITCH_SECONDS = 0.0005  # for which a step waits, at most, until a thread that writes checkpoints lets it go on
GROUP = 32  # shards whose states are copied together
WRITING_SECONDS = 0.01  # between two looks whether a checkpoint is written
OWNERS_SECONDS = 0.2  # for which the owners are not read again


def lease_of(checkpoint_seconds: float) -> float:
    """How long an actor answers after it last saw that its shards are its own: three looks and two seconds.

    It looks once every `checkpoint_seconds`. So two looks in a row may fail, and a slow store may take 2 s, before an
    actor stops; and one that is cut off answers for no longer than this.
    """
    return 3 * checkpoint_seconds + 2.0


class ShardActor:
    """What Ray runs, one process each.

    Parameters
    ----------
    name : of the actor
    store, cluster : URL, and name of the cluster
    shards : of the cluster
    threads : of the model
    checkpoint_seconds : between two checkpoints of a shard
    """

    def __init__(self, name: str, store: str, cluster: str, shards: int, threads: int, checkpoint_seconds: float):
        self.name, self.store = name, ObjectStore(store, cluster)
        self.checkpoint_seconds, self.lock = checkpoint_seconds, threading.RLock()
        self.model = loaded(self.store.model(), threads)
        self.host = Host(
            shards, PoolEngine(self.model), self.store, time.monotonic, lease_of(checkpoint_seconds), self.lock
        )
        self._whose = self.store.owners()[1].get("cluster", "")
        self._token = os.urandom(16)
        self._announce()
        self._owners: tuple[list[str], np.ndarray] | None = None
        self._owners_at = -OWNERS_SECONDS
        self._taking = threading.Lock()
        sys.setswitchinterval(SWITCH_SECONDS)
        threads = FOLDER_THREADS if self.store.fs is None else STORE_THREADS
        self._writers = ThreadPoolExecutor(threads, thread_name_prefix="fastrnn-store")
        self._end = threading.Event()
        self._take(self._own())
        threading.Thread(target=self._keep, name="fastrnn-checkpoints", daemon=True).start()

    # -- calls --
    def call(self, whose: str, method: str, *args: Any) -> Any:
        """One of the methods below, for callers of this actor's own cluster. Actors are found by name, and those of a
        cluster in another store may have the same ones. No step comes without an `attach` before."""
        if whose != self._whose:
            raise OtherCluster(
                f"actor {self.name} belongs to the cluster {self.store.name!r} in {self.store.url}: shut that one "
                "down, or use another name"
            )
        return getattr(self, method)(*args)

    def step(self, given: tuple, *pieces: np.ndarray) -> Any:
        """`Host.step` of what a transport has packed; its reply, in as many values as that asks for."""
        (caller, number, acked, head, counts), (rows, *arrays) = unpacked(given, pieces)
        with self.lock:
            reply = self.host.step(caller, number, acked, head, rows, arrays)
        return answer(reply, counts)

    def attach(self, caller: int, mode: int, shards: np.ndarray, ids: list, gens: np.ndarray, of: np.ndarray) -> tuple:
        """`Host.attach`, of shards that this actor owns and may have to take first."""
        self._take(shards.tolist())
        with self.lock:
            return self.host.attach(caller, mode, shards, ids, gens, of)

    def close(self, shards: np.ndarray, ids: list, gens: np.ndarray, of: np.ndarray) -> tuple:
        """`Host.close`."""
        self._take(shards.tolist())
        with self.lock:
            return self.host.close(shards, ids, gens, of)

    def beat(self, caller: int, head: np.ndarray, lost: np.ndarray) -> tuple:
        """`Host.beat`."""
        with self.lock:
            return self.host.beat(caller, head, lost)

    def expire(self, caller: int, seconds: float) -> tuple:
        """`Host.expire`."""
        with self.lock:
            return self.host.expire(caller, seconds)

    def let_go(self) -> tuple:
        """`Host.let_go`."""
        with self.lock:
            self.host.let_go()
        return ("done",)

    def steps_done(self, head: np.ndarray, ids: list, of: np.ndarray) -> tuple:
        """`Host.steps_done`."""
        self._take(head[0].tolist())
        with self.lock:
            return self.host.steps_done(head, ids, of)

    def flush(self, head: np.ndarray | None = None, twice: bool = True) -> tuple:
        """Write checkpoints of shards now, so that both that are kept hold what was done so far. head : of `Host.step`;
        None: all shards. ("done",), or ("refused", {shard: reason})."""
        wanted = list(self.host.owned) if head is None else head[0].tolist()
        failed: dict[int, str] = {}
        for _ in range(2 if twice else 1):
            for shard, error in zip(wanted, self._writers.map(self._write_all, wanted), strict=True):
                if error is not None:
                    failed[shard] = error
        if head is not None:
            failed = self.host.owing(head)
        return ("refused", failed) if failed else ("done",)

    def release(self, shards: list[int]) -> tuple:
        """Hand shards over: the next owner finds their states in the store. ("done",) or ("refused", {shard: why})."""
        failed = {}
        for shard, error in zip(shards, self._writers.map(self._hand_over, shards), strict=True):
            if error is not None:
                failed[shard] = error
        return ("refused", failed) if failed else ("done",)

    def stats(self) -> dict[str, Any]:
        """What the actor has and did."""
        import ray

        with self.lock:
            owned = dict(self.host.owned)
            streams = sum(len(own.streams) for own in owned.values())
            counts = dict(self.host.counts)
        about = ray.get_runtime_context()
        epochs = {shard: own.epoch for shard, own in owned.items()}
        place = {"node_id": about.get_node_id(), "pid": os.getpid(), "shards": sorted(owned), "streams": streams}
        return {"place": place, "epochs": epochs, "counts": counts}

    def exit(self) -> None:
        """End the process as a crash does: without a last checkpoint. For tests of the programs around it."""
        os._exit(1)

    # -- shards --
    def _own(self) -> list[int]:
        """The shards that the store says are this actor's. OSError: it can't be read."""
        now = time.monotonic()
        if self._owners is None or now - self._owners_at > OWNERS_SECONDS:
            version, content = self.store.owners()
            if not version:
                raise FileNotFoundError(f"{self.store.root} has no owners of shards")
            self._owners, self._owners_at = owners_of(content), now
        actors, owner = self._owners
        return np.flatnonzero(owner == actors.index(self.name)).tolist() if self.name in actors else []

    def _take(self, shards: list[int]) -> None:
        """Take those that are this actor's and that it does not have, or whose lease ended."""
        now = time.monotonic()
        late = [s for s in shards if s not in self.host.owned or self.host._until[s] <= now]
        if not late:
            return
        with self._taking:
            try:
                own = set(self._own())
            except OSError as error:
                logger.warning("%s: the owners of shards can't be read: %s", self.name, error)
                return
            list(self._writers.map(self._take_one, [s for s in late if s in own]))

    def _take_one(self, shard: int) -> None:
        try:
            if shard in self.host.owned:
                if self.host._until[shard] <= time.monotonic():
                    finish(self.host.look(shard))
            elif self._is_current():
                finish(self.host.acquire(shard))
        except Fenced:
            pass
        except OSError as error:
            logger.warning("%s: shard %d can't be taken now: %s", self.name, shard, error)

    # -- checkpoints --
    def _keep(self) -> None:
        """Write checkpoints and look at the store, once every `checkpoint_seconds`."""
        while not self._end.wait(self.checkpoint_seconds):
            shards = list(self.host.owned)
            list(self._writers.map(self._write_some, [shards[i : i + GROUP] for i in range(0, len(shards), GROUP)]))

    def _write_some(self, shards: list[int]) -> None:
        """Checkpoints of some shards."""
        try:
            with self.lock:
                jobs = self.host.capture_all(shards)
        except Exception:  # such as a MemoryError: loud, and the next round tries again
            logger.exception("%s: no checkpoints of %d shards", self.name, len(shards))
            return
        for shard in shards:
            try:
                self._write_one(shard, jobs.get(shard))
            except Exception:  # a defect: loud, and the other shards keep their checkpoints
                logger.exception("%s: no checkpoint of shard %d", self.name, shard)

    def _write(self, shard: int) -> str | None:
        """A checkpoint of a shard if anything changed, else a look; why it failed."""
        with self.lock:
            job = self.host.capture(shard)
        return self._write_one(shard, job)

    def _write_all(self, shard: int) -> str | None:
        """`_write`, after the checkpoint that is being written: it may be of before the last steps."""
        while (own := self.host.owned.get(shard)) is not None and own.writing:
            time.sleep(WRITING_SECONDS)
        return self._write(shard)

    def _write_one(self, shard: int, job: Job | None) -> str | None:
        began, own = time.monotonic(), self.host.owned.get(shard)
        try:
            finish(self.host.write(job) if job is not None else self.host.look(shard))
        except Fenced as error:
            return str(error)
        except OSError as error:
            if own is not None and self._is_current():
                # No other process can claim an epoch either, and Ray says that this one is the actor of its name.
                with self.lock:
                    self.host.renew(shard, own.epoch, began)
            return f"{type(error).__name__}: {error}"
        return None

    def _hand_over(self, shard: int) -> str | None:
        try:
            while not finish(self.host.hand_over(shard)):
                time.sleep(WRITING_SECONDS)
        except Fenced:
            return None
        except OSError as error:
            return f"{type(error).__name__}: {error}"
        return None

    # -- which process is the actor --
    def _announce(self) -> None:
        """Tell Ray's control store that this process is the actor of its name now."""
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(self._key(), self._token, overwrite=True, namespace=b"fastrnn")

    def _key(self) -> bytes:
        return f"{self.store.url}|{self.store.name}|{self.name}".encode()

    def _is_current(self) -> bool:
        """Whether no later process has this actor's name. False if Ray can't be asked: the node is cut off."""
        from ray.experimental import internal_kv

        try:
            return internal_kv._internal_kv_get(self._key(), namespace=b"fastrnn") == self._token
        except Exception as error:
            logger.warning("%s: Ray's control store does not answer: %s", self.name, error)
            return False


def loaded(blob: bytes, threads: int) -> Any:
    """A model from the bytes of a .fastrnn file."""
    from ..loading import load

    with tempfile.NamedTemporaryFile(suffix=".fastrnn") as file:
        file.write(blob)
        file.flush()
        return load(file.name, threads=threads)
