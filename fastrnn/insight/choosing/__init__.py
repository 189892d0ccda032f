"""choose_precision: for each layer, the fastest number format whose answers stay close enough on the caller's data.

    timing.py    times of layers and of whole calls, of several models by turns
    judging.py   errors of a model beside the float32 one, on the data
    search.py    which layers get which format: no times are taken and no models run here
    choice.py    `PrecisionChoice`, and how it is shown

`choose_precision` measures how long each layer takes in each format, then the error of each format that is faster, one
layer at a time, then combines them. Every combination that it keeps was run on the data as a whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from ...errors import FastRNNError, ModelFormatError, UnsupportedError
from ...graph.precision import PRECISIONS
from ...model import Model
from ...passes import precision_of
from ...runtime.arguments import whole_number
from ...selected import SelectedModel
from ...typing import Input
from ..analysis.data import Data
from ..analysis.runner import NO_END, Runner
from ..formats import in_precision
from ..profiling import Call
from .choice import LayerTrial, PrecisionChoice
from .judging import Judge
from .search import Option, order, search, worth_trying, worthwhile
from .timing import layer_times, paired_ns

MOST_STEPS = 1 << 20  # of a call that is timed

Progress = Callable[[float, str], None]


def choose_precision(
    model: Model,
    data: Input | Mapping[str, Input] | Data,
    *,
    tolerance: float = 0.01,
    batch: int = 1,
    steps: int = 1,
    seconds: float = 2.0,
    progress: Progress = lambda share, text: None,
) -> PrecisionChoice:
    """For each layer of a model, the fastest number format of its weights that keeps the answers within a tolerance.

    Times are measured on this machine, with one thread. Errors are those against the same model in float32, on the
    data. A format is used only if it saves at least 5 % of the layer's time and 0.5 % of that of all layers. Of formats
    that are equally fast, the more precise one is used. The result was run on all of the data, and its call is not
    slower than that of the float32 model; if it were, all layers would stay float32.

    Parameters
    ----------
    model : Model, in float32
    data : the input data: an array [T, features...] or [rows, T, features...], a dict of them by input, or a `Data` of
        `load_data`. All of it is used, up to the end of a stream whose attention ends.
    tolerance : the largest error of each output, as a share of the output's largest element in float32. Also the
        largest share of decisions that may change; `analyze` defines decisions. Integers of an output are decisions.
    batch, steps : of the call that is timed. One step goes through `Stream.step` if the model streams.
    seconds : of measuring times, about
    progress : called with (share done 0..1, what is being done)

    Raises
    ------
    ShapeError : the data do not fit the model, or have fewer than 2 steps.
    UnsupportedError : layers of the model are in reduced precision already.
    FastRNNError : the tolerance is not a number from 0 up.

    Examples
    --------
    >>> choice = fastrnn.choose_precision(fastrnn.load("model.onnx"), frames, tolerance=0.01)
    >>> choice.model.save("model.fastrnn")
    """
    _check(model, tolerance)
    steps = whole_number(steps, "steps", MOST_STEPS)
    runner = Runner(model)
    given = data if isinstance(data, Data) else Data.of(data)
    x = runner.fit(given.arrays, NO_END, NO_END)
    judge = Judge(runner, x, float(tolerance))
    trials = _judged(_timed(model, batch, steps, seconds / 2, progress), judge, progress)
    progress(0.8, "combining layers")
    options = [Option(t.layer, t.precision, t.ns, t.gain_ns, judge.worst(t.errors)) for t in trials
               if t.errors is not None and judge.fits(t.errors)]  # fmt: skip
    chosen = search(worth_trying(options), lambda wanted: judge.fits(judge.errors(wanted)))
    progress(0.9, "timing the whole model")
    notes: list[str] = []
    found = judge.model(chosen)
    before, after = _whole(model, found, batch, steps, seconds / 2, notes)
    if after > before:
        chosen, found, after = {}, model, before
    progress(1.0, "done")
    return PrecisionChoice.of(model, found, chosen, trials, judge.errors(chosen), notes, tolerance=float(tolerance),
                              data=given.text, rows=runner.rows_of(x), steps=runner.steps_of(x), batch=batch,
                              call_steps=steps, before_ns=before, after_ns=after)  # fmt: skip


def _check(model, tolerance) -> None:
    if isinstance(model, SelectedModel):
        model.refuse()
    if isinstance(model, str | os.PathLike):
        raise ModelFormatError(f"choose_precision takes a model, got a path: pass fastrnn.load({str(model)!r:.80})")
    if not isinstance(model, Model):
        raise ModelFormatError(f"choose_precision takes a model of fastrnn.load, got {type(model).__name__}")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise FastRNNError(f"tolerance must be a number from 0 up, such as 0.01 for one percent, got {tolerance!r:.40}")
    reduced = [f"{name} in {p}" for name, p in precision_of(model.graph).items() if p != "float32"]
    if reduced:
        raise UnsupportedError(
            f"{model.name} holds {', '.join(reduced[:5])}{', ...' if len(reduced) > 5 else ''} already, so its float32 "
            "answers are not known: choose for the file that it was converted from, or load a quantised file with "
            'precision="float32"'
        )


def _timed(model: Model, batch: int, steps: int, seconds: float, progress: Progress) -> list[LayerTrial]:
    """Each layer in each format, by layer and then by format, the more precise first."""
    progress(0.0, "timing layers")
    twins = {precision: in_precision(model, precision) for precision in PRECISIONS[1:]}
    models = {"float32": model, **{name: twin for name, (twin, _) in twins.items()}}
    times = layer_times(models, batch, steps, seconds, lambda share: progress(0.05 + 0.3 * share, "timing layers"))
    sizes = {p: {i.name: i.bytes for i in twin.layers} for p, (twin, _) in twins.items()}
    own = {i.name: i.bytes for i in model.layers}
    found = []
    for name in precision_of(model.graph):
        found.append(LayerTrial(name, "float32", times["float32"][name], 0.0, own.get(name, 0)))
        for precision, (_, why) in sorted(twins.items(), key=lambda item: order(item[0])):
            if name in why:
                found.append(LayerTrial(name, precision, math.nan, math.nan, own.get(name, 0), why[name]))
                continue
            ns = times[precision][name]
            gain = times["float32"][name] - ns
            found.append(LayerTrial(name, precision, ns, gain, sizes[precision].get(name, 0)))
    return found


def _judged(trials: list[LayerTrial], judge: Judge, progress: Progress) -> list[LayerTrial]:
    """The trials with the errors of those that gain enough."""
    whole = sum(t.ns for t in trials if t.precision == "float32")
    found = []
    for i, trial in enumerate(trials):
        if worthwhile(trial.ns, trial.gain_ns, whole):
            progress(0.35 + 0.45 * i / len(trials), f"{trial.layer} in {trial.precision}")
            trial = replace(trial, errors=judge.errors({trial.layer: trial.precision}))
        found.append(trial)
    return found


def _whole(model: Model, found: Model, batch: int, steps: int, seconds: float, notes: list[str]):
    """(ns of a call in float32, of the chosen model). Adds a note if the choice turns out to be slower."""
    first = Call(Model(model.graph, 1), batch, steps)
    if found is model:
        (before,) = paired_ns([first], seconds)
        return before, before
    calls = [first, Call(Model(found.graph, 1), batch, steps)]
    before, after = paired_ns(calls, seconds)
    if after > before:  # once more, and longer: another process may have taken the core
        before, after = paired_ns(calls, 2 * seconds)
    if after > before:
        notes.append(f"all layers stay float32: the choice took {after / before - 1:.1%} longer as a whole")
    return before, after


__all__ = ["PrecisionChoice", "choose_precision"]
