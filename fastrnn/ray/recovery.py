"""What a caller does when a call is refused or never answered: it mends the shards of that call."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import StateError, StreamError
from .log import Entry
from .losses import Losses
from .words import ADOPT, FOUND, NEVER, RECOVER, TAKEN, WAITING, Unreachable

logger = logging.getLogger("fastrnn")


SWEEP_ENTRIES = 32  # each tick brings new marks, and a sweep looks at all entries: one follows after so many more


class NotYet(Exception):
    """The shards can't be mended now: another attempt follows."""


class Recovery(Losses):
    """The half of `Caller` that sends, and mends. A shard is held while it is mended: new steps wait in the log."""

    id: int
    shards: int
    transport: Any
    backoff: float
    beat_seconds: float
    actors: list[str]
    owner: np.ndarray
    epochs: np.ndarray
    durable: np.ndarray
    births: np.ndarray
    held: np.ndarray
    _tombs: list[tuple[int, Any, int, int]]
    _mending: asyncio.Task | None
    _broken: set[int]
    _tasks: set[asyncio.Task]
    _swept: np.ndarray
    _sweep_at: int
    _version: int

    if TYPE_CHECKING:

        def _by_actor(self, left: np.ndarray, of: np.ndarray) -> list[tuple[str, np.ndarray]]: ...

    # -- sending --
    def _send(self, entry: Entry, sel: np.ndarray | None, actor: str, shards: np.ndarray) -> asyncio.Task:
        """Send rows of an entry (None: all), which are of these shards of this actor; the task says whether they were
        answered."""
        entry.flying[slice(None) if sel is None else sel], attempt = True, entry.attempt
        rows = entry.rows if sel is None else entry.rows[sel]
        first = entry.first if sel is None else entry.first[sel]
        said = self.epochs[self.table.shard[rows]] if entry.explicit else self.table.said[rows]
        about = [self.table.slot[rows], first, self.table.since[rows], self.table.gen[rows], said]
        if entry.lengths is not None:
            about.append(entry.lengths if sel is None else entry.lengths[sel])
        arrays = entry.arrays
        if sel is not None:
            where = entry.index(sel)
            arrays = [a[where] for a in arrays]
        head = np.stack([shards, self.epochs[shards]])
        acked = next(iter(self.log.open), entry.number) - 1
        answer = self.transport.call(actor, "step", self.id, entry.number, acked, head, np.stack(about), arrays)
        task = asyncio.get_running_loop().create_task(self._exchange(entry, sel, attempt, shards, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _exchange(self, entry: Entry, sel, attempt: int, shards: np.ndarray, answer) -> bool:
        with self.table.pinned():
            return await self._exchanged(entry, sel, attempt, shards, answer)

    async def _exchanged(self, entry: Entry, sel, attempt: int, shards: np.ndarray, answer) -> bool:
        try:
            reply = await answer
        except Unreachable:
            entry.ambiguous, reply = True, ("unreachable",)
        except Exception as error:
            reply = ("failed", str(error))
        if entry.attempt != attempt:  # it was sent again since: this answer may be of a host that lost its shards
            return False
        if reply[0] == "done":
            self._answered(entry, sel, shards, reply[1], reply[2])
            return True
        if reply[0] == "failed":
            rows = entry.rows if sel is None else entry.rows[sel]
            self._fail(rows, StreamError(f"a step failed, and its streams are as before it: {reply[1]}"))
            return True
        entry.flying[slice(None) if sel is None else sel] = False
        if reply[0] == "rows" and self.held[shards].any():
            self._misfit(entry, sel, reply[1], reply[2])
        self._break(shards)
        return False

    def _answered(self, entry: Entry, sel, shards: np.ndarray, outputs: list, marks: np.ndarray) -> None:
        before = entry.left
        entry.answered(sel, outputs)
        rows = before - entry.left
        if entry.lengths is None:
            self.counts["steps"] += rows
        elif rows:
            self.counts["steps"] += int(entry.steps()[slice(None) if sel is None else sel].sum())
        if len(shards) == len(entry.shards):
            entry.labels = marks[0].copy()  # not a view: it would keep the outputs, which came in the same message
        else:
            entry.labels = entry.labels.copy()
            entry.labels[np.searchsorted(entry.shards, shards)] = marks[0]
        self.durable[shards] = marks[1]
        if not entry.left:
            self.log.settle(entry)
        if len(self.log.entries) > self._sweep_at and (self.durable != self._swept).any():
            self._sweep()
            self._sweep_at = 2 * len(self.log.entries) + SWEEP_ENTRIES

    def _sweep(self) -> None:
        """Forget what the store holds."""
        self._swept = self.durable.copy()
        self.log.covered(self.durable, self.table.shard)
        self._tombs = [t for t in self._tombs if t[3] > self.durable[t[0]]]
        self.table.reuse(self.log.kept)

    def _fail(self, rows: np.ndarray, error: Exception) -> None:
        """Steps of these rows that have no answer won't get one: each stream goes on at the first of them."""
        hit = np.zeros(len(self.table.ids), np.bool_)
        hit[rows] = True
        need = self.log.needs(len(self.table.ids))
        for entry in list(self.log.open.values()):
            own = np.flatnonzero(hit[entry.rows] & ~entry.done)
            if len(own):
                self.log.drop(entry, own)
                entry.failed.update(dict.fromkeys(own.tolist(), error))
                if not entry.left:
                    self.log.settle(entry)
        known = rows[need[rows] < NEVER]
        self.table.next[known] = need[known]

    def _misfit(self, entry: Entry, sel, positions: np.ndarray, expected: np.ndarray) -> None:
        """A stream expects another step although it was just found: its answer is not kept any more."""
        at = positions if sel is None else sel[positions]
        for i, e in zip(at.tolist(), expected.tolist(), strict=True):
            if e > entry.first[i] and not entry.done[i]:
                row = int(entry.rows[i])
                text = f"stream {self.table.ids[row]!r:.80} expects step_index {e}, got {int(entry.first[i])}"
                self._fail(
                    np.array([row]), StreamError(f"{text}: another caller has stepped it, or its answer is gone")
                )
                self.table.next[row] = e

    # -- mending --
    def _break(self, shards: np.ndarray) -> None:
        """These shards are to be mended."""
        self._broken.update(shards.tolist())
        self.held[shards] = True
        if self._mending is None or self._mending.done():
            self._mending = asyncio.get_running_loop().create_task(self._mend_all())

    async def _settled(self, shards: np.ndarray) -> None:
        """Wait until none of these shards is being mended."""
        while self.held[shards].any():
            assert self._mending is not None
            await asyncio.wait([self._mending])

    async def _read_owners(self) -> None:
        actors, owner = await self.transport.owners()
        if actors != self.actors or (owner != self.owner).any():
            self.actors, self.owner = actors, owner
            self._version += 1

    async def _mend_all(self) -> None:
        """Mend what is broken, until nothing is."""
        pause, careful = 0.0, False
        while self._broken:
            if pause:
                await asyncio.sleep(pause)
            pause = min(max(2 * pause, self.backoff), 16 * self.backoff)
            try:
                await self._read_owners()
            except OSError:
                continue
            except Exception:  # a defect: loud, and tried again, because the shards are held until it works
                logger.exception("the owners of shards can't be read")
                continue
            self._rewind()
            broken = np.array(sorted(self._broken), np.int64)
            parts = [broken[self.owner[broken] == actor] for actor in np.unique(self.owner[broken]).tolist()]
            with self.table.pinned():
                mends = [self._mend(part, careful) for part in parts]
                results = await asyncio.gather(*mends, return_exceptions=True)
            careful = any(isinstance(r, NotYet | Unreachable) for r in results)
            for result in results:
                if isinstance(result, NotYet | Unreachable):
                    continue
                if isinstance(result, BaseException):  # a defect: better loud than a caller that waits for ever
                    logger.error("shards can't be mended", exc_info=result)
                    self._fail(np.flatnonzero(self.table.live), StreamError(f"recovery failed: {result!r}"))
                    continue
                pause = 0.0
        self._resume()

    def _rewind(self) -> None:
        """Answers that may still come to what was sent to broken shards don't count any more."""
        hit, before = np.zeros(self.shards, np.bool_), -1
        while before < len(self._broken):
            before = len(self._broken)
            hit[list(self._broken)] = True
            for entry in self.log.open.values():
                if entry.flying.any() and hit[entry.shards].any():
                    entry.attempt, entry.ambiguous = entry.attempt + 1, True
                    entry.flying[:] = False
                    self._broken.update(entry.shards.tolist())
        self.held[list(self._broken)] = True

    async def _mend(self, shards: np.ndarray, careful: bool) -> None:
        """Find the streams of these shards, all of one actor, and send again what they lack. NotYet, Unreachable.

        careful : wait for each answer before the next piece is sent. An attempt failed before, and if messages overtake
        each other, not one of many that depend on each other may arrive in time.
        """
        actor = self.actors[self.owner[shards[0]]]
        among = np.zeros(self.shards, np.bool_)
        among[shards] = True
        await self._bury(actor, among)
        rows = self.table.of(among)
        found = await self._found(actor, RECOVER, shards, rows)
        need = self.log.needs(len(self.table.ids))
        live = self.table.live[rows]  # some may have been closed since
        rows, found = rows[live], found[:, live]
        taken = found[0] == TAKEN
        wanted = taken & (need[rows] < NEVER)
        if wanted.any():
            found[:, wanted] = await self._found(actor, ADOPT, np.unique(self.table.shard[rows[wanted]]), rows[wanted])
        away = taken & ~wanted  # the next step takes them back
        self.table.slot[rows[away]] = found[1, away]  # an old slot may be another stream's by now
        for i in np.flatnonzero(away).tolist():
            self._went(int(rows[i]), *found[[2, 5], i].tolist())
        stay = ~away & self.table.live[rows]
        rows, found = rows[stay], found[:, stay]
        pieces = self._resync(shards, rows, found)
        if not await self._replay(actor, pieces, careful):
            raise NotYet
        head = np.stack([shards, self.epochs[shards]])
        await self.transport.call(actor, "beat", self.id, head, self._untold(shards))
        self._broken -= set(shards.tolist())
        self.held[shards] = False
        self.counts["recoveries"] += 1
        self._resume()

    async def _bury(self, actor: str, among: np.ndarray) -> None:
        """Close again what was closed: the shard may have been restored from before that."""
        tombs = [t for t in self._tombs if among[t[0]]]
        if not tombs:
            return
        of, gens = (np.array([t[i] for t in tombs], np.int64) for i in (0, 2))
        shards = np.unique(of)
        reply = await self.transport.call(actor, "close", shards, [t[1] for t in tombs], gens, of)
        if reply[0] != "done":
            raise NotYet
        self._renewed(shards, reply[1][2])
        labels = dict(zip(shards.tolist(), reply[1][0].tolist(), strict=True))
        self._tombs = [(s, id, gen, labels.get(s, label)) for s, id, gen, label in self._tombs]

    async def _found(self, actor: str, mode: int, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Attach rows again: int64 [7, n] as of `Host.attach`."""
        ids, of = [self.table.ids[r] for r in rows.tolist()], self.table.shard[rows]
        reply = await self.transport.call(actor, "attach", self.id, mode, shards, ids, self.table.gen[rows], of)
        if reply[0] != "done":
            raise NotYet
        if mode == ADOPT and (reply[1] != self.epochs[shards]).any():
            raise NotYet  # the shard was taken up again, and all its streams are to be found anew
        self._renewed(shards, reply[1])
        self.births[shards], self.durable[shards] = reply[2]
        if reply[4] and not await self._flushed(actor, reply[4], shards, reply[1]):
            raise NotYet
        if (reply[3][0] == WAITING).any():
            raise NotYet
        return np.array(reply[3])  # what comes through Ray is read-only

    def _renewed(self, shards: np.ndarray, epochs: np.ndarray) -> None:
        """Note the epochs of shards. The numbers of checkpoints go on in a new one, so those that were named before
        say nothing any more."""
        if (epochs < self.epochs[shards]).any():
            raise NotYet  # of a host that lost the shard, and does not know yet
        new = shards[epochs != self.epochs[shards]]
        if len(new):
            gone = np.zeros(self.shards, np.bool_)
            gone[new] = True
            self.log.forget(gone)
            self._tombs = [(s, id, gen, NEVER if gone[s] else label) for s, id, gen, label in self._tombs]
            self.epochs[shards] = epochs

    async def _flushed(self, actor: str, owed: list[int], shards: np.ndarray, epochs: np.ndarray) -> bool:
        """Whether checkpoints hold which caller has the streams of some of these shards, as they were found."""
        head = np.stack([owed, epochs[np.searchsorted(shards, owed)]])
        try:
            return (await self.transport.call(actor, "flush", head))[0] == "done"
        except Unreachable:
            return False

    async def _replay(self, actor: str, pieces: list[tuple[Entry, np.ndarray]], careful: bool) -> bool:
        """Send pieces again, in their order; whether all were answered."""
        tasks = []
        for entry, sel in pieces:
            self.counts["replayed_steps"] += int(entry.steps()[sel].sum())
            task = self._send(entry, sel, actor, np.unique(self.table.shard[entry.rows[sel]]))
            if careful and not await task:
                return False
            tasks.append(task)
        return all(await asyncio.gather(*tasks))

    def _resync(self, shards: np.ndarray, rows: np.ndarray, found: np.ndarray) -> list[tuple[Entry, np.ndarray]]:
        """Compare what the streams expect with the log: what is to be sent again."""
        n = len(self.table.ids)
        closed = rows[(found[0] != FOUND)]
        ok = found[0] == FOUND
        rows, found = rows[ok], found[:, ok]
        self.table.slot[rows], self.table.gen[rows] = found[1], found[3]
        self.table.version += 1
        if len(closed):
            self._fail(closed, StateError(f"stream {self.table.ids[closed[0]]!r:.80} was closed by another caller"))
            for row in closed.tolist():
                self._remove(row)
        expected = np.zeros(n, np.int64)
        expected[rows] = found[2]
        other = (found[4] != self.table.since[rows]) | (found[2] > self.table.next[rows])
        for i in np.flatnonzero(other).tolist():
            self._returned(int(rows[i]), *found[[2, 4, 5], i].tolist())
        self._settle_losses(rows, expected)
        for i in np.flatnonzero(found[6]).tolist():
            self._doubtful(int(rows[i]), int(found[2, i]), int(found[6, i]))
        live = np.zeros(n, np.bool_)
        live[rows] = True
        among, lacking = np.zeros((2, self.shards), np.bool_)
        among[shards] = True
        for entry in self.log.entries.values():
            own = among[entry.shards]
            if own.any():  # the next checkpoint will hold what the streams have; what they lack, none yet
                hit = live[entry.rows] & entry.alive & (entry.first >= expected[entry.rows])
                lacking[:] = False
                lacking[self.table.shard[entry.rows[hit]]] = True
                entry.labels = np.where(own, self.births[entry.shards], entry.labels)
                entry.labels[lacking[entry.shards]] = NEVER
        return list(self.log.pieces(live, expected))

    def _resume(self) -> None:
        """Send what waited in the log while its shards were held."""
        for entry in list(self.log.open.values()):
            of = self.table.shard[entry.rows]
            ready = np.flatnonzero(~(entry.done | entry.flying | self.held[of]))
            owner = self.owner[of[ready]]
            for actor in np.unique(owner).tolist():
                own = ready[owner == actor]
                whole = None if len(own) == len(entry.rows) else own
                self._send(entry, whole, self.actors[actor], np.unique(of[own]))

    async def sync(self, ids: list) -> None:
        """Ask which step these streams expect, whoever stepped them last; those that are closed are forgotten. No step
        of them may be under way."""
        with self.table.pinned():
            await self._sync(np.array([self.table.rows[id] for id in ids], np.int64))

    async def _sync(self, rows: np.ndarray) -> None:
        """Ask the shards which step these streams expect; they are this caller's from now on. Rows are pinned."""
        of, left = self.table.shard[rows], np.flatnonzero(self.table.live[rows])
        while len(left):
            await self._settled(np.unique(of[left]))
            again = [at for actor, at in self._by_actor(left, of) if not await self._synced(actor, rows[at])]
            left = np.concatenate(again) if again else left[:0]
            if len(left):
                await asyncio.sleep(self.backoff)
            left = left[self.table.live[rows[left]]]

    async def _synced(self, actor: str, rows: np.ndarray) -> bool:
        """`_sync` of streams of one actor; False if it is to be tried again."""
        try:
            found = await self._found(actor, ADOPT, np.unique(self.table.shard[rows]), rows)
        except (NotYet, Unreachable):
            self._break(np.unique(self.table.shard[rows]))
            return False
        busy = self.log.needs(len(self.table.ids))[rows] < NEVER
        for row, waits, (code, slot, index, gen, since, ended, doubt) in zip(
            rows.tolist(), busy, found.T.tolist(), strict=True
        ):
            if not self.table.live[row]:
                continue
            if code != FOUND or gen != self.table.gen[row]:  # it was closed, and may be another stream by now
                self._remove(row)
            elif not waits:
                self.table.slot[row] = slot
                if since != self.table.since[row] or index > self.table.next[row]:
                    self._returned(row, index, since, ended)
                if doubt:
                    self._doubtful(row, index, doubt)
                self.table.version += 1
        return True

    def forget(self, ended: list[tuple[Any, int]]) -> None:
        """Streams (ids, generations) that their host has ended. Those with steps under way find out by themselves."""
        need = self.log.needs(len(self.table.ids)) if ended else None
        for id, gen in ended:
            row = self.table.rows.get(id)
            if row is not None and self.table.gen[row] == gen and need is not None and need[row] == NEVER:
                self._remove(row)

    async def _beat(self) -> None:
        """Look after the streams: their shards may have been restored while nothing was sent."""
        while True:
            await asyncio.sleep(self.beat_seconds)
            try:
                await self._look()
            except Exception:  # a defect: loud, and the next look follows
                logger.exception("the streams can't be looked after")

    async def look_after(self) -> None:
        """Send again what shards lack that were restored while nothing was sent to them."""
        await self._look()
        await self._settled(np.arange(self.shards))

    async def _look(self) -> None:
        of = np.zeros(self.shards, np.bool_)
        of[self.table.shard[self.table.live]] = True
        late = of | (self.births > self.durable)  # or closed streams, whose shard may come back from before that
        shards = np.flatnonzero(late & ~self.held & (self.epochs > 0))
        owner = self.owner[shards]
        parts = [(self.actors[k], shards[owner == k]) for k in np.unique(owner).tolist()]
        await asyncio.gather(*(self._beat_of(actor, part) for actor, part in parts))

    async def _beat_of(self, actor: str, shards: np.ndarray) -> None:
        head = np.stack([shards, self.epochs[shards]])
        try:
            reply = await self.transport.call(actor, "beat", self.id, head, self._untold(shards))
        except Unreachable:
            reply = ("refused", {})
        except Exception as error:
            logger.warning("%s does not answer: %s", actor, error)
            return
        if (self.epochs[shards] != head[1]).any() or self.held[shards].any():
            return  # they were mended meanwhile
        if reply[0] != "done":
            self._break(shards)
            return
        self.durable[shards] = reply[1][1]
        self._sweep()
