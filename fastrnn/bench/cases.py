"""What is measured: grids of cases, and how much work each case is.

A case is one call that a service would make: one step of one stream, one step of a batch, a whole sequence, one frame
of a published model. Its id is `grid/kind-H...`; `--case` filters by it.
"""

from __future__ import annotations

import fnmatch
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..records import dataclass
from . import entrants, modern
from .published import EXAMPLE_FILE, PUBLISHED, PublishedModel, example_model

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
KINDS = ("lstm", "gru", "rnn")
SIZES = (32, 64, 128, 256, 512)
ODD_SIZES = (8, 16, 20, 24, 40, 50, 130)  # no multiple of the lanes, or less than one vector: common in practice
SEQUENCE_STEPS = 100
CHECK_STEPS = 6  # steps whose answers are compared before a case is timed
FLOAT = 4  # bytes
ERROR_STEPS = 1000  # in reduced precision: over so many steps errors of states show; fewer where rows make them dear
ERROR_ROWS = 4096  # steps times rows, at the most
ROUNDED_KINDS = ("lstm", "gru")
ROUNDED_SIZES = (64, 128, 256, 512)
ROUNDED_BATCHES = (1, 4, 16, 128)
PAUSES_MS = (1, 10)
PAUSED_BATCHES = (1, 16)
CALL_ENGINES = ("fastrnn-run", "fastrnn-session", "fastrnn", "ort")
CALL_SIZES = (16, 32, 64, 128)
CALL_STEPS = (1, 10)
WIDE_ENGINES = ("fastrnn", "ort", "ort-iobinding", "openvino")  # torch opens slowly and was never the best peer
WIDE_SIZES = (96, 200, 300, 768, 1024, 2048)
WIDE_ROWS = (4, 8, 32, 64)
MODERN_STEPS = (32, 128, 512)
BITS_SIZES = (33, 64, 130)
BITS_SHARED = (("lstm", 256), ("gru", 256))  # large enough that two threads share a step
BITS_ROWS = 19
BITS_STEPS = 24
QUANTIZED_ENGINES = ("fastrnn", "ort", "ort-iobinding")
DENSE_SIZES = (256, 512)
POOL_SLOTS = (1, 8, 32, 128, 1000, 10_000)
POOL_CELLS = (("lstm", 64), ("lstm", 128), ("gru", 128))
MOST_SESSIONS = 128  # a session of onnxruntime takes up to 20 MB
POOL_ENGINES = ("fastrnn", "fastrnn-plain", "ort-gather", "ort-sessions")


@dataclass(frozen=True)
class Work:
    """What a case has to do at the least, for the roofline.

    flops : floating point operations of one call; a multiply-add is two. Activations are not counted.
    bytes : weight bytes that one call must read.
    footprint : bytes that are read again and again, so must fit a cache level to be read from there.
    """

    flops: int
    bytes: int
    footprint: int


@dataclass(frozen=True)
class Case:
    """One line of the benchmark.

    grid : which grid it belongs to; engines : who takes part, or () for all.
    pause_ms : time from one call to the next, in which the process sleeps; 0: calls in a row.
    check_steps : steps of a cell whose answers are compared before it is timed.
    inputs : of the model, which then has as many outputs.
    same_bits : nothing is timed; fastrnn computes the case in every way and compares the bits.
    recorded : give a published model its recorded audio and compare with its published answer; else noise.
    quantized : of a quantised file, how: "dynamic", "qdq" or "qoperator"; precision : what its answers are held to.
    slots : of the grid `pool`: streams that are open, of which `batch` are stepped; 0 elsewhere.
    kind, I, H, T, batch : the cell and its sizes; kind is "model" for a model file, whose I and H are 0.
    model : the model file's description for kind "model"; folder : where that file is.
    """

    id: str
    grid: str
    kind: str
    I: int  # noqa: E741  (the project's word for the input size)
    H: int
    T: int
    batch: int
    engines: tuple[str, ...] = ()
    model: PublishedModel | None = None
    folder: str = ""
    slots: int = 0
    pause_ms: int = 0
    check_steps: int = CHECK_STEPS
    inputs: int = 1
    same_bits: bool = False
    recorded: bool = False
    quantized: str = ""
    precision: str = entrants.FLOAT32

    @property
    def sequence(self) -> bool:
        """True if one call is a whole sequence from the initial state; else it is one step with the state kept."""
        return self.grid == "sequence" or self.T > 1

    @property
    def work(self) -> Work | None:
        """Least work of one call; None for a file, whose ops are not counted here."""
        if self.kind == "model" or self.quantized:
            return None
        return cell_work(self.kind, self.I, self.H, self.T, self.batch)

    def as_dict(self) -> dict:
        """The same as dicts, lists, strings and numbers."""
        return {**asdict(self), "sequence": self.sequence}


