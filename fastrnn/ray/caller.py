"""The side of a gateway: gives each step its index, sends one call a tick and actor, and mends what breaks.

Nothing here knows Ray: a `Transport` carries calls to actors. After a loss the caller finds the streams of the broken
shards again, learns which step each expects, and sends from its log what is gone. So the caller's own callers see the
same answers as ever, or `StepsLost`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import StateError, StreamError
from .calls import Group, Transport, spans
from .log import Entry, Log, answered
from .recovery import Recovery
from .table import Table
from .words import ADOPT, EXISTS, FOUND, NEVER, OPEN, WAITING, StepsLost, Unreachable, ids_of, key_of

REPLAY_STEPS = 10_000  # of a stream that are kept at most, if nothing else was asked for
REPLAY_BYTES = 1 << 30
MOST_PLANS = 32
MOST_TURNS = 5  # in which another caller takes a stream before it can answer again


class Caller(Recovery):
    """Steps streams wherever their shards are.

    Parameters
    ----------
    id : a number above 0 that no other caller has
    shards : how many there are
    transport : Transport
    replay_steps, replay_bytes : bounds of the log
    backoff : seconds before the second attempt to mend; it doubles up to 16 times as long
    beat_seconds : between two looks after steps that no checkpoint holds; less than half of the hosts' lease, which is
        how long a restored shard waits for the caller of its streams
    """

    def __init__(
        self,
        id: int,
        shards: int,
        transport: Transport,
        replay_steps: int = REPLAY_STEPS,
        replay_bytes: int = REPLAY_BYTES,
        backoff: float = 0.05,
        beat_seconds: float = 1.0,
    ):
        self.id, self.shards, self.transport = id, shards, transport
        self.backoff, self.beat_seconds = backoff, beat_seconds
        self.table, self.log = Table(shards), Log(replay_steps, replay_bytes)
        self.actors: list[str] = []
        self.owner = np.zeros(shards, np.int64)
        self.epochs = np.zeros(shards, np.int64)  # in which the caller found them; 0: not yet
        self.durable = np.full(shards, -1, np.int64)
        self.births = np.full(shards, -1, np.int64)  # the checkpoint that will hold all streams that were opened
        self.held = np.zeros(shards, np.bool_)  # being mended: nothing is sent to them
        self.counts = {"steps": 0, "replayed_steps": 0, "lost_steps": 0, "recoveries": 0}
        self._losses: dict[int, range] = {}
        self._tombs: list[tuple[int, Any, int, int]] = []  # (shard, id, generation, label) of closed streams
        self._numbers, self._gens = itertools.count(1), 0
        self._plans: dict[Any, tuple[int, np.ndarray, list[Group]]] = {}
        self._adopting, self._queued = asyncio.Lock(), 0
        self._mending: asyncio.Task | None = None
        self._broken: set[int] = set()
        self._tasks: set[asyncio.Task] = set()
        self._swept, self._sweep_at = self.durable.copy(), 0
        self._version = 0  # of the owners

    async def start(self) -> None:
        """Read who owns what. OSError: it can't be read now."""
        await self._read_owners()
        task = asyncio.get_running_loop().create_task(self._beat())
        self._tasks.add(task)

    # -- steps --
    async def step(
        self, ids: Any, arrays: list[np.ndarray], lengths: np.ndarray | None = None, index: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """Take one step of each stream, or lengths[i] of them.

        Parameters
        ----------
        ids : array or sequence [n], none twice
        arrays : of the inputs, [n, ...], or [steps, ...] with the steps of one stream after those of another
        index : int64 [n], the step index of each stream's first step, if the callers know it. One that was answered
            last is answered again.

        Raises
        ------
        StateError : an id is not open. StepsLost. StreamError : another index is expected, or the model failed.
        """
        with self.table.pinned():
            return await self._stepped(ids, arrays, lengths, index)

    async def _stepped(self, ids: Any, arrays: list[np.ndarray], lengths, index) -> list[np.ndarray]:
        rows, groups = await self._plan(ids)
        if index is None:
            self._tell_losses(rows)
        elif (index != self.table.next[rows]).any():
            return await self._again(ids, rows, groups, arrays, lengths, index)
        else:
            self._said(rows)
        entries = [self.enter(group, arrays, lengths, index is not None) for group in groups]
        await answered(entries)
        return self._outputs(len(rows), groups, entries, lengths)

    def enter(self, group: Group, arrays: list[np.ndarray], lengths: np.ndarray | None, explicit: bool) -> Entry:
        """Note the steps of a group, and send them unless its shards are being mended."""
        part = lengths if lengths is None or group.index is None else lengths[group.index]
        if group.index is None:
            own = [np.array(a, order="C") for a in arrays]  # the log's: the caller may change its arrays
        else:
            where = group.index if lengths is None else spans(lengths, group.index)
            own = [a[where] for a in arrays]
        rows = group.rows
        first = self.table.next[rows]
        self.table.next[rows] += 1 if part is None else part
        future = asyncio.get_running_loop().create_future()
        entry = Entry(next(self._numbers), rows, first, part, own, group.shards, future)
        entry.explicit = explicit
        self.log.add(entry)
        if not self.held[group.shards].any():
            self._send(entry, None, group.actor, group.shards)
        return entry

    def _outputs(self, n: int, groups: list[Group], entries: list[Entry], lengths) -> list[np.ndarray]:
        """Outputs in the order of the ids, as arrays of the caller's own."""
        lost: dict[int, range] = {}
        for entry in entries:
            lost.update(entry.lost)
        for entry in entries:
            for error in entry.failed.values():
                raise error
        if len(entries) == 1 and groups[0].index is None:
            outputs = entries[0].outputs or []
        else:
            total = n if lengths is None else int(lengths.sum())
            some = next(e.outputs for e in entries if e.outputs is not None or e is entries[-1]) or []
            outputs = [np.empty((total, *a.shape[1:]), a.dtype) for a in some]
            for group, entry in zip(groups, entries, strict=True):
                where = group.index if lengths is None else spans(lengths, group.index)
                for k, out in enumerate(outputs):
                    out[where] = entry.outputs[k] if entry.outputs else (np.nan if out.dtype.kind == "f" else 0)
        for entry in entries:  # the log keeps inputs alone
            entry.outputs = None
        if lost:
            raise StepsLost({self.table.ids[row]: span for row, span in lost.items()}, outputs)
        return outputs

    async def _again(self, ids, rows, groups, arrays, lengths, index) -> list[np.ndarray]:
        """Steps that were sent before, at the indexes that the callers say."""
        ids = ids_of(ids)
        steps = np.ones(len(rows), np.int64) if lengths is None else lengths
        wrong = np.flatnonzero(index + steps != self.table.next[rows])
        if len(wrong):
            if await self._anew(rows, index):
                return await self.step(ids, arrays, lengths, index)
            wrong = np.flatnonzero(index + steps != self.table.next[rows])
        if len(wrong):
            self._tell_losses(rows)
            i = int(next((i for i in wrong if index[i] != self.table.next[rows[i]]), wrong[0]))
            want = int(self.table.next[rows[i]])
            raise StreamError(f"stream {ids[i]!r:.80} expects step_index {want}, got {int(index[i])}")
        reply, parts, turns = None, [], 0
        while True:
            await self._settled(np.unique(self.table.shard[rows]))
            rows, groups = await self._plan(ids)
            if (index + steps != self.table.next[rows]).any():  # the shard was restored from before these steps
                return await self._again(ids, rows, groups, arrays, lengths, index)
            parts, failed = [], False
            for group in groups:
                part = slice(None) if group.index is None else group.index
                head = np.stack([group.shards, self.epochs[group.shards]])
                about = [self.table.slot[group.rows], index[part], self.table.since[group.rows]]
                about += [self.table.gen[group.rows], self.epochs[self.table.shard[group.rows]]]
                about += [] if lengths is None else [lengths[part]]
                where = part if lengths is None or group.index is None else spans(lengths, group.index)
                own = [a[where] for a in arrays]
                number = next(self._numbers)
                acked = next(iter(self.log.open), number) - 1
                try:
                    reply = await self.transport.call(
                        group.actor, "step", self.id, number, acked, head, np.stack(about), own
                    )
                except Unreachable:
                    reply = ("refused", {})
                if reply[0] == "rows" and (reply[2] < 0).any() and turns < MOST_TURNS:
                    if await self._anew(rows, index):  # another caller has taken a stream since
                        return await self.step(ids, arrays, lengths, index)
                    turns, failed = turns + 1, True
                    break
                if reply[0] in ("rows", "failed"):
                    text = f"stream {ids[0]!r:.80}: the answer to these steps is not kept any more"
                    raise StreamError(f"{text}: steps_done says how many were taken")
                if reply[0] == "refused":
                    self._break(group.shards)
                    failed = True
                    break
                parts.append((where, reply[1]))
            if not failed:
                break
        total = int(steps.sum())
        outputs = [np.empty((total, *a.shape[1:]), a.dtype) for a in parts[0][1]]
        for where, some in parts:
            for out, a in zip(outputs, some, strict=True):
                out[where] = a
        return outputs

    async def _anew(self, rows: np.ndarray, index: np.ndarray) -> bool:
        """Ask what other callers did: whether these steps are the next ones after all, or a stream began again."""
        await self._sync(rows)
        return not (self.table.live[rows].all() and (index != self.table.next[rows]).any())

    async def _plan(self, ids: Any) -> tuple[np.ndarray, list[Group]]:
        """(rows of the ids, their groups by actor); streams that other callers opened become this one's."""
        key = key_of(ids)
        version = (self.table.version, self._version)
        found = self._plans.get(key)
        if found is not None and found[0] == version and not self._queued:
            return found[1], found[2]
        names = ids_of(ids)
        await self._adopt(names)
        rows = np.array([self.table.rows[id] for id in names], np.int64)
        if len(set(names)) < len(names):
            raise StateError("an id is there twice: a call takes one step, or one chunk, of each stream")
        groups = self.groups_of(rows)
        if len(self._plans) >= MOST_PLANS:
            self._plans.clear()
        self._plans[key] = (self.table.version, self._version), rows, groups
        return rows, groups

    def groups_of(self, rows: np.ndarray) -> list[Group]:
        """Rows by the actors that have them."""
        of = self.owner[self.table.shard[rows]]
        actors = np.unique(of)
        groups = []
        for actor in actors.tolist():
            index = None if len(actors) == 1 else np.flatnonzero(of == actor)
            own = rows if index is None else rows[index]
            groups.append(Group(self.actors[actor], index, own, np.unique(self.table.shard[own])))
        return groups

    # -- streams --
    async def open(self, ids: Sequence) -> None:
        """New streams. StateError: one is open already; then none is opened."""
        ids = ids_of(ids)
        if len(set(ids)) < len(ids):
            raise StateError("open: an id is there twice")
        known = [id for id in ids if id in self.table.rows]
        if known:
            raise StateError(f"stream {known[0]!r:.80} is open already: close it first, or step it")
        gens = np.arange(len(ids)) + max(self._gens + 1, self.transport.now())  # no two streams have one
        self._gens = int(gens.max(initial=self._gens))
        made = await self._attach(OPEN, ids, gens)
        while risen := self._risen(made):
            await self._close_all(list(risen), np.fromiter(risen.values(), np.int64))
            made |= await self._attach(OPEN, ids, gens)
        there = [id for id, (code, *_) in made.items() if code == EXISTS]
        if there:
            fresh = [id for id, (code, *_) in made.items() if code == FOUND]
            if fresh:
                await self._close_all(fresh, np.array([made[id][3] for id in fresh], np.int64))
            raise StateError(f"stream {there[0]!r:.80} is open already: close it first, or step it")
        self._note(made)

    def _risen(self, found: dict[Any, tuple]) -> dict[Any, int]:
        """Streams that were closed, and are there again because their shard was restored: id -> generation."""
        there = {id: gen for id, (code, _, _, gen, *_) in found.items() if code == EXISTS}
        return {id: gen for _, id, gen, _ in self._tombs if there.get(id, NEVER) <= gen} if there else {}

    async def _adopt(self, ids: list) -> None:
        for id in await self.find(ids):
            raise StateError(f"stream {id!r:.80} is not open: open it first")

    async def find(self, ids: list) -> dict[Any, tuple[int, int]]:
        """Streams that other callers opened become this one's: id -> (code, generation), of those that are not open.

        The code is UNKNOWN, CLOSED or EXPIRED; the generation that of the stream that has ended.
        """
        gone: dict[Any, tuple[int, int]] = {}
        if self._queued or any(id not in self.table.rows for id in ids):
            self._queued += 1  # calls that come later wait too: each stream takes its steps in the order of the calls
            try:
                async with self._adopting:
                    missing = [id for id in ids if id not in self.table.rows]
                    if missing:
                        found = await self._attach(ADOPT, missing, np.zeros(len(missing), np.int64))
                        gone = {id: (f[0], f[3]) for id, f in found.items() if f[0] != FOUND}
                        self._note({id: f for id, f in found.items() if f[0] == FOUND})
            finally:
                self._queued -= 1
        return gone

    def _note(self, found: dict[Any, tuple]) -> None:
        ids = [id for id in found if id not in self.table.rows]
        if ids:
            columns = np.array([found[id] for id in ids], np.int64).T
            rows = self.table.add(ids, columns[[7, 1, 2, 3, 4]])
            for i in np.flatnonzero(columns[6]).tolist():
                self._doubtful(int(rows[i]), int(columns[2, i]), int(columns[6, i]))
            self._gens = max(self._gens, int(columns[3].max()))  # clocks of callers differ

    async def _attach(self, mode: int, ids: list, gens: np.ndarray) -> dict[Any, tuple]:
        """id -> (a row of `Host.attach`, shard), whatever it takes to reach the shards."""
        of, found = self.table.place(ids), {}
        left, seen = np.arange(len(ids)), np.zeros(len(ids), np.int64)
        while len(left):
            await self._settled(np.unique(of[left]))
            stale, again = [], []
            for actor, own in self._by_actor(left, of):
                shards = np.unique(of[own])
                names = [ids[i] for i in own.tolist()]
                reply = await self._ask(actor, shards, "attach", mode, shards, names, gens[own], of[own])
                if reply is None:
                    again.append(own)
                    continue
                _, epochs, marks, rows, owed = reply
                if (epochs < self.epochs[shards]).any():  # of a host that lost the shard, and does not know yet
                    self._break(shards)
                    again.append(own)
                    continue
                if owed and not await self._flushed(actor, owed, shards, epochs):
                    again.append(own)
                    continue
                for i, row in zip(own.tolist(), rows.T.tolist(), strict=True):
                    found[ids[i]] = (*row, int(of[i]))
                seen[own] = epochs[np.searchsorted(shards, of[own])]
                if (waiting := own[rows[0] == WAITING]).size:
                    again.append(waiting)
                    await asyncio.sleep(2 * self.backoff)
                stale += self._epochs_seen(shards, epochs, marks)
            if stale:
                self._break(np.array(stale, np.int64))
            left = np.concatenate(again) if again else left[:0]
            if not len(left):  # a shard may have been taken up again since: its slots are other streams' by now
                left = np.flatnonzero(seen != self.epochs[of])
        return found

    def _by_actor(self, left: np.ndarray, of: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """(actor, those of `left` whose shards it has), as the owners are now: they may change while one is asked."""
        owner = self.owner[of[left]]
        return [(self.actors[k], left[owner == k]) for k in np.unique(owner).tolist()]

    def _epochs_seen(self, shards: np.ndarray, epochs: np.ndarray, marks: np.ndarray) -> list[int]:
        """Note new shards; those that were taken up again since the caller's own streams were found there."""
        new = self.epochs[shards] == 0
        self.epochs[shards[new]], self.durable[shards[new]] = epochs[new], marks[1, new]
        self.births[shards] = marks[0]
        return shards[self.epochs[shards] != epochs].tolist()

    async def _ask(self, actor: str, shards: np.ndarray, method: str, *args: Any) -> tuple | None:
        """The answer; None if it is to be asked again, once the shards are mended."""
        try:
            reply = await self.transport.call(actor, method, *((self.id, *args) if method == "attach" else args))
        except Unreachable:
            reply = ("refused", {})
        if reply[0] == "refused":
            self._break(shards)
            return None
        return reply

    async def close(self, ids: Sequence) -> None:
        """End streams, after the steps that are under way."""
        ids = ids_of(ids)
        await self._adopt(ids)
        with self.table.pinned():
            gens = await self._removed(np.array([self.table.rows[id] for id in ids], np.int64))
        await self._close_all(ids, gens)

    async def _removed(self, rows: np.ndarray) -> np.ndarray:
        """Take rows out of the table, after the steps that are under way: the generations of their streams."""
        mine = np.zeros(len(self.table.ids), np.bool_)
        mine[rows] = True
        for entry in list(self.log.open.values()):
            if mine[entry.rows].any():
                await asyncio.wait([entry.future])
        gens = self.table.gen[rows].copy()
        for row in rows.tolist():
            self._remove(row)
        return gens

    async def _close_all(self, ids: list, gens: np.ndarray) -> None:
        of = self.table.place(ids)
        left = np.arange(len(ids))
        while len(left):
            await self._settled(np.unique(of[left]))
            again = []
            for actor, own in self._by_actor(left, of):
                shards, names = np.unique(of[own]), [ids[i] for i in own.tolist()]
                reply = await self._ask(actor, shards, "close", shards, names, gens[own], of[own])
                if reply is None:
                    again.append(own)
                    continue
                if (reply[1][2] != self.epochs[shards]).any():  # its checkpoints have the numbers of another epoch
                    self._break(shards)
                same = np.where(reply[1][2] == self.epochs[shards], reply[1][0], NEVER)
                labels = dict(zip(shards.tolist(), same.tolist(), strict=True))
                self._tombs += [(int(of[i]), ids[i], int(gens[i]), labels[int(of[i])]) for i in own.tolist()]
            left = np.concatenate(again) if again else left[:0]

    async def steps_done(self, ids: Any) -> np.ndarray:
        """int64 [n], the steps that each stream has taken. StateError: one is not open."""
        ids = ids_of(ids)
        of, done = self.table.place(ids), np.zeros(len(ids), np.int64)
        left = np.arange(len(ids))
        while len(left):
            await self._settled(np.unique(of[left]))
            again = []
            for actor, own in self._by_actor(left, of):
                names, shards = [ids[i] for i in own.tolist()], np.unique(of[own])
                await self._settled(shards)  # one may have broken while the actor before was asked
                head = np.stack([shards, self.epochs[shards]])
                reply = await self._ask(actor, shards, "steps_done", head, names, of[own])
                if reply is None or (reply[1] == -2).any():
                    again.append(own)
                    await asyncio.sleep(self.backoff if reply else 0)
                elif (reply[1] < 0).any():
                    raise StateError(f"stream {names[int(np.argmin(reply[1]))]!r:.80} is not open: open it first")
                else:
                    done[own] = reply[1]
            left = np.concatenate(again) if again else left[:0]
        return done

    async def settle(self) -> None:
        """Wait for the answers of all steps that are under way."""
        while self.log.open:
            await asyncio.wait([e.future for e in self.log.open.values()])

    async def end(self) -> None:
        """Stop mending; nothing may be under way."""
        for task in [*self._tasks, *([self._mending] if self._mending else [])]:
            task.cancel()
