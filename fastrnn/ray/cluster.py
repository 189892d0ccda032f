"""StreamCluster: live streams on the machines of a Ray cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ShapeError, StateError, StreamError
from ..runtime.arguments import duration, whole_number
from .caller import REPLAY_STEPS, Caller
from .engine import sides_of
from .inputs import chunks_of, count_of, index_of, rows_of
from .placement import balanced, nodes_of
from .store import ObjectStore, owners_of
from .transport import NAMESPACE, RayTransport
from .words import MOST_SHARDS, OtherCluster


class StreamCluster:
    """Streams of one model on many machines, each with its state on one of them.

    cluster = fastrnn.ray.StreamCluster("model.onnx", store="s3://bucket/streams")
    await cluster.open(ids)
    y = await cluster.step(ids, x)

    An id belongs to one of `shards` shards, and a shard to one actor, a process that steps all its streams together.
    Steps count from 0 in each stream, and each is taken once: after a crash, a lost node or a hand-over, the streams go
    on with the same bits, or `StepsLost` says which steps are gone. Several programs may use one cluster by its name,
    each with a handle of its own; a stream is stepped by one handle at a time, and the last one to step it has it.

    Actors outlive the program. A later `StreamCluster` of the same name, store and model finds them, and their streams.

    Parameters
    ----------
    model : Model, or the path of a file that `load` reads
    shards : how many; they are what moves between actors, and never change
    store : folder that all machines share, or a URL of fsspec, such as s3://bucket/folder
    name : of the cluster; its actors are NAME-0, NAME-1, .. in the namespace "fastrnn" of Ray
    actors : how many processes; None: one per node
    checkpoint_seconds : between two checkpoints of a shard in which something changed
    replay_steps : steps of a stream whose inputs this handle keeps, at most, until checkpoints hold them; None: 10,000.
        While the store fails, older ones are dropped, with a warning in the log, and can be lost.
    cpus : CPUs that Ray reserves for an actor, and threads of its model

    Raises
    ------
    ImportError : Ray is not installed. StreamError, UnsupportedError : the model can't be stepped, or the cluster of
    this name has another one. StateError : the store can't be used.
    """

    def __init__(
        self,
        model: Any,
        shards: int = 256,
        store: str | os.PathLike[str] | None = None,
        *,
        name: str = "default",
        actors: int | None = None,
        checkpoint_seconds: float = 1.0,
        replay_steps: int | None = None,
        cpus: int = 1,
    ):
        ray = ray_module()
        if store is None:
            raise ShapeError("StreamCluster needs store=, a folder that all machines share or a URL such as s3://..")
        self.name, self.shards = name, whole_number(shards, "shards", MOST_SHARDS)
        self.cpus = whole_number(cpus, "cpus", 1 << 16)
        self.checkpoint_seconds = duration(checkpoint_seconds, "checkpoint_seconds")
        self.replay_steps = (
            REPLAY_STEPS if replay_steps is None else whole_number(replay_steps, "replay_steps", 1 << 40)
        )
        if not self.checkpoint_seconds:
            raise ShapeError("checkpoint_seconds must be above 0")
        self.model = model if hasattr(model, "pool") else _load(model)
        self.inputs, self.outputs = sides_of(self.model)
        if not ray.is_initialized():
            ray.init(namespace=NAMESPACE, log_to_driver=False)
        self._ray, self._store = ray, ObjectStore(os.fspath(store), name)
        if self._store.url.startswith("memory:"):
            raise StateError(
                f"store {self._store.url!r}: the memory of one process is not shared: use a folder or a URL"
            )
        self._nodes: dict[str, str] = {}  # actor -> the node on which it is made
        self._kind = 0  # GATEWAY: of a replica of the ingress
        self._most = None if actors is None else whole_number(actors, "actors", 1 << 16)
        self._transport = RayTransport(self._store, self._spawn, self.outputs)
        self._found()
        self._caller: Caller | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start: asyncio.Future | None = None
        self._ended = False

    # -- making it --
    def _found(self) -> None:
        """Write the model and the owners, unless the cluster is there; find or make its actors."""
        version, content = self._store.owners()
        if not version:
            nodes = nodes_of(self._ray)
            count = self._most or len(nodes)
            names = [f"{self.name}-{k}" for k in range(count)]
            self._nodes = {n: nodes[k % len(nodes)] for k, n in enumerate(names)}
            content = {
                "cluster": os.urandom(8).hex(),
                "actors": names,
                "owner": [s % count for s in range(self.shards)],
                "shards": self.shards,
                "model": self.model.fingerprint,
                "checkpoint_seconds": self.checkpoint_seconds,
                "cpus": self.cpus,
            }
            if not self._store.set_owners(1, content):
                _, content = self._store.owners()
        self._check(content)
        self._share_model()
        self._transport.whose = content.get("cluster", "")
        self._transport.find()

    def _share_model(self) -> None:
        """Write the model for the actors, unless it is there. The caller has checked that it is the cluster's."""
        with contextlib.suppress(FileNotFoundError):
            self._store.model()
            return
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.fastrnn")
            self.model.save(path)
            with open(path, "rb") as file:
                self._store.set_model(file.read())

    def _check(self, content: dict[str, Any]) -> None:
        for what, mine in (("shards", self.shards), ("model", self.model.fingerprint)):
            if content[what] != mine:
                raise StreamError(
                    f"the cluster {self.name!r} in {self._store.url} has another {what} ({content[what]}, not {mine}): "
                    "use the same, or another name"
                )
        self.checkpoint_seconds, self.cpus = content["checkpoint_seconds"], content["cpus"]

    def _spawn(self, name: str) -> Any:
        """The actor of a name: the one that lives, or a new one."""
        from .actor import ShardActor

        options: dict[str, Any] = {
            "name": name,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "max_restarts": -1,
            "max_task_retries": 0,
            "num_cpus": self.cpus,
            "scheduling_strategy": "SPREAD",
        }
        if name in self._nodes:
            strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
            options["scheduling_strategy"] = strategy(self._nodes[name], soft=True)
        cls = self._ray.remote(ShardActor).options(**options)
        return cls.remote(name, self._store.url, self.name, self.shards, self.cpus, self.checkpoint_seconds)

    async def _ready(self) -> Caller:
        """The caller, on this event loop."""
        if self._ended:
            raise StreamError(
                f"the cluster {self.name!r} was shut down: to go on, make another StreamCluster of its store"
            )
        loop = asyncio.get_running_loop()
        if self._caller is None or self._loop is not loop:
            if self._caller is not None and self._loop is not None and not self._loop.is_closed():
                raise StreamError("a StreamCluster belongs to the event loop that used it first: make another")
            caller = Caller(
                int.from_bytes(os.urandom(7), "little") | 1 | self._kind,
                self.shards,
                self._transport,
                self.replay_steps,
            )
            self._caller, self._loop, self._start = caller, loop, loop.create_task(caller.start())
        caller, start = self._caller, self._start
        if start is not None and not caller.actors:
            try:
                await asyncio.shield(start)  # several tasks may wait for it, and one be cancelled
            except Exception:
                if self._caller is caller:
                    self._caller = None  # the next call starts anew
                raise
        return caller

    # -- steps --
    async def step(self, ids: Any, x: Any, *, step_index: Any = None) -> Any:
        """Take one step of each stream.

        Calls may overlap: a later call for the same streams takes the next step, before the earlier one is answered. A
        caller that is cancelled does not take its steps back.

        Parameters
        ----------
        ids : array or sequence [n] of integers from 0 to 2**64 - 1 and texts, none twice. 5 and "5" are two streams.
        x : float32 [n, features...]; a tuple or dict of arrays for several inputs
        step_index : int64 [n], the index from 0 of each step, if the caller counts. A step that was the last one taken
            is answered again, with the same bits. Another one is refused.

        Returns
        -------
        [n, features...], new memory; a tuple for several outputs

        Raises
        ------
        StepsLost : see there. StateError : a stream is not open, or an id is there twice. ShapeError : of x.
        StreamError : another step_index is expected, or the step failed. Other streams of the call may have taken
            theirs: `steps_done` says.
        """
        caller = await self._ready()
        n = count_of(ids)
        arrays, index = rows_of(self.inputs, x, n), index_of(step_index, n)
        outputs = await caller.step(ids, arrays, None, index) if n else self._nothing()
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    async def push(self, ids: Any, chunks: Sequence[Any], *, step_index: Any = None) -> list:
        """Advance each stream by a chunk of its own length.

        Parameters
        ----------
        chunks : sequence of n; chunks[i] is [T_i, features...], or a tuple or dict of arrays

        Returns
        -------
        list of n arrays [T_i, features...], or tuples of arrays. Errors as of `step`.
        """
        caller = await self._ready()
        n = count_of(ids)
        arrays, lengths = chunks_of(self.inputs, chunks, n)
        index = index_of(step_index, n)
        if not n:
            return []
        outputs = await caller.step(ids, arrays, lengths, index)
        parts = [np.split(a, np.cumsum(lengths)[:-1]) for a in outputs]
        return parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))

    def _nothing(self) -> list[np.ndarray]:
        """The outputs of no streams."""
        return [np.zeros((0, *features), dtype) for _, dtype, features in self.outputs]

    # -- streams --
    async def open(self, ids: Sequence) -> None:
        """New streams, in the model's initial state. StateError: one is open; then none is opened."""
        await (await self._ready()).open(ids)

    async def close(self, ids: Sequence) -> None:
        """End streams, after the steps that are under way. StateError: one is not open."""
        await (await self._ready()).close(ids)

    async def steps_done(self, ids: Any) -> np.ndarray:
        """int64 [n], the steps that each stream has taken. StateError: one is not open."""
        return await (await self._ready()).steps_done(ids)

    async def drain(self) -> None:
        """Wait for all steps of this handle that are under way, and write checkpoints of all shards.

        Raises
        ------
        StreamError : the store fails; the log of this handle still has what it lacks.
        """
        caller = await self._ready()
        await caller.settle()
        await caller.look_after()
        replies = await self._every("flush")
        failed = {name: reply for name, reply in replies.items() if reply is None or reply[0] != "done"}
        if failed:
            name, reply = next(iter(failed.items()))
            why = "it does not answer" if reply is None else next(iter(reply[1].values()))
            raise StreamError(f"drain: checkpoints of {len(failed)} actors are missing; {name}: {why}")

    async def _every(self, method: str, *args: Any) -> dict[str, Any]:
        """The answer of each actor to a call; None if it has none. OtherCluster: it is not one of ours."""
        names = list(self._caller.actors if self._caller else self._transport.handles)
        replies = await asyncio.gather(*(self._transport.call(n, method, *args) for n in names), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, OtherCluster):
                raise reply
        return {n: None if isinstance(r, BaseException) else r for n, r in zip(names, replies, strict=True)}

    # -- the cluster --
    async def rebalance(self, nodes: Sequence[str] | None = None) -> None:
        """Spread the shards over nodes, one actor each (or `actors` in all); steps go on meanwhile.

        A shard that moves is handed over by a snapshot in the store. Actors on other nodes end.

        Parameters
        ----------
        nodes : ids of Ray's nodes; None: all that are alive

        Raises
        ------
        StreamError : a node is not alive, another program moves shards too, or a hand-over failed. A shard whose
            hand-over failed is taken over from its last checkpoint.
        """
        caller = await self._ready()
        alive = nodes_of(self._ray)
        wanted = alive if nodes is None else list(nodes)
        unknown = [n for n in wanted if n not in alive]
        if unknown or not wanted:
            raise StreamError(f"rebalance: {unknown[:1] or 'no node'} is not alive; these are: {', '.join(alive)}")
        version, content = self._store.owners()
        where = {n: r["place"]["node_id"] for n, r in (await self._every("stats")).items() if r is not None}
        old, owner = owners_of(content)
        actors, new, self._nodes = balanced(self.name, old, owner, where, wanted, self._most)
        moved = np.flatnonzero(np.array(old)[owner] != np.array(actors)[new])
        await asyncio.get_running_loop().run_in_executor(None, lambda: [self._spawn(n) for n in actors])
        changed = {**content, "actors": actors, "owner": new.tolist()}
        if not self._store.set_owners(version + 1, changed):
            raise StreamError("rebalance: another program has moved shards meanwhile: call it again")
        for name, handle in self._transport.handles.items():
            self._nodes.setdefault(name, where.get(name, wanted[0]))
            assert handle is not None
        jobs = []
        for k, name in enumerate(old):
            mine = [int(s) for s in moved if owner[s] == k]
            if mine:
                jobs.append(self._transport.call(name, "release", mine))
        results = await asyncio.gather(*jobs, return_exceptions=True)
        if len(moved):
            caller._break(moved)
            await caller._settled(moved)
        for name in set(old) - set(actors):
            handle = self._transport.handles.pop(name, None)
            if handle is not None:
                self._ray.kill(handle)
        failed = [r for r in results if isinstance(r, BaseException) or r[0] != "done"]
        if failed:
            raise StreamError(f"rebalance: {len(failed)} actors did not hand over; their shards were taken over")

    async def shutdown(self) -> None:
        """Write checkpoints and end the actors, for all handles, also if the checkpoints can't be written. The store
        stays: a later StreamCluster goes on with its streams; this one is at its end, and ending it again does
        nothing."""
        if self._ended:
            return
        try:
            caller = await self._ready()
            await caller.settle()
            await caller.look_after()
            await self._every("let_go")
            await self.drain()
        except OtherCluster:
            self._transport.handles.clear()  # they stay
            raise
        finally:
            self._ended = True
            if self._caller is not None:
                await self._caller.end()
            for handle in self._transport.handles.values():
                self._ray.kill(handle)
            self._transport.handles.clear()

    async def stats(self) -> dict[str, Any]:
        """What the cluster has, and what it and this handle did.

        Returns
        -------
        dict: `actors` {name: {node_id, pid, shards, streams}}, `epochs` {shard: epoch}; of this handle `steps`,
        `replayed_steps`, `lost_steps`, `kept_steps` (in the log) and `unprotected_steps` (dropped from the full log
        before a checkpoint held them); of all actors since they started `fenced`, `checkpoints`, `checkpoint_failures`.
        """
        caller = await self._ready()
        found = {n: r for n, r in (await self._every("stats")).items() if r is not None}
        epochs: dict[int, int] = {}
        for reply in found.values():
            epochs.update(reply["epochs"])
        counts = {k: caller.counts[k] for k in ("steps", "replayed_steps", "lost_steps")}
        for key in ("fenced", "checkpoints", "checkpoint_failures"):
            counts[key] = sum(r["counts"][key] for r in found.values())
        log = caller.log
        counts |= {"unprotected_steps": log.dropped, "kept_steps": int(log.kept.sum())}
        return {"actors": {n: r["place"] for n, r in found.items()}, "epochs": dict(sorted(epochs.items())), **counts}

    def __repr__(self) -> str:
        return f"<StreamCluster {self.name} of {self.model.name}, {self.shards} shards in {self._store.url}>"

    def __reduce__(self) -> Any:
        raise TypeError("a StreamCluster can't be pickled: make a handle where it is used, by the same name and store")


def ray_module() -> Any:
    """Ray. ImportError: it is not installed."""
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise ImportError("fastrnn.ray.StreamCluster needs Ray: pip install 'fastrnn[ray]'") from error
    return ray


def _load(path: Any) -> Any:
    from ..loading import load

    return load(path)
