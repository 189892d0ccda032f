"""Does a model answer here as it does elsewhere: random inputs through both, the largest differences reported.

The module is not named for its function, which `fastrnn.verify` must be.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import dims as D
from .errors import FastRNNError, ShapeError, UnsupportedError
from .graph import Graph
from .verification_inputs import least_steps, random_inputs
from .verification_lengths import LongRuns, compared_sizes, long_runs, size_notes

if TYPE_CHECKING:
    from .model import Model

# (batch, time) of the runs where the model leaves them free; 19 steps are longer than any tile, 1 is the live case.
SIZES = ((1, 1), (1, 7), (2, 19), (5, 3))
# An element passes at |got - expected| <= tolerance * (1 + |expected|). Two float32 engines that sum in different
# orders differ by some 1e-6 after a few layers of saturating cells; a wrong gate order or activation by 1e-2 and more.
TOLERANCE = 1e-4
# An engine that keeps float16 values rounds each of them by up to 2^-11; a few layers add up to ten of those.
TOLERANCE_FLOAT16 = 5e-3
ENGINES = ("onnxruntime", "torch", "keras", "reference")
FREE = 3  # for a size that the model leaves open besides those
EVERY = 128  # lengths up to this are all tried where a model runs at none of `SIZES`, some of those beyond
MAX_SIZE = 4096  # the largest batch or time that is tried to meet a size that the file has frozen


@dataclass(frozen=True)
class OutputDifference:
    """One output: its largest differences over all runs, and where the absolute one was seen.

    absolute : largest |got - expected|; inf where one has a NaN or an infinity that the other has not.
    relative : largest over the runs of (largest |got - expected| of the run) / (largest |expected| of the run).
    """

    name: str
    absolute: float
    relative: float
    ok: bool
    where: str


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` returns.

    ok : every element of every output within `tolerance` * (1 + |expected|), and every shape equal; of `long` as well.
    against : the engine compared with, and its version.
    outputs : one `OutputDifference` an output, in the model's order.
    runs : the sizes of the inputs of each run; skipped : runs that the other engine refused, and why.
    notes : what else a reader should know: that only one length could be compared, that a free one is an assumption.
    compared : what was compared of each size that the model leaves free: "batch" and "time" -> ascending numbers.
    long : for a model that holds a recurrence in parallel form, which float32 fails after some steps: longer sequences
        against the float64 reference; else None.
    """

    model: str
    against: str
    ok: bool
    tolerance: float
    seed: int
    outputs: tuple[OutputDifference, ...]
    runs: tuple[str, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    compared: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    long: LongRuns | None = None

    @property
    def agrees(self) -> bool:
        """Whether all outputs answer as the other engine's, whatever `long` says."""
        return all(out.ok for out in self.outputs)

    @property
    def sizes(self) -> str:
        """What was compared, in words."""
        if not self.compared:
            return "compared at the one size that the model takes"
        parts = (f"{name} {', '.join(map(str, values))}" for name, values in self.compared.items())
        return f"compared at {'; '.join(parts)}"

    def as_dict(self) -> dict:
        """The same as dicts, lists, strings and numbers; an infinite difference is the text "inf"."""
        record = asdict(self)
        for output in record["outputs"]:
            for key in ("absolute", "relative"):
                if not np.isfinite(output[key]):
                    output[key] = "inf"
        if self.long is not None and not np.isfinite(self.long.difference):
            record["long"]["difference"] = "inf"
        return record

    def to_json(self) -> str:
        """`as_dict` as JSON text."""
        return json.dumps(self.as_dict())

    def __str__(self) -> str:
        verdict = "answers as" if self.agrees else "does NOT answer as"
        lines = [f"{self.model} {verdict} {self.against} ({len(self.runs)} runs, tolerance {self.tolerance:g})"]
        for out in self.outputs:
            mark = "ok  " if out.ok else "FAIL"
            figures = f"largest difference {out.absolute:.2e} absolute, {out.relative:.2e} relative"
            lines.append(f"  {mark} {out.name}: {figures}" + ("" if out.ok else f" ({out.where})"))
        lines.append(f"  {self.sizes}")
        if self.long is not None:
            lines.append(f"  {'ok  ' if self.long.ok else 'FAIL'} {self.long}")
        lines += [f"  skipped {text}" for text in self.skipped]
        lines += [f"  note: {text}" for text in self.notes]
        return "\n".join(lines)


def verify(
    model: Model | str | os.PathLike,
    against: str = "onnxruntime",
    *,
    source: str | os.PathLike | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    bind: Mapping[str, Any] | None = None,
    states: Mapping[str, str] | None = None,
    layers: Sequence[str] | str | None = None,
    key: str | None = None,
    config: Any = None,
    allow_torch: bool = False,
    float64_as_float32: bool = False,
    fixed_sizes: Mapping[str, int] | None = None,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> VerifyReport:
    """Run a model here and elsewhere on the same random inputs and report the largest differences.

    Parameters
    ----------
    model : path or Model
        A file that `fastrnn.load` reads, or a loaded model.
    against : "onnxruntime", "torch", "keras" or "reference"
        onnxruntime runs the ONNX file itself; torch reads a file of its weights and runs its own modules over them;
        keras loads and runs its own file; the reference is fastrnn's float64 NumPy meaning of the graph, so it checks
        the kernels but not the import.
    source : path, optional
        The file for the other engine, where `model` is a Model or a `.fastrnn` file made from it.
    seed : int
        Of the random inputs: floats normal, integers that index a table within it, lengths within the sequence.
    tolerance : float, optional
        Default 1e-4, 5e-3 where the ONNX file computes in float16.
    bind, states : as in `fastrnn.load`
        `bind` also says what onnxruntime gets for the inputs that were fixed at load, or at conversion.
    layers, key, config, allow_torch, float64_as_float32 : as in `fastrnn.load`
    fixed_sizes : as `sizes` of `fastrnn.load`
    sizes : pairs (batch, time)
        Tried where the model leaves them free; a size that the file has frozen is kept as it is.

    Returns
    -------
    VerifyReport

    Raises
    ------
    UnsupportedError
        The other engine is not installed, can't run the file at any size, or there is no file to give to it.
    FastRNNError
        What `fastrnn.load` raises.

    Examples
    --------
    >>> report = fastrnn.verify("examples/tone_words.onnx")
    >>> report.ok
    True
    """
    from .loading import load
    from .model import Model

    if against not in ENGINES:
        raise UnsupportedError(f"can't verify against {against!r}; known: {', '.join(ENGINES)}")
    if isinstance(model, Model):
        loaded, path = model, None
    else:
        path = os.fspath(model)
        # A .fastrnn file has bind and states built in, and refuses them; onnxruntime still needs bind.
        built_in = path.lower().endswith(".fastrnn")
        beside = {"layers": layers, "key": key, "config": config}  # of the other engine's file, not of this one
        given = {} if built_in and against in ("torch", "keras") else beside
        bound = None if built_in and against == "onnxruntime" else bind or None
        options = {"sizes": fixed_sizes, "allow_torch": allow_torch}
        options = {name: value for name, value in options.items() if value}
        loaded = load(
            path, bind=bound, states=states or None, float64_as_float32=float64_as_float32, **given, **options
        )
    other: Any
    if against == "reference":
        other = _Reference(loaded.graph)
    elif against == "torch":
        from .verification_torch import SUFFIXES, Torch

        file = os.fspath(source) if source is not None else path
        if file is None or not file.lower().endswith(SUFFIXES):
            raise UnsupportedError(f"torch needs the file of weights ({' '.join(SUFFIXES)}): give source=, got {file}")
        other = Torch(file, layers, key)
    elif against == "keras":
        from .verification_keras import SUFFIXES as KERAS_SUFFIXES
        from .verification_keras import Keras

        file = os.fspath(source) if source is not None else path
        if file is None or not file.lower().endswith(KERAS_SUFFIXES):
            raise UnsupportedError(f"Keras needs its own file ({' '.join(KERAS_SUFFIXES)}): give source=, got {file}")
        other = Keras(file, TOLERANCE, config)
    else:
        other = _OnnxRuntime(_onnx_file(source if source is not None else path), bind or {})
    shown = str(path) if path is not None else loaded.name
    return _compare(loaded, other, shown, seed, tolerance, sizes)


def _onnx_file(path: str | os.PathLike | None) -> str:
    if path is None:
        raise UnsupportedError("onnxruntime needs the ONNX file: give its path, or source=path beside a loaded model")
    if os.path.splitext(os.fspath(path))[1].lower() != ".onnx":
        raise UnsupportedError(
            f"{os.fspath(path)} is no ONNX file, so onnxruntime can't run it: "
            'give source="model.onnx", or against="reference"'
        )
    return os.fspath(path)


class _Reference:
    """The float64 oracle as an engine."""

    tolerance = TOLERANCE
    notes: tuple[str, ...] = ()

    def __init__(self, graph: Graph):
        self.graph = graph
        self.title = "fastrnn's float64 reference"

    def dims(self, name: str) -> tuple | None:
        return None

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        from .reference import run

        return [np.asarray(array) for array in run(self.graph, feeds)]


class _OnnxRuntime:
    """onnxruntime, one thread, its warnings kept off the terminal."""

    def __init__(self, path: str, bind: Mapping[str, Any]):
        try:
            import onnxruntime
        except ImportError:
            raise UnsupportedError(
                "verifying against onnxruntime needs onnxruntime, which is not installed: "
                'pip install "fastrnn[verify]", or verify against="reference"'
            ) from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own, one a status code
            raise UnsupportedError(f"onnxruntime can't load {path}: {_first_line(error)}") from None
        self.title = f"onnxruntime {onnxruntime.__version__}"
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]
        kinds = [v.type for v in (*self.session.get_inputs(), *self.session.get_outputs())]
        self.tolerance = TOLERANCE_FLOAT16 if any("float16" in kind for kind in kinds) else TOLERANCE
        self.notes = tuple(f"{name} is bound to {value}" for name, value in bind.items())
        self.bind = {name: self._cast(name, np.asarray(value)) for name, value in bind.items()}

    def _cast(self, name: str, array: np.ndarray) -> np.ndarray:
        if name not in self.inputs:
            known = ", ".join(self.inputs)
            raise ShapeError(f"the ONNX file has no input {name}; it has {known}")
        kind = self.inputs[name].type
        dtype = _ORT_DTYPES.get(kind)
        if dtype is None:
            raise UnsupportedError(f"can't make inputs of onnxruntime's type {kind} (input {name})")
        return array.astype(dtype)

    def dims(self, name: str) -> tuple | None:
        return tuple(self.inputs[name].shape) if name in self.inputs else None

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        arrays = {name: self._cast(name, array) for name, array in feeds.items()}
        return self.session.run(list(outputs), {**arrays, **self.bind})


_ORT_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _compare(model: Model, other, shown: str, seed: int, tolerance: float | None, sizes) -> VerifyReport:
    limit = other.tolerance if tolerance is None else float(tolerance)
    names = [info.name for info in model.outputs]
    done: list[tuple[str, list[np.ndarray], list[np.ndarray]]] = []  # sizes, our outputs, theirs
    sizes_of: dict[str, dict[str, int]] = {}
    skipped = []
    rng = np.random.default_rng(seed)

    def run(env: dict[str, int]) -> None:
        feeds = random_inputs(model.graph, env, rng)
        text = ", ".join(f"{name} [{', '.join(map(str, array.shape))}]" for name, array in feeds.items())
        sizes_of[text] = env
        try:
            expected = other.run(feeds, names)
        except FastRNNError:
            raise
        except Exception as error:  # as above: the classes are onnxruntime's own
            skipped.append(f"{text}: {other.title} refused it: {_first_line(error)}")
            return
        done.append((text, [np.asarray(a) for a in model.run(*feeds.values())], [np.asarray(a) for a in expected]))

    environments = _environments(model, other, sizes)
    for env in environments:
        run(env)
    if sizes is SIZES:
        first = list(skipped)
        for env in _longer(environments, {sizes_of[text]["time"] for text, _, _ in done if "time" in sizes_of[text]}):
            run(env)
            if done and any(array.size == 0 for array in done[-1][1]):
                done.pop()  # too short for a window, which onnxruntime's pools take for one step
            if len(done) >= len(environments):
                break
        if len(done) == 1 < len(environments):  # the file's one length: at least with all batches
            only = sizes_of[done[0][0]]
            others = {env["batch"] for env in environments if "time" in only and "batch" in env} - {only.get("batch")}
            for batch in sorted(others):
                run(only | {"batch": batch})
        skipped = first  # of a search only what it found is of use
    worst: dict[str, OutputDifference] = {}
    runs = []
    for text, ours, theirs in done:
        frozen = _frozen(names, ours, theirs, done)
        if frozen:
            skipped.append(f"{text}: {other.title} answers as if {frozen}, which the file has written into it")
            continue
        runs.append(text)
        for name, got, want in zip(names, ours, theirs, strict=True):
            worst[name] = _worse(worst.get(name), _difference(name, got, want, limit, text))
    if not runs:
        why = skipped or ["no size fits the model's inputs"]
        if model._open_sizes:
            opened = ", ".join(model._open_sizes)
            why.append(f"the model leaves {opened} open, which was tried as {FREE}: fix it with fixed_sizes= (--sizes)")
        raise UnsupportedError(why, f"verifying {shown} against {other.title}")
    compared = compared_sizes([sizes_of[text] for text in runs])
    long = long_runs(model, seed, TOLERANCE if tolerance is None else limit)
    return VerifyReport(
        model=shown,
        against=other.title,
        ok=all(found.ok for found in worst.values()) and (long is None or long.ok),
        tolerance=limit,
        seed=seed,
        outputs=tuple(worst.values()),
        runs=tuple(runs),
        skipped=tuple(skipped),
        notes=(
            *other.notes,
            *_told(model.graph),
            *size_notes(model.graph, compared, sizes, other.title, is_own=isinstance(other, _Reference)),
        ),
        compared=compared,
        long=long,
    )


def _told(graph: Graph) -> list[str]:
    """What the import noted of onnxruntime."""
    return [note for note in graph.notes if "onnxruntime" in note]


def _frozen(names, ours, theirs, done) -> str | None:
    """Where a run's shapes differ because the other engine's never follow the input's: "axis 0 of y were 7", else None.

    An exporter may call a length free and still unroll the recurrence for the example's; fastrnn rolls it up again. It
    counts as that only where the other engine gave one size in all runs, and ours was that size in one of them.
    """
    for k, name in enumerate(names):
        if ours[k].ndim != theirs[k].ndim:
            continue
        for axis, (mine, size) in enumerate(zip(ours[k].shape, theirs[k].shape, strict=True)):
            always = all(t[k].ndim > axis and t[k].shape[axis] == size for _, _, t in done)
            if mine != size and always and any(o[k].shape == t[k].shape for _, o, t in done):
                return f"axis {axis} of {name} were {size} long"
    return None


def _difference(name: str, got: np.ndarray, want: np.ndarray, tolerance: float, where: str) -> OutputDifference:
    if got.shape != want.shape:
        text = f"shape {list(got.shape)}, expected {list(want.shape)}, at {where}"
        return OutputDifference(name, float("inf"), float("inf"), False, text)
    if got.size == 0:
        return OutputDifference(name, 0.0, 0.0, True, f"at {where}")
    a, b = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    gap[~np.isfinite(gap)] = np.inf
    finite = np.where(np.isfinite(b), np.abs(b), 0.0)
    largest, scale = float(gap.max()), float(finite.max())
    index = np.unravel_index(int(gap.argmax()), gap.shape)
    place = f"at {where}, element [{', '.join(map(str, index))}]: {a[index]:g}, expected {b[index]:g}"
    relative = 0.0 if largest == 0 else largest / scale if scale else float("inf")
    return OutputDifference(name, largest, relative, bool((gap <= tolerance * (1 + finite)).all()), place)


def _worse(old: OutputDifference | None, new: OutputDifference) -> OutputDifference:
    if old is None:
        return new
    first = new if (new.absolute, not new.ok) > (old.absolute, not old.ok) else old
    relative = max(old.relative, new.relative)
    return OutputDifference(new.name, first.absolute, relative, old.ok and new.ok, first.where)


def _environments(model: Model, other, sizes) -> list[dict[str, int]]:
    """Values of the model's symbols for each run, without repeats: those that the other engine's file leaves free.

    Raises ShapeError where the two disagree about an input's rank or a size.
    """
    graph = model.graph
    symbols = {s for name in graph.inputs for d in graph.values[name].dims for s in D.symbols(d)}
    pinned: dict[str, int] = {}
    for name in graph.inputs:
        theirs = other.dims(name)
        if theirs is None:
            continue
        mine = graph.values[name].dims
        if len(theirs) != len(mine):
            raise ShapeError(f"input {name}: {other.title} takes {list(theirs)}, fastrnn {list(mine)}")
        for dim, size in zip(mine, theirs, strict=True):
            if isinstance(size, int) and isinstance(dim, D.Dim):
                pinned.update(_solve(name, dim, size))
            elif isinstance(size, int) and size != dim:
                raise ShapeError(f"input {name}: {other.title} takes {list(theirs)}, fastrnn {list(mine)}")
    found: list[dict[str, int]] = []
    more = least_steps(graph, sizes[0][0]) - 1
    for batch, time in sizes:
        env = {s: pinned.get(s, {"batch": batch, "time": time + more}.get(s, FREE)) for s in sorted(symbols)}
        if env not in found:
            found.append(env)
    return found


def _longer(environments: list[dict[str, int]], done: set[int]) -> Iterator[dict[str, int]]:
    """More lengths where only one of those tried, or none, was run: windows may need hundreds of steps, and a Reshape
    may hold the one length that the file was exported at."""
    if len(done) > 1 or len({env.get("time") for env in environments}) == 1:
        return
    tried = {env["time"] for env in environments}
    lengths = [n for n in range(1, EVERY + 1) if n not in tried]
    while lengths[-1] < MAX_SIZE:
        lengths.append(min(MAX_SIZE, lengths[-1] * 9 // 8))
    for k, time in enumerate(lengths):
        yield environments[k % len(environments)] | {"time": time}


def _solve(name: str, dim: D.Dim, size: int) -> dict[str, int]:
    symbols = D.symbols(dim)
    if len(symbols) == 1:
        (symbol,) = symbols
        for value in range(MAX_SIZE + 1):
            if D.evaluate(dim, {symbol: value}) == size:
                return {symbol: value}
    raise ShapeError(f"input {name}: no size up to {MAX_SIZE} makes {dim} the {size} of the file")
