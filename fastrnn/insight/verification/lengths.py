"""What `verify` says about lengths: which it compared, what that proves, and where float32 fails a parallel form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...errors import FastRNNError
from ...graph import Graph, reference
from ...graph import dims as D
from ...passes.parallel_forms import MARK
from ...records import dataclass
from .inputs import integer_limits, least_steps, random_inputs

if TYPE_CHECKING:
    from ...model import Model

LONGEST = 256  # steps up to which a parallel form is tested: known ones fail between 50 and 150
_LENGTHS = (16, 32, 64, 128, LONGEST)


def compared_sizes(envs: Sequence[Mapping[str, int]]) -> dict[str, tuple[int, ...]]:
    """The values of each symbol in the runs: name -> ascending numbers."""
    names = sorted({name for env in envs for name in env})
    return {name: tuple(sorted({env[name] for env in envs if name in env})) for name in names}


def size_notes(
    graph: Graph,
    compared: Mapping[str, tuple[int, ...]],
    sizes: Sequence[tuple[int, int]],
    engine: str,
    is_own: bool,
) -> list[str]:
    """One line for each size, if the runs don't prove that the model is right at other values.

    is_own : `engine` runs fastrnn's own reading of the file, so it proves nothing about that reading.
    """
    thawed = {n.split(":")[0].removeprefix("thawed ") for n in graph.notes if n.startswith("thawed ")}
    asked = {"batch": {batch for batch, _ in sizes}, "time": {time for _, time in sizes}}
    notes = []
    for name, values in compared.items():
        if len(values) == 1 and len(asked.get(name, ())) > 1:
            notes.append(f"only {name} {values[0]} was compared: {engine} takes no other of this file")
        if name in thawed and (is_own or len(values) == 1):
            why = (
                f"{engine} runs fastrnn's own reading of the file"
                if is_own
                else f"the file has {values[0]} written into it"
            )
            notes.append(
                f"that other sizes of {name} are right is an assumption, which this comparison can't prove: {why}. "
                f"An export with {name} as a dynamic axis could, and so could fastrnn.from_torch, which compares with "
                "the module at two lengths and two batches"
            )
    return notes


@dataclass(frozen=True)
class LongRuns:
    """Runs of a model in parallel form over longer sequences, against the float64 reference.

    steps : the lengths that were run, ascending.
    fails_from : the smallest length beyond the tolerance; None if all are within it.
    difference : the largest |got - expected| of all runs; inf if the answer is NaN or infinite and float64's is not.
    worst_at : at how many steps.
    """

    steps: tuple[int, ...]
    fails_from: int | None
    difference: float
    worst_at: int

    @property
    def ok(self) -> bool:
        return self.fails_from is None

    def __str__(self) -> str:
        form = "recurrence in parallel form, against the float64 reference"
        if self.fails_from is None:
            return f"{form}: right up to {self.steps[-1]} steps, largest difference {self.difference:.2e}"
        off = f"off by {self.difference:.2e}" if np.isfinite(self.difference) else "NaN or infinite"
        return (
            f"{form}: wrong from {self.fails_from} steps on, {off} at {self.worst_at} steps; float32 fails the "
            "form that the file is written in, in every engine"
        )


def long_runs(model: Model, seed: int, tolerance: float) -> LongRuns | None:
    """Sequences of up to 256 steps, batch 1; None if the model has no parallel form.

    All are prefixes of the longest one, so the fewest steps that fail can be found by search.
    """
    graph = model.graph
    if not any(MARK in note for note in graph.notes):
        return None
    symbols = {s for name in graph.inputs for d in graph.values[name].dims for s in D.symbols(d)}
    sizes = {s: 1 if s == "batch" else 3 for s in symbols}
    least = least_steps(graph)
    lengths = [n for n in _LENGTHS if n >= least] if "time" in symbols else [0]
    found: dict[int, tuple[float, bool]] = {}  # steps -> difference, whether within the tolerance
    whole = random_inputs(graph, sizes | {"time": max(lengths)}, np.random.default_rng(seed))

    def wrong(steps: int) -> bool:
        """Whether that many steps fail; FastRNNError if the model rejects them, or float64 fails as well."""
        got, want = _both(model, whole, sizes | {"time": steps})
        if not all(np.isfinite(a).all() for a in want):
            raise FastRNNError(f"the float64 reference is not finite at {steps} steps")
        with np.errstate(invalid="ignore"):
            gaps = [np.abs(np.asarray(a, np.float64) - b) for a, b in zip(got, want, strict=True)]
            ok = all((gap <= tolerance * (1 + np.abs(b))).all() for gap, b in zip(gaps, want, strict=True))
        most = max((float(gap.max(initial=0.0)) for gap in gaps), default=0.0)
        found[steps] = (most if np.isfinite(most) else float("inf"), ok)
        return not ok

    bad = None
    for steps in lengths:
        try:
            if wrong(steps) and bad is None:
                bad = steps
        except FastRNNError:  # a table of positions ends there
            break
    good = max((n for n in found if bad is not None and n < bad), default=least - 1)
    while bad is not None and "time" in symbols and bad - good > 1:
        middle = (good + bad) // 2
        if wrong(middle):
            bad = middle
        else:
            good = middle
    if not found:
        return None
    worst = max(found, key=lambda n: found[n][0])
    return (
        _own_size(graph, found)
        if "time" not in symbols
        else LongRuns(tuple(sorted(found)), bad, found[worst][0], worst)
    )


def _own_size(graph: Graph, found: Mapping[int, tuple[float, bool]]) -> LongRuns:
    """The length of a model with a single length: the largest size of its inputs between batch and features."""
    ((difference, ok),) = found.values()
    steps = max(d for name in graph.inputs for d in (*graph.values[name].dims[:2], 1) if isinstance(d, int))
    return LongRuns((steps,), None if ok else steps, difference, steps)


def _both(model: Model, whole: Mapping[str, np.ndarray], env: Mapping[str, int]) -> tuple[list, list]:
    """Outputs of the model and of the reference for prefixes of the inputs."""
    graph, limits = model.graph, integer_limits(model.graph, env)
    feeds = {}
    for name, array in whole.items():
        begin = tuple(slice(D.evaluate(d, env)) for d in graph.values[name].dims)
        part = np.ascontiguousarray(array[begin])
        feeds[name] = np.minimum(part, limits[name] - 1) if name in limits else part
    return list(model.run(**feeds)), [np.asarray(a) for a in reference.run(graph, feeds)]