def cell_work(kind: str, I: int, H: int, T: int, batch: int) -> Work:  # noqa: E741
    """Least work of T steps of `batch` rows.

    One step reads W and R once. A sequence reads R at each step, W once: its input half is one matrix product, which
    is counted as flops and needs W only a few times. Biases are counted with W, states not at all.
    """
    rows = GATES[kind] * H
    W, R = rows * (I + 1) * FLOAT, rows * H * FLOAT
    flops = 2 * rows * (I + H) * batch * T
    if T == 1:
        return Work(flops, W + R, W + R)
    return Work(flops, W + T * R, R)


def cell_case(grid: str, kind: str, H: int, T: int = 1, batch: int = 1, engines: Sequence[str] = ()) -> Case:
    """A case of one cell with I = H."""
    name = f"{grid}/{kind}-{H}" + (f"-t{T}" if T > 1 else "") + (f"-b{batch}" if batch > 1 or T > 1 else "")
    return Case(name, grid, kind, H, H, T, batch, tuple(engines))


def step_grid() -> list[Case]:
    """One step of one stream."""
    return [cell_case("step", kind, H) for kind in KINDS for H in SIZES]


def odd_grid() -> list[Case]:
    """The same at sizes that waste lanes."""
    return [cell_case("odd", kind, H) for kind in KINDS for H in ODD_SIZES]


def batch_grid() -> list[Case]:
    """One step of 16 and of 128 streams in lock-step."""
    return [cell_case("batch", kind, H, batch=b) for kind in KINDS for H in SIZES for b in (16, 128)]


def sequence_grid() -> list[Case]:
    """100 steps in one call."""
    return [cell_case("sequence", k, H, SEQUENCE_STEPS, b) for k in KINDS for H in SIZES for b in (1, 16, 64)]


def threads_grid() -> list[Case]:
    """fastrnn with two threads against fastrnn with one; the ratio is the gain."""
    both = ("fastrnn-2t", "fastrnn-1t")
    sizes = [(64, 1), (64, 16), (256, 1), (256, 16), (512, 1), (512, 16), (512, 128)]
    cases = [cell_case("threads", "lstm", H, batch=b, engines=both) for H, b in sizes]
    return cases + [
        cell_case("threads", "lstm", H, SEQUENCE_STEPS, b, both) for H, b in ((64, 1), (256, 16), (512, 16))
    ]


