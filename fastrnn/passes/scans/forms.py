"""What is known of a value that is made from running sums.

Parts are stored with their steps first: a value [batch, time, 8] has the part [time, batch, 8], whatever the axis of
its steps. Axes are counted from the end, as broadcasting does, so that they stay the same if axes come in front.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from ...records import dataclass

ONE = ""  # stands for 1 at every step: its running sum is the number of the step
Powers = Mapping[str, float]  # a value l[time, ..] (or ONE) -> the coefficient of its running sum


@dataclass(frozen=True)
class Part:
    """What depends on the steps of one axis: local * exp(sum of coefficient * running sum of l), or its logarithm.

    local : a value [time, ..]; None for 1 (in logarithms 0)
    """

    powers: Powers = field(default_factory=dict)
    local: str | None = None


@dataclass(frozen=True)
class Total:
    """A running sum along time of local * exp(powers) * exp(still); `before`: without the step's own value."""

    powers: Powers
    local: str | None
    still: Mapping[str, float]
    before: bool = False


@dataclass(frozen=True)
class Pair:
    """The products q[i] . k[j] of all steps i and j: q and k are values [time, .., R], each with its powers."""

    q: Part
    k: Part


@dataclass(frozen=True)
class Form:
    """A value as a product of parts, or, if `logs`, the logarithm of one: a sum.

    rank : of the value
    parts : axis (from the end) of steps -> Part. Two axes: a value for each pair of steps
    still : what is the same at all steps and must cancel, such as the sum of all steps -> its coefficient
    totals : (Total, +1 or -1): running sums that are factors or divisors (with logs: their logarithms)
    flipped : the steps are in reverse order
    causal : it is zero (with logs: -inf) unless i - j >= causal, for steps i along axis -2 and j along axis -1
    needs : it is right only for steps i >= j
    ahead : a value of the next step (0 after the last), -1: of the step before; only of a single local part
    whole : made of step numbers and `offset` alone: that is added to it
    """

    rank: int
    parts: Mapping[int, Part]
    logs: bool
    still: Mapping[str, float] = field(default_factory=dict)
    totals: tuple[tuple[Total, int], ...] = ()
    flipped: bool = False
    causal: int | None = None
    needs: bool = False
    pair: Pair | None = None
    ahead: int = 0
    whole: bool = False
    offset: float = 0.0


@dataclass(frozen=True)
class Mask:
    """True for steps i - j >= least (i along axis -2, j along axis -1); the contrary if `not_`."""

    least: int
    not_: bool = False


def summed(a: Mapping[str, float], b: Mapping[str, float], sign: float = 1.0) -> dict[str, float]:
    """Coefficients added up; those that cancel are dropped."""
    total = dict(a)
    for key, factor in b.items():
        total[key] = total.get(key, 0.0) + sign * factor
        if total[key] == 0.0:
            del total[key]
    return total


def scaled(a: Mapping[str, float], factor: float) -> dict[str, float]:
    return {key: value * factor for key, value in a.items()} if factor else {}
