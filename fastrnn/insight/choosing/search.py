"""Which layers get which format, from their times and errors. Deterministic: equal figures give an equal choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...records import dataclass

PRECISE = ("float32", "bfloat16", "int8-a16", "int8")  # the most precise first (docs/decisions/0025 has the errors)
FASTER = 0.95  # of float32's time: a layer that takes more is not worth an error
LEAST_GAIN = 0.005  # of the time of all layers
TIE = 0.03  # times that differ by less are equal: clocks and other processes differ by as much
LEAST_ERROR = 1e-9  # two options whose errors are both below it differ in time only


@dataclass(frozen=True)
class Option:
    """A layer in a format: ns of a call, ns that it saves against float32, and the error of the model with it alone."""

    layer: str
    precision: str
    ns: float
    gain: float
    error: float


def order(precision: str) -> int:
    """Place of a format, the most precise first."""
    return PRECISE.index(precision)


def worthwhile(ns: float, gain: float, whole: float) -> bool:
    """Whether a layer that takes `ns` and saves `gain` against float32 gains enough for an error; NaN is no gain.

    whole : ns of all layers in float32.
    """
    return ns <= FASTER * (ns + gain) and gain >= LEAST_GAIN * whole and gain > 0


def worth_trying(options: Sequence[Option]) -> list[Option]:
    """The options without those that take as long as a more precise one of their layer, or longer."""
    found = []
    for one in options:
        better = (o for o in options if o.layer == one.layer and order(o.precision) < order(one.precision))
        if not any(o.ns <= one.ns * (1 + TIE) for o in better):
            found.append(one)
    return found


def search(options: Sequence[Option], fits: Callable[[Mapping[str, str]], bool]) -> dict[str, str]:
    """Layer -> format, for the layers that don't stay float32.

    options : each fits alone. fits : whether the answers with these formats, all together, are within the tolerance.

    The fastest option of each layer is tried first. If they don't fit together, options are added one by one, those
    that save most time for their error first, and each that no longer fits is left out.
    """
    fastest: dict[str, Option] = {}
    for option in options:
        if option.layer not in fastest or option.gain > fastest[option.layer].gain:
            fastest[option.layer] = option
    together = {layer: option.precision for layer, option in fastest.items()}
    if not together or fits(together):
        return together
    chosen: dict[str, Option] = {}
    ranked = sorted(options, key=lambda o: (-o.gain / max(o.error, LEAST_ERROR), order(o.precision)))
    for option in ranked:
        if option.layer in chosen and chosen[option.layer].gain >= option.gain:
            continue
        trial = {**chosen, option.layer: option}
        if fits({layer: o.precision for layer, o in trial.items()}):
            chosen = trial
    return {layer: o.precision for layer, o in chosen.items()}