def pool_grid(folders: Sequence[Path]) -> list[Case]:
    """One call that steps some of the open slots, against the same rows in lock-step and against onnxruntime: with
    states gathered and scattered and, at few slots, with one session per stream."""
    folder = next((f for f in folders if (f / PUBLISHED["silero_vad_v5"].file).is_file()), None)
    cases = []
    for slots in POOL_SLOTS:
        for rows in sorted({max(1, slots // 10), slots}):
            engines = POOL_ENGINES if slots <= MOST_SESSIONS else POOL_ENGINES[:-1]
            for kind, H in POOL_CELLS:
                cases.append(pool_case(kind, H, slots, rows, engines))
            if folder is not None:
                model = PUBLISHED["silero_vad_v5"]
                name = f"pool/silero_vad_v5-s{slots}-b{rows}"
                cases.append(Case(name, "pool", "model", 0, 0, 1, rows, engines, model, str(folder), slots))
    return cases


def pool_case(kind: str, H: int, slots: int, rows: int, engines: Sequence[str], grid: str = "pool") -> Case:
    """A case of one cell, `rows` of `slots` open streams a call."""
    name = f"{grid}/{kind}-{H}-s{slots}-b{rows}"
    return Case(name, grid, kind, H, H, 1, rows, tuple(engines), slots=slots)


def wide_grid() -> list[Case]:
    """Sizes, rows and lengths that the other grids leave out."""
    both = KINDS[:2]
    sizes = [
        *((kind, H, 1, 1) for kind in KINDS for H in WIDE_SIZES),
        *((kind, H, 1, b) for kind in both for H in SIZES[1:] for b in WIDE_ROWS),
        *((kind, H, 1, b) for kind in both for H in WIDE_SIZES for b in (4, 16, 64)),
        *((kind, H, 10, b) for kind in both for H in (*SIZES[1:], *WIDE_SIZES[1:5]) for b in (1, 4, 16)),
        *((kind, H, SEQUENCE_STEPS, b) for kind in both for H in WIDE_SIZES[1:3] for b in (1, 4, 16)),
    ]
    return [cell_case("wide", kind, H, T, b, WIDE_ENGINES) for kind, H, T, b in sizes]


def calls_grid() -> list[Case]:
    """A small cell called by `run`, states in and out, as a client of onnxruntime does, beside its step; and a step
    with two inputs and two outputs."""
    cases = [cell_case("calls", kind, H, T, 1, CALL_ENGINES) for kind in KINDS for H in CALL_SIZES for T in CALL_STEPS]
    return [*cases, two_case("calls", 16)]


def two_case(grid: str, H: int) -> Case:
    """A step of an LSTM with two inputs of H / 2 numbers and two outputs."""
    return replace(cell_case(grid, "lstm", H, engines=("fastrnn",)), id=f"{grid}/lstm-{H}-two", inputs=2)


def tiny_calls_grid() -> list[Case]:
    """The same for a test: every number of states, a sequence, and two inputs."""
    cases = [cell_case("tiny-calls", kind, 8, 1, 1, CALL_ENGINES) for kind in KINDS[:2]]
    return [*cases, cell_case("tiny-calls", "rnn", 8, 3, 1, CALL_ENGINES), two_case("tiny-calls", 8)]


def rounded_engines(kind: str) -> tuple[str, ...]:
    """fastrnn in every precision, with the active and each forced instruction set, and every peer that runs the cell in
    reduced precision: onnxruntime's `quantize_dynamic` leaves a GRU in float32, and OpenVINO has no GRU of bytes."""
    own = [entrants.own_name(p, isa) for isa in (None, *entrants.forced_isas()) for p in entrants.PRECISIONS]
    peers = ["openvino-bf16", "torch-bf16", "torch-int8"]
    return (*own, *(["ort-int8", "openvino-int8"] if kind == "lstm" else []), *peers)


def rounded_case(grid: str, kind: str, H: int, batch: int, pause_ms: int = 0, error_steps: int = ERROR_STEPS) -> Case:
    """One step of a cell in every precision; paced calls are named after their pause."""
    case = cell_case(grid, kind, H, batch=batch, engines=rounded_engines(kind))
    steps = CHECK_STEPS if pause_ms else max(1, min(error_steps, ERROR_ROWS // batch))
    name = case.id if batch > 1 else f"{case.id}-b1"
    return replace(case, id=name + (f"-every-{pause_ms}ms" * bool(pause_ms)), pause_ms=pause_ms, check_steps=steps)


def precision_grid() -> list[Case]:
    """Cells in every precision, calls in a row."""
    return [rounded_case("precision", k, H, b) for k in ROUNDED_KINDS for H in ROUNDED_SIZES for b in ROUNDED_BATCHES]


def paced_grid() -> list[Case]:
    """The same with time between calls, as in a service that steps when a packet comes."""
    sizes = [(k, H, b) for k in ROUNDED_KINDS for H in ROUNDED_SIZES for b in PAUSED_BATCHES]
    return [rounded_case("paced", *size, pause_ms=pause) for size in sizes for pause in PAUSES_MS]


def published_grid(folders: Sequence[Path]) -> list[Case]:
    """One frame of each published model in every precision, on recorded audio."""
    own = [entrants.own_name(p, isa) for isa in (None, *entrants.forced_isas()) for p in entrants.PRECISIONS]
    peers = ("ort", "ort-iobinding", "openvino", "ort-int8", "openvino-bf16")
    cases = [c for c in models_grid(folders) if c.model in PUBLISHED.values()]
    return [
        replace(
            c,
            id=c.id.replace("models/", "published/"),
            grid="published",
            engines=(*own, *peers),
            recorded=True,
        )
        for c in cases
    ]


def quantized_grid() -> list[Case]:
    """Files of onnxruntime's tools, run by onnxruntime and by fastrnn; none without onnxruntime."""
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        return []
    cells = [(kind, H, batch, "dynamic") for kind in ROUNDED_KINDS for H in ROUNDED_SIZES for batch in (1, 16)]
    dense = [("dense", H, batch, "dynamic") for H in DENSE_SIZES for batch in (1, 16)]
    static = [("dense", DENSE_SIZES[0], batch, form) for form in ("qdq", "qoperator") for batch in (1, 16)]
    return [quantized_case("quantized", *what) for what in (*cells, *dense, *static)]


def quantized_case(grid: str, kind: str, H: int, batch: int, form: str, steps: int = ERROR_STEPS) -> Case:
    """A case of one quantised file."""
    name = f"{grid}/{kind}-{H}-b{batch}" + (f"-{form}" if form != "dynamic" else "")
    case = Case(name, grid, kind, H, H, 1, batch, QUANTIZED_ENGINES)
    steps = max(1, min(steps, ERROR_ROWS // batch))
    return replace(case, check_steps=steps, quantized=form, precision=entrants.INT8)


def tiny_quantized_grid() -> list[Case]:
    """Small files of every form, for a test."""
    forms = (("lstm", "dynamic"), ("gru", "dynamic"), ("dense", "dynamic"), ("dense", "qdq"), ("dense", "qoperator"))
    return [quantized_case("tiny-quantized", kind, 32, 2, form, steps=50) for kind, form in forms]


def bits_grid() -> list[Case]:
    """Cells that fill whole vectors and tiles, and cells that don't; more rows than a tile has."""
    sizes = [*((kind, H) for kind in KINDS for H in BITS_SIZES), *BITS_SHARED]
    return [bits_case("bits", kind, H) for kind, H in sizes]


def bits_case(grid: str, kind: str, H: int) -> Case:
    """A cell whose bits are compared."""
    isas = (None, *entrants.every_isa())
    names = [entrants.own_name(precision, isa) for precision in entrants.PRECISIONS for isa in isas]
    case = cell_case(grid, kind, H, batch=BITS_ROWS, engines=names)
    return replace(case, id=f"{grid}/{kind}-{H}", check_steps=BITS_STEPS, same_bits=True)


def tiny_precision_grid() -> list[Case]:
    """One small cell of each kind in every precision, in a row and paced, for a test. Cells of 4 units stay float32."""
    return [
        rounded_case("tiny-precision", "lstm", 64, 1, error_steps=20),
        rounded_case("tiny-precision", "gru", 64, 2, pause_ms=1),
    ]


def tiny_grid() -> list[Case]:
    """One small case of each form, so that the benchmark can be run, not timed, in a test."""
    return [
        cell_case("tiny", "lstm", 8),
        cell_case("tiny", "rnn", 8, batch=2),
        cell_case("tiny", "gru", 8, T=3, batch=2),
    ]


# torch is left out: a model file has no PyTorch module. It is not "refused", so no line says that it lost.
MODEL_ENGINES = ("fastrnn", "ort", "ort-iobinding", "openvino")


def models_grid(folders: Sequence[Path]) -> list[Case]:
    """One frame of each published model that is in one of the folders; the example model as a whole sequence."""
    cases = []
    for name, model in PUBLISHED.items():
        folder = next((f for f in folders if (f / model.file).is_file()), None)
        if folder is None:
            continue
        batches = (1, 32) if model.state_batch_axis is not None else (1,)
        for batch in batches:
            suffix = f"-b{batch}" if batch > 1 else ""
            cases.append(
                Case(f"models/{name}{suffix}", "models", "model", 0, 0, 1, batch, MODEL_ENGINES, model, str(folder))
            )
    return cases + [case for folder in folders for case in example_cases(folder)]


def modern_grid() -> list[Case]:
    """One step of each recurrence of today, and whole sequences of those that are trained in a parallel form."""
    if importlib.util.find_spec("onnx") is None:
        return []
    sizes = [*((name, 1) for name in modern.STEPS), *((name, T) for name in modern.SEQUENCES for T in MODERN_STEPS)]
    sizes += [(name, T) for name, (_, T) in modern.MAPS.items()]
    return [modern_case("modern", name, steps) for name, steps in sizes]


def modern_case(grid: str, name: str, steps: int) -> Case:
    """A case of one model of modern.py, whose file is written when it is measured."""
    whole = f"{grid}/{name}" + (f"-t{steps}" if steps > 1 else "")
    return Case(whole, grid, "model", 0, 0, steps, 1, MODEL_ENGINES, modern.described(name, steps))


def example_cases(folder: Path) -> list[Case]:
    """The committed example model, 100 steps: its file keeps its state inside, so other engines can't step it."""
    path = folder / EXAMPLE_FILE
    if not path.is_file():
        return []
    model = example_model(path, SEQUENCE_STEPS)
    name = f"models/{path.stem}-t{SEQUENCE_STEPS}"
    return [Case(name, "models", "model", 0, 0, SEQUENCE_STEPS, 1, MODEL_ENGINES, model, str(folder))]


# Grid -> what it measures, and its cases (of model files in some folders).
_GRIDS: dict[str, tuple[str, Callable[[Sequence[Path]], list[Case]]]] = {
    "step": ("one step of one stream, H = I = 32 to 512", lambda _: step_grid()),
    "odd": ("one step of one stream at sizes that fill no whole vectors", lambda _: odd_grid()),
    "batch": ("one step of 16 and of 128 streams", lambda _: batch_grid()),
    "sequence": (f"{SEQUENCE_STEPS} steps in one call, batch 1, 16, 64", lambda _: sequence_grid()),
    "models": ("the example model, and one frame of published models if they are found", models_grid),
    "threads": ("fastrnn with two threads against one", lambda _: threads_grid()),
    "pool": ("one call for some of the open slots of a pool, 1 to 10,000 of them, a tenth and all stepped", pool_grid),
    "wide": ("more sizes (96 to 2048), rows (4 to 64) and lengths (10, 100)", lambda _: wide_grid()),
    "calls": ("cells of 16 to 128 called by run, and a step with two inputs and outputs", lambda _: calls_grid()),
    "modern": (
        "recurrences of today (Mamba, RetNet, DeltaNet, RG-LRU, ConvGRU, ..), steps and sequences",
        lambda _: modern_grid(),
    ),
    "tiny-calls": ("four tiny cases, for the same", lambda _: tiny_calls_grid()),
    "precision": ("one step in float32, bfloat16, int8 and int8-a16, 1 to 128 rows", lambda _: precision_grid()),
    "paced": ("the same with 1 and 10 ms from one call to the next", lambda _: paced_grid()),
    "published": ("published models in every precision, on recorded audio", published_grid),
    "quantized": ("files that onnxruntime's tools quantised, against onnxruntime", lambda _: quantized_grid()),
    "tiny-quantized": ("five tiny files, for the same", lambda _: tiny_quantized_grid()),
    "bits": ("the same bits in every way to compute, with every instruction set", lambda _: bits_grid()),
    "tiny-bits": ("one tiny case, for the same", lambda _: [bits_case("tiny-bits", "gru", 20)]),
    "tiny-precision": ("two tiny cases, for the same", lambda _: tiny_precision_grid()),
    "tiny-pool": ("a tiny pool, for the same", lambda _: [pool_case("gru", 8, 5, 2, POOL_ENGINES, "tiny-pool")]),
    "tiny-modern": ("one step of one of them", lambda _: [modern_case("tiny-modern", "mingru", 1)]),
    "tiny": ("three tiny cases, to see that the benchmark works", lambda _: tiny_grid()),
}
GRIDS = {name: text for name, (text, _) in _GRIDS.items()}
# What a name of --grid runs, if it is more than the grid of that name
GROUPS = {
    "precision": ("precision", "paced", "published", "quantized", "bits"),
    "float32": ("step", "odd", "batch", "sequence", "wide", "calls", "models", "threads"),
}
DEFAULT_GRIDS = ("step", "odd", "batch", "sequence", "models")


def cases_of(grids: Sequence[str], patterns: Sequence[str] = (), folders: Sequence[Path] = ()) -> list[Case]:
    """The cases of these grids whose id matches one of the patterns; all if there are no patterns.

    patterns : as in a shell, or any part of the id: "lstm-64*", "step/gru-128", "-b16".
    """
    cases = [case for grid in grids for case in _GRIDS[grid][1](folders)]
    if not patterns:
        return cases
    return [c for c in cases if any(fnmatch.fnmatch(c.id, p) or p in c.id for p in patterns)]
