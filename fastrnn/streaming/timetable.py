"""When the steps of a stream's values arrive: one clock per pace, and the counts that one call of a plan is bound to.

After N input steps, those steps of a value have *come* that no later input can change. A causal convolution has N of
them, one that looks two steps ahead has N - 2, one of stride 3 has a third. A `Clock` says how that number follows
from the clock of a node's input; `Timetable` tabulates it.

In one call of a stream plan each clock has its own number of new steps, maybe 0. The plan's integers are dims
over those numbers, which depend only on the stream's position (the steps that it has taken):

    counts = timetable.counts(position, steps, final)

Positions with equal `phase` have equal counts for any number of steps, so such streams may share a call. final: the
sequence ends with this call, and every window sees its padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..errors import UnsupportedError
from ..graph import dims as D
from ..machine import forks
from ..records import dataclass

POSITIONS = 1 << 14  # tabulated: longer than start-up and period of any real-time model; 0.1 ms per clock
INPUT = 0  # the clock of the model's inputs


@dataclass(frozen=True)
class Clock:
    """The pace of a value along time, derived from the clocks `of`.

    kind
        "input"   the steps of the model's inputs
        "window"  step o covers the steps o*stride - begin .. o*stride - begin + reach - 1 of its input, which ends
                  with `end` more steps of padding (negative: cropped); ceil: as in graph.pool
        "spread"  step i of its input adds to the steps i*stride - begin .. i*stride - begin + reach - 1, without
                  the last `end`, which are cropped: a transposed convolution
        "times"   `stride` steps for each input step
        "least"   a step once all of `of` have it
    dim : the steps of a whole run, an int or dim over TIME
    """

    kind: str
    dim: object
    of: tuple[int, ...] = ()
    stride: int = 1
    reach: int = 1
    begin: int = 0
    end: int = 0
    ceil: bool = False


@dataclass(frozen=True)
class Counts:
    """What one call is bound to: `sizes`, one number for each of `Timetable.names`.

    number : index of these sizes among all that were looked up; `Program.take` gets it in place of the time
    outputs : new steps of each output; for one that is reduced over time: 1 if it has a value, else 0
    """

    number: int
    sizes: tuple[int, ...]
    outputs: tuple[int, ...]


class Timetable:
    """Clocks, and the numbers derived from them. Built by the streaming rewrite, then read-only; threads share it.

    Attributes
    ----------
    clocks : list of Clock; number `INPUT` is the clock of the inputs
    names : symbols in the dims of the plan, in the order of `Counts.sizes`
    plain : calls are bound to the number of new steps alone, because nothing looks along time
    start, period : positions from `start` on repeat after `period`; delay : steps, as `Stream.delay`
    least : the fewest steps of a sequence; the whole run rejects a shorter one, as too short for a window
    guesses : an output is reduced over time, and would see more steps if the sequence ended now
    most_a_step : for each output, the most steps that one input step yields; 0 for a running value
    many : for each output, whether one input step may yield several steps
    simple : each input step yields at most one step of each output, all computed by one call
    """

    def __init__(self):
        from fractions import Fraction  # loads the module decimal, which only clocks need

        self.clocks = [Clock("input", D.TIME)]
        steps = np.arange(POSITIONS, dtype=np.int64)
        self.come, self.whole = [steps], [steps]  # per clock: steps that have come, and those if the sequence ended
        self.rates, self.periods = [Fraction(1)], [1]  # steps per input step; the period in positions
        self.names: list[str] = ["time"]
        self._numbers: list[Callable] = [lambda before, after: after[INPUT] - before[INPUT]]
        self._outputs: list[Callable] = []
        self._output_clocks: list[tuple[int, int]] = []  # (clock, steps per step of the clock; 0 for a running value)
        self._seen: list[tuple[int, int]] = []  # (clock, its steps that must have come before the steady state)
        self._known: dict[tuple, Counts] = {}
        self._cache: dict[tuple, Counts] = {}
        self._by_number: list[Counts] = []
        self._lock = forks.Lock()
        self.plain, self.least = False, 0

    # -- building --
    def add(self, clock: Clock) -> int:
        """The number of a clock. If an equal clock (the same steps at every position) exists, its number is reused.

        Repeated steps stay a multiple of their source steps: reshapes separate them again.
        """
        if clock.kind == "times" and clock in self.clocks:
            return self.clocks.index(clock)
        come, whole, rate, period = self._tabulate(clock)
        for i, other in enumerate(self.clocks):
            if clock.kind != "times" and other.dim == clock.dim and np.array_equal(self.come[i], come):
                return i
        self.clocks.append(clock)
        self.come.append(come)
        self.whole.append(whole)
        self.rates.append(rate)
        self.periods.append(period)
        self._check_room()
        return len(self.clocks) - 1

    def _check_room(self) -> None:
        if self._start() + math.lcm(*self.periods) >= POSITIONS:
            raise UnsupportedError(f"windows that reach over {POSITIONS} steps, or strides that multiply to so many")

    def _tabulate(self, c: Clock) -> tuple:
        come, whole = [self.come[i] for i in c.of], [self.whole[i] for i in c.of]
        rate, period = self.rates[c.of[0]], math.lcm(*(self.periods[i] for i in c.of))
        if c.kind == "window":
            if c.ceil:  # as shapes.windows
                ends = (whole[0] + (c.begin + min(c.end - c.reach + c.stride, 0) + c.stride - 1)) // c.stride
            else:
                ends = (whole[0] + (c.begin + c.end - c.reach)) // c.stride + 1
            cut = min(c.begin, 0) + min(c.end, 0)
            self.least = max(self.least, int(np.searchsorted(whole[0] + cut, 0)))
            some = (come[0] + (c.begin - c.reach)) // c.stride + 1
            rate, period = rate / c.stride, period * c.stride
        elif c.kind == "spread":
            ends = (whole[0] - 1) * c.stride + (c.reach - c.begin - c.end)
            some = come[0] * c.stride - c.begin
            rate *= c.stride
        elif c.kind == "times":
            ends, some, rate = whole[0] * c.stride, come[0] * c.stride, rate * c.stride
        else:
            ends, some = whole[0], np.minimum.reduce(come)
        self.least = max(self.least, int(np.searchsorted(ends, 0)))
        ends = np.maximum(ends, 0)
        some = np.clip(some, 0, ends)  # no step that the end would crop again
        some[0] = 0  # before the first input nothing has come, not even padding
        return some, ends, rate, period

    def _start(self) -> int:
        """The position from which on everything repeats: every clock has had a step."""
        least = [(i, 1) for i in range(len(self.clocks))] + self._seen
        return max(int(np.searchsorted(self.come[i], n)) for i, n in least)

    def first(self, clock: int) -> int:
        """The number of input steps when the first step of a clock comes."""
        return int(np.searchsorted(self.come[clock], 1))

    def lag(self, clock: int, slower: int) -> int:
        """The most steps by which one clock runs ahead of another clock of the same rate."""
        return int((self.come[clock] - self.come[slower]).max())

    def held(self, clock: int, reader: int, stride: int, begin: int) -> int:
        """The most steps of `clock` that future windows (steps of the clock `reader`) still need."""
        return self._held(clock, self.come[reader] * stride - begin)

    def held_spread(self, clock: int, reader: int, stride: int, begin: int, reach: int) -> int:
        """As `held`, for a transposed convolution."""
        return self._held(clock, -((reach - 1 - begin - self.come[reader]) // stride))

    def _held(self, clock: int, first: np.ndarray) -> int:
        return max(0, int((self.come[clock] - np.maximum(first, 0)).max()))

    def sample(self) -> tuple[list[int], list[int]]:
        """The steps of all clocks before and after some step."""
        return [int(c[1]) for c in self.come], [int(c[2]) for c in self.come]

    def _delay(self, clock: int) -> int:
        """Input steps that must be seen beyond step t before the corresponding step comes."""
        stop = self._start() + math.lcm(*self.periods)
        come, rate = self.come[clock][: stop + 1], self.rates[clock]
        step = np.arange(int(come[-1]))
        position = np.searchsorted(come, step, side="right")  # input steps by the time it has come
        return max(0, int((position - 1 - step * rate.denominator // rate.numerator).max(initial=0)))

    def number(self, function: Callable, name: str) -> object:
        """A symbol for function(before, after): the steps of all clocks before a call and after it."""
        self.names.append(name)
        self._numbers.append(function)
        return D.symbol(name)

    def steps(self, clock: int):
        """The dim for the number of new steps of a clock in a call."""
        c = self.clocks[clock]
        if clock == INPUT:
            return D.TIME
        if c.kind == "times":
            return self.steps(c.of[0]) * c.stride
        name = f"steps{clock}"
        if name in self.names:
            return D.symbol(name)
        return self.number(lambda before, after: after[clock] - before[clock], name)

    def steady_from(self, clock: int, steps: int) -> None:
        """Numbers depend on whether `steps` steps of a clock have come."""
        self._seen.append((clock, steps))
        self._check_room()

    def add_output(self, clock: int | None, times: int, running: bool) -> None:
        """Add an output: `times` steps per step of a clock, or a running value of it; clock None: always available."""
        if clock is None:
            self._outputs.append(lambda before, after: 1)
        elif running:
            self._outputs.append(lambda before, after: int(after[clock] > 0 and after[INPUT] >= self.least))
        else:
            self._outputs.append(lambda before, after: (after[clock] - before[clock]) * times)
        self._output_clocks.append((INPUT if clock is None else clock, 0 if running else times))

    def freeze(self) -> None:
        """The clocks are complete: build tables of one period for later queries."""
        self.start, self.period = self._start(), math.lcm(*self.periods)
        self.delay = max((self._delay(clock) for clock, _ in self._output_clocks), default=0)
        self.most_a_step = tuple(int(np.diff(self.come[clock]).max()) * n for clock, n in self._output_clocks)
        behind = any(not np.array_equal(a[1:], b[1:]) for a, b in zip(self.come, self.whole, strict=True))
        self.guesses = behind and any(n == 0 for n in self.most_a_step)
        self.many = tuple(n > 1 for n in self.most_a_step)
        self.simple = not any(self.many) and not self.guesses
        stop = self.start + self.period
        self._gain = [int(c[stop] - c[self.start]) for c in self.come]  # steps per period
        self._table = [tuple(int(c[n]) for c in self.come) for n in range(stop)]
        self._ends = [tuple(int(c[n]) for c in self.whole) for n in range(stop)]
        self.come, self.whole = [], []

    # -- queries --
    @property
    def uniform(self) -> bool:
        """Whether every value comes with its input and each output has one step per step, at any position."""
        return all(c.kind in ("input", "times") for c in self.clocks) and all(
            self.clocks[clock].kind == "input" and times <= 1 for clock, times in self._output_clocks
        )

    def phase(self, position: int) -> int:
        """A small number for a position: positions with equal phase have equal counts, for any number of steps."""
        return position if position < self.start else self.start + (position - self.start) % self.period

    def counts(self, position: int, steps: int, final: bool = False) -> Counts:
        """The counts of a call that takes `steps` input steps from a position on."""
        if position >= self.start:  # `phase`, inlined: calling it takes half of this call's time
            position = self.start + (position - self.start) % self.period
        found = self._cache.get((position, steps, final))
        return found if found is not None else self._count(position, steps, final)

    def outputs(self, position: int, steps: int, final: bool = False) -> tuple[int, ...]:
        """New steps of each output over several calls with `steps` steps in total, as `Counts.outputs`."""
        before, after = self._around(position, steps, final)
        return tuple(output(before, after) for output in self._outputs)

    def _around(self, position: int, steps: int, final: bool) -> tuple[tuple, tuple]:
        """Steps of every clock before and after a call."""
        return self._lengths(position, self._table), self._lengths(
            position + steps, self._ends if final else self._table
        )

    def _count(self, position: int, steps: int, final: bool) -> Counts:
        before, after = self._around(position, steps, final)
        sizes = tuple(number(before, after) for number in self._numbers)
        outputs = tuple(output(before, after) for output in self._outputs)
        with self._lock:
            found = self._known.get((sizes, outputs))
            if found is None:
                found = self._known[sizes, outputs] = Counts(len(self._by_number), sizes, outputs)
                self._by_number.append(found)
            if len(self._cache) >= POSITIONS:
                self._cache.clear()
            self._cache[position, steps, final] = found
        return found

    def _lengths(self, position: int, table: list[tuple]) -> tuple:
        phase = self.phase(position)
        if phase == position:
            return table[phase]
        periods = (position - phase) // self.period
        return tuple(a + periods * b for a, b in zip(table[phase], self._gain, strict=True))

    def sizes(self, number: int) -> dict[str, int]:
        """Symbol -> size of the counts with this number."""
        return dict(zip(self.names, self._by_number[number].sizes, strict=True))
