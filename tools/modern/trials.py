"""What is tried of each file: whether it loads, is equal at other sizes, streams, gives the same bits; how fast."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

import fastrnn

from .forms import fresh, truth
from .registry import Listed

LENGTHS, BATCHES = (1, 5, 23), (1, 3)
LONG = 200  # steps of a stream
TOLERANCE = 1e-4  # of the largest value, at least of 1


@dataclass
class Trial:
    """failed: trial -> why. Those that are missing succeeded. us: microseconds of a step; onnxruntime's, of a step."""

    form: str
    exporter: str
    failed: dict[str, str] = field(default_factory=dict)
    us: float | None = None
    ort_us: float | None = None

    @property
    def verdict(self) -> str:
        """yes, or what failed first and why."""
        for name in ("exported", "loads", "equal", "streams", "same bits", "pool"):
            if name in self.failed:
                return f"{name}: {self.failed[name]}"
        return "yes"


def differs(got: np.ndarray, want: np.ndarray) -> bool:
    return not np.abs(got - want).max(initial=0.0) <= TOLERANCE * max(1.0, np.abs(want).max(initial=0.0))


def try_file(listed: Listed, form: str, exporter: str, content: bytes) -> Trial:
    """Try a file; nothing is raised for what fails."""
    trial = Trial(form, exporter)
    try:
        model = fastrnn.load(content, threads=1)
    except fastrnn.FastRNNError as error:
        trial.failed["loads"] = str(error)
        return trial
    if form == "step" and len(model.graph.states) != len(fresh(listed).shapes):
        trial.failed["streams"] = "its states are not found"
        return trial
    rng = np.random.default_rng(3)
    try:
        if form != "step":
            _other_sizes(listed, model, rng, trial)
        if "equal" not in trial.failed:
            _streams(listed, model, rng, trial)
        trial.us = _time_of_a_step(model, listed)
    except fastrnn.FastRNNError as error:
        trial.failed["streams"] = str(error)
    if form == "step":
        trial.ort_us = _onnxruntime(content, listed)
    return trial


def _x(listed: Listed, rng, *front: int) -> np.ndarray:
    return rng.standard_normal((*front, *listed.features)).astype(np.float32)


def _other_sizes(listed: Listed, model, rng, trial: Trial) -> None:
    for length in LENGTHS:
        for batch in BATCHES:
            x = _x(listed, rng, batch, length)
            try:
                got = model(x)
            except fastrnn.FastRNNError as error:
                trial.failed["equal"] = f"at {batch} rows of {length} steps: {error}"
                return
            if differs(got, truth(fresh(listed), x)):
                trial.failed["equal"] = f"differs at {batch} rows of {length} steps"
                return


def _streams(listed: Listed, model, rng, trial: Trial) -> None:
    x = _x(listed, rng, 3, LONG)
    want, stream = truth(fresh(listed), x), model.stream()
    steps = np.stack([stream.step(row) for row in x[0]])
    if differs(steps, want[0]):
        trial.failed["streams"] = f"differs within {LONG} steps"
    chunked = model.stream()
    parts = [chunked.push(np.ascontiguousarray(x[0, a:b])) for a, b in ((0, 1), (1, 8), (8, LONG))]
    if not np.array_equal(np.concatenate(parts), steps):
        trial.failed["same bits"] = "chunks differ from steps"
    pool = model.pool(capacity=3)
    slots = [pool.open() for _ in range(3)]
    rows = np.stack([pool.step(slots, np.ascontiguousarray(x[:, t])) for t in range(LONG)], 1)
    if not np.array_equal(rows[0], steps) or differs(rows, want):
        trial.failed["pool"] = "a pool differs from a stream"


def _best(call, seconds: float = 0.05) -> float:
    """Microseconds of a call: the least of several rounds."""
    call()
    began = time.perf_counter()
    call()
    count = max(1, min(200, int(0.005 / max(time.perf_counter() - began, 1e-7))))
    best, end = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(count):
            call()
        best = min(best, (time.perf_counter() - began) / count)
    return 1e6 * best


def _time_of_a_step(model, listed: Listed) -> float:
    stream, x = model.stream(), np.zeros(listed.features, np.float32)
    out = np.empty_like(stream.step(x))
    return _best(lambda: stream.step(x, out))


def _onnxruntime(content: bytes, listed: Listed) -> float | None:
    """A call of onnxruntime that hands the states on, as a caller must."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.zeros((1, *listed.features), np.float32)}
    feeds |= {f"s{k}": np.zeros((1, *s), np.float32) for k, s in enumerate(fresh(listed).shapes)}
    names = [n for n in feeds if n != "x"]

    def call():
        _, *states = session.run(None, feeds)
        feeds.update(zip(names, states, strict=True))

    return _best(call)
