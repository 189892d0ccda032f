"""analyze: can a model be trusted on dirty input, after a restart, over a long time, and at lower precision?

    runner.py       runs a model on sequences, whole or streamed, and reads its states
    data.py         sequences from npy, npz, wav and csv files, or made up
    corruption.py   what goes wrong with input: noise, impulses, dropped steps and features, saturation, gaps
    memory.py       how an output remembers: forgetting, warm-up, the response to a change of one step
    precision.py    layers in reduced precision, and drift against float64
    shown.py        an `Analysis` in a notebook
    figures.py      the definitions: what each figure means, and the arithmetic of errors

`analyze` does all of this and returns an `Analysis`. `DEFINITIONS` defines every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ...errors import ShapeError
from ...model import Model
from ...records import dataclass
from ...typing import Input
from .corruption import Corruption, Gap, corruptions, gaps, quiet_inputs
from .data import Data, load_data, made_up
from .figures import DEFINITIONS, ErrorFigures, Level
from .memory import Forgetting, Touch, forgetting, touch
from .precision import Drift, Rounding, drift, roundings
from .runner import Runner
from .shown import shown

MOST_STEPS = 400  # steps of the data that are used, from its beginning: enough for the figures, and fast
MOST_ROWS = 8
LONG_STEPS = 100_000

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Analysis:
    """What `analyze` returns.

    data : the input data; steps, rows : how much of it was used
    levels : of the clean outputs: their rms, and what they decide, if anything
    corruptions, gaps : dirty input; forgetting, touch : memory, None if there is no state to follow
    roundings : layers in other number formats; drift : the model against float64 over a long stream
    skipped : what was not done, and why
    definitions : figure -> what it means
    """

    model: str
    data: str
    synthetic: bool
    steps: int
    rows: int
    streamed: bool
    levels: tuple[Level, ...]
    corruptions: tuple[Corruption, ...]
    gaps: tuple[Gap, ...]
    forgetting: Forgetting | None
    touch: Touch | None
    roundings: tuple[Rounding, ...]
    drift: Drift | None
    skipped: tuple[str, ...]
    definitions: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The same as dicts, lists, strings and numbers."""
        return _plain(asdict(self))

    def _repr_html_(self) -> str:
        return shown(self)


def _plain(value):
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def analyze(
    model: Model,
    data: Input | Mapping[str, Input] | Data | None = None,
    *,
    steps: int = MOST_STEPS,
    long_steps: int = LONG_STEPS,
    seconds: float = 4.0,
    seed: int = 0,
    progress: Progress = lambda share, text: None,
) -> Analysis:
    """How a model's outputs move under dirty input, another start, a long run and reduced precision.

    Parameters
    ----------
    model : Model
    data : the input data: an array [T, features...] or [rows, T, features...], a dict of them by input, or a `Data` of
        `load_data`. None: random noise, and the result says so. Then the figures say how the model reacts, not how it
        performs on your signals.
    steps : the most steps of the data to use; at most 8 rows are used
    long_steps : steps of the drift
    seconds : approximate. Following a push of the state may take three quarters of them, and so may the float64 side
        of the drift. Steps beyond float64 may take half as long again.
    seed : of all noise
    progress : called with (share done 0..1, what is being done)

    Raises
    ------
    ShapeError : the data do not fit the model, or have fewer than 2 steps.
    """
    if steps < 2 or long_steps < 2 or not seconds > 0:
        raise ShapeError(f"steps, long_steps and seconds must be at least 2, 2 and above 0, got {steps}, {long_steps}, "
                         f"{seconds}")  # fmt: skip
    runner = Runner(model)
    given = made_up(runner, steps, seed) if data is None else data if isinstance(data, Data) else Data.of(data)
    x = runner.fit(given.arrays, steps, MOST_ROWS)
    rng = np.random.default_rng(seed)
    progress(0.0, "clean outputs")
    clean = runner.run(x)
    figures = ErrorFigures(clean, [o.dtype for o in runner.outputs])
    skipped = [*figures.problems, *quiet_inputs(runner, x)]
    progress(0.05, "dirty input")
    dirty = corruptions(runner, x, figures, rng)
    progress(0.3, "gaps")
    missing = gaps(runner, x, figures)
    forgot, touched = _memory(runner, x, rng, seconds, progress, skipped)
    progress(0.65, "reduced precision")
    rounded = roundings(model, x, figures)
    progress(0.75, "drift")
    drifted = _drift(runner, x, long_steps, seconds, progress, skipped)
    progress(1.0, "done")
    return Analysis(
        model.name, given.text, given.synthetic, runner.steps_of(x), runner.rows_of(x), runner.streams,
        figures.levels(runner.output_names), dirty, missing, forgot, touched, rounded, drifted, tuple(skipped),
        DEFINITIONS,
    )  # fmt: skip


def _memory(runner: Runner, x, rng, seconds: float, progress: Progress, skipped: list[str]):
    """(Forgetting or None, Touch or None). Adds to `skipped` what was not done."""
    forgot = None
    if runner.streams:
        progress(0.4, "forgetting")
        forgot = forgetting(runner, x, rng, 0.75 * seconds)
        if forgot is None:
            skipped.append("forgetting: the model keeps no float32 state")
    else:
        skipped.append(f"forgetting, and gaps that are skipped: {runner.why_not}")
    progress(0.55, "touching one step")
    touched = touch(runner, x, rng)
    if touched is None:
        skipped.append("touching one step: no output has a time axis, or no input is real")
    return forgot, touched


def _drift(runner: Runner, x, steps: int, seconds: float, progress: Progress, skipped: list[str]) -> Drift | None:
    """The drift over `steps` steps. If it can't be computed, adds the reason to `skipped`."""
    found = drift(runner, x, steps, 0.75 * seconds, lambda share: progress(0.75 + 0.25 * share, "drift"))
    if isinstance(found, str):
        skipped.append(f"drift: {found}")
        return None
    if found.steps == runner.horizon:
        skipped.append(f"drift beyond {runner.horizon:,} steps: a stream of this model ends there")
    return found


__all__ = ["Analysis", "Data", "analyze", "load_data"]
