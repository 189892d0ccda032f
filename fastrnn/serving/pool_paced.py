"""PacedPool: the pool of a model whose outputs don't come one a step: it looks ahead, or changes the rate."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from ..errors import StateError, StreamError
from ..runtime.arguments import collect, deliver
from ..runtime.snapshots import Snapshot
from .pool import MOST_SLOTS, StreamPool
from .stream_paced import LARGEST, POSITION, check_room, take_position

if TYPE_CHECKING:
    from ..model import Model


class PacedPool(StreamPool):
    """Many independent streams of a model whose outputs come at paces of their own; made by `Model.pool(capacity=...)`.

    Slots at different positions of their sequences may bring different numbers of output steps, so `step` and `push`
    return a list with what a lone stream's `step` and `push` return: for `step`, None where nothing came. Slots of
    equal phase share calls.
    """

    def _lay_out(self, model: Model) -> None:
        super()._lay_out(model)
        if not all(a.batched for a in (*self._inputs, *self._outputs)):
            raise StreamError(f"{model.name}: an input or output has no batch axis, and its streams look ahead")
        self._timetable = self.program.plan.timetable
        self._still: dict[int, list] = {}  # place -> the last arrays of inputs without time, which flush needs again
        self._ended: set[int] = set()  # places whose streams were flushed

    # -- calls --
    def step(self, slots, x, out=None) -> list:
        """Advance the streams in `slots` by one time step.

        Parameters
        ----------
        slots, x : as `StreamPool.step`; out : refused, since what comes differs from slot to slot

        Returns
        -------
        list of n: what a lone stream's step returns, None (or a tuple with None) where no step of an output comes.

        Raises
        ------
        StateError, ShapeError : as `StreamPool.step`. StreamError : a stream that was flushed; out.
        """
        if out is not None:
            raise StreamError(f"{self.model.name}: what a step brings differs from slot to slot, so it takes no out")
        with self._alone():
            n = self._find(slots)
            given = collect(self._names, x)
            arrays = [a.check_step(v, n) for a, v in zip(self._inputs, given, strict=True)]
            columns = [
                [v[i : i + 1] if a.timed else v[i] for i in range(n)] for a, v in zip(self._inputs, arrays, strict=True)
            ]
            results = self._take(n, np.ones(n, np.int64), columns)
        return [deliver([self._one(i, r) for i, r in enumerate(row)], None) for row in results]

    def _one(self, i: int, result):
        """A step's share of output i: without an axis of steps where it never brings several; None where none came."""
        argument = self._outputs[i]
        if result is None or not argument.timed:
            return result
        if result.shape[0] == 0:
            return None
        return result if self._timetable.many[i] else result[0]

    def push(self, slots, chunks) -> list:
        """As `StreamPool.push`; the outputs of each are those that come with these steps."""
        with self._alone():
            n = self._find(slots)
            given = [self._check_chunk(i, c) for i, c in enumerate(self._listed(n, chunks))]
            lengths = np.array([length for length, _ in given], np.int64)
            columns = [[arrays[i] for _, arrays in given] for i in range(len(self._inputs))]
            results = self._take(n, lengths, columns)
        return [deliver(row, None) for row in results]

    def flush(self, slot: int):
        """What a stream held back, and the final value of what is reduced over time, as `Stream.flush`; its sequence is
        at its end then: `reset` begins another."""
        with self._alone():
            self._find([slot])
            place = self._place(slot)
            if place not in self._still and not all(a.timed for a in self._inputs):
                text = "flush before the first step, with inputs unknown that have no time axis"
                raise StreamError(f"{self.model.name}: {text}")
            still = iter(self._still.get(place, ()))
            columns = [[np.empty(a.chunk_shape(None, 0), a.stored) if a.timed else next(still)] for a in self._inputs]
            results = self._take(1, np.zeros(1, np.int64), columns, final=True)
            self._ended.add(place)
        return deliver(results[0], None)

    def _take(self, n: int, lengths: np.ndarray, columns: list[list], final: bool = False) -> list[list]:
        """Advance the n slots found by chunks of their own lengths. columns: a list of arrays a row for each input."""
        places = self._found(n)
        flushed = [int(p) for p in places if int(p) in self._ended]
        if flushed:
            raise StreamError("a stream of these slots was flushed: its sequence is at its end; reset() begins another")
        start = [self._steps(int(p)) for p in places]
        for i, (taken, steps) in enumerate(zip(start, lengths.tolist(), strict=True)):
            check_room(self.program.plan, f"row {i}", taken, steps)
        new = [self._timetable.outputs(s, int(t), final) for s, t in zip(start, lengths, strict=True)]
        if final and start[0] < self._timetable.least:  # too short for a window of the model: it brings no more
            new, final = [(0,) * len(self._outputs)], False
        results = [
            [np.empty(o.chunk_shape(None, k), o.stored) for o, k in zip(self._outputs, counts, strict=True)]
            for counts in new
        ]
        done, filled = [0] * n, np.zeros((n, len(self._outputs)), np.int64)
        kept = self.slab[places]
        try:
            left = [i for i in range(n) if lengths[i] or final]
            while left:
                for (_, steps), rows in self._groups(left, start, done, lengths).items():
                    self._take_group(rows, places[rows], steps, start[rows[0]] + done[rows[0]], done, filled,
                                     columns, results, final)  # fmt: skip
                left = [i for i in left if done[i] < lengths[i]]
            if self._timetable.guesses and not final:
                self._guess([i for i in range(n) if lengths[i]], places, start, lengths, columns, results, new)
        except BaseException:
            self.slab[places] = kept
            raise
        for i, place in enumerate(places.tolist()):
            self._set_steps(place, start[i] + int(lengths[i]))
            if lengths[i] and not all(a.timed for a in self._inputs):
                pairs = zip(self._inputs, columns, strict=True)
                self._still[place] = [np.array(column[i]) for a, column in pairs if not a.timed]
        return [
            [
                r if o.timed or (k and (length or final)) else None
                for o, k, r in zip(self._outputs, counts, row, strict=True)
            ]
            for counts, length, row in zip(new, lengths.tolist(), results, strict=True)
        ]

    def _guess(self, rows, places, start, lengths, columns, results, new) -> None:
        """Values over time as they are if the sequences ended here, as in `PacedStream`. The states stay."""
        now, groups = self.slab[places], defaultdict(list)
        for i in rows:
            groups[self._timetable.phase(start[i] + int(lengths[i]))].append(i)
        try:
            for phase, members in groups.items():
                counts = self._timetable.counts(phase, 0, True)
                for first in range(0, len(members), self._rows_a_call):
                    some = members[first : first + self._rows_a_call]
                    sources = [
                        np.stack([c[i][:0] if a.timed else c[i] for i in some])
                        for a, c in zip(self._inputs, columns, strict=True)
                    ]
                    targets = [
                        np.empty(o.chunk_shape(len(some), k), o.stored)
                        for o, k in zip(self._outputs, counts.outputs, strict=True)
                    ]
                    self._call_paced(places[some], [*sources, *targets], counts.number)
                    for row, i in enumerate(some):
                        for j in (j for j, o in enumerate(self._outputs) if not o.timed):
                            results[i][j][...] = targets[j][row]
                        both = zip(self._outputs, new[i], counts.outputs, strict=True)
                        new[i] = tuple(k if o.timed else guessed for o, k, guessed in both)
        finally:
            self.slab[places] = now

    def _groups(self, left: list[int], start: list[int], done: list[int], lengths) -> dict[tuple, list[int]]:
        """Rows that may share the next call: of equal phase, and as many steps; no more than a call takes."""
        groups: dict[tuple, list[int]] = defaultdict(list)
        for i in left:
            rest = int(lengths[i]) - done[i]
            steps = min(LARGEST, 1 << rest.bit_length() - 1) if rest else 0
            groups[self._timetable.phase(start[i] + done[i]), steps].append(i)
        return groups

    def _take_group(self, rows, places, steps, position, done, filled, columns, results, final) -> None:
        """One call, or a few, for rows of one phase: their positions differ by whole periods, their counts do not."""
        counts = self._timetable.counts(position, steps, final)
        for first in range(0, len(rows), self._rows_a_call):
            some = rows[first : first + self._rows_a_call]
            sources = [
                np.stack([c[i][done[i] : done[i] + steps] if a.timed else c[i] for i in some])
                for a, c in zip(self._inputs, columns, strict=True)
            ]
            targets = [
                np.empty(o.chunk_shape(len(some), k), o.stored)
                for o, k in zip(self._outputs, counts.outputs, strict=True)
            ]
            self._call_paced(places[first : first + len(some)], [*sources, *targets], counts.number)
            for row, i in enumerate(some):
                for j, (o, target) in enumerate(zip(self._outputs, targets, strict=True)):
                    if o.timed:
                        results[i][j][filled[i, j] : filled[i, j] + counts.outputs[j]] = target[row]
                        filled[i, j] += counts.outputs[j]
                    else:
                        results[i][j][...] = target[row]
        for i in rows:
            done[i] += steps

    # -- states --
    @property
    def memory_bytes(self) -> int:
        """As `StreamPool.memory_bytes`, and what streams were last told by inputs without time."""
        return super().memory_bytes + sum(a.nbytes for arrays in list(self._still.values()) for a in arrays)

    def _close(self, place: int) -> None:
        super()._close(place)
        self._ended.discard(place)
        self._still.pop(place, None)

    def _reset(self, place: int) -> None:
        super()._reset(place)
        if self.program is not None:
            self._ended.discard(place)
            self._still.pop(place, None)

    def _copy(self, place: int) -> int:
        slot = super()._copy(place)
        new = slot & (MOST_SLOTS - 1)
        if self.program is not None:
            if place in self._ended:
                self._ended.add(new)
            if place in self._still:
                self._still[new] = self._still[place]
        return slot

    def _states(self, place: int) -> dict[str, np.ndarray]:
        """With `steps_done`: where in the sequence the states belong; -1 after `flush`."""
        position = -1 if place in self._ended else self._steps(place)
        return super()._states(place) | {POSITION: np.array(position, np.int64)}

    def _set_states(self, place: int, state) -> None:
        position, rest = take_position(state, self.model.name)
        super()._set_states(place, rest)
        self._set_steps(place, max(position, 0))
        (self._ended.add if position == -1 else self._ended.discard)(place)

    # -- snapshots --
    def _take_snapshot(self, places, slots) -> Snapshot:
        taken = super()._take_snapshot(places, slots)
        still = {}
        for j, a in enumerate(a for a in self._inputs if not a.timed):
            still[a.name] = np.zeros((len(taken.steps), *a.features), a.stored)
            for i, place in enumerate(map(int, places)):
                if place in self._still:
                    still[a.name][i] = self._still[place][j]
                elif taken.steps[i]:  # its state was set from outside
                    raise StateError(
                        f"the input {a.name} of a stream is not known before its next step: take one first"
                    )
        ended = np.array([int(p) in self._ended for p in places], np.bool_)
        return Snapshot(taken.steps, taken.rows, taken.slots, taken.sizes, ended, still)

    def _open_from(self, taken: Snapshot) -> list[int]:
        wanted = [a for a in self._inputs if not a.timed] if taken.still else []
        for a in wanted:
            got, want = taken.still.get(a.name), (len(taken.steps), *a.features)
            if got is None or got.shape != want or got.dtype != a.stored or len(taken.still) != len(wanted):
                raise StateError(f"the snapshot's input {a.name} is not {a.stored}{list(want)}")
        plain = Snapshot(taken.steps, taken.rows, taken.slots, taken.sizes, np.zeros_like(taken.ended), {})
        slots = super()._open_from(plain)
        for i, slot in enumerate(slots):
            place = slot & (MOST_SLOTS - 1)
            if taken.ended[i]:
                self._ended.add(place)
            if wanted and taken.steps[i]:
                self._still[place] = [np.array(taken.still[a.name][i]) for a in wanted]
        return slots
