"""fastrnn: `step(x, out=y)` on a stream, which keeps the states; whole sequences by `push` or `run`.

`fastrnn-run` and `fastrnn-session` call the file as onnxruntime does, states in and out.
"""

import contextlib
import ctypes
import hashlib
import os
import time
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn import onnxruntime  # fastrnn's own InferenceSession, which has onnxruntime's names

SAMPLE_BYTES = 8 << 20  # streams opened to see what one takes: so many that pages (4 KiB) do not matter


def version():
    return f"fastrnn {fastrnn.__version__}, {fastrnn.cpu_info().isa.active}"


def candidates(job, engine, threads):
    """One way to step, two to run a sequence."""
    if engine == "fastrnn-session":
        return [SessionRun(job, onnxruntime.InferenceSession(job["file"], threads=threads))]
    if engine == "fastrnn-run":
        return [WholeRun(job, fastrnn.load(job["file"], threads=threads))]
    model = load(job, threads)
    if job["inputs"] > 1:
        return [StepSeveral(job, model)]
    if job["sequence"]:
        found = [Push(job, model), WholeRun(job, model)]
    elif job["kind"] == "model" and not job["states"]:
        found = [WholeRun(job, model)]
    else:
        pooled = job["slots"] and engine != "fastrnn-plain"
        found = [PoolStep(job, model) if pooled else Step(job, model)]
    for candidate in found:
        candidate.note = held(job, model)
    return found


def load(job, threads):
    """The job's model: the form without states for a cell, the file itself for a model."""
    settings = {"threads": threads, "precision": wanted(job)}
    if job["kind"] != "model":
        return fastrnn.load(job["free_file"], **settings)
    states = {name: output for name, output, _ in job["states"]}
    return fastrnn.load(job["file"], bind=dict(job["bind"]) or None, states=states or None, **settings)


def wanted(job):
    """The precision that is asked for; None for a quantised file: its own integers."""
    return None if job["quantized"] else job["precision"]


def held(job, model):
    """What of the model is not in the precision that was asked for: small layers stay float32."""
    if model.precision == wanted(job):
        return ""
    if isinstance(model.precision, str):
        return f"held in {model.precision}"
    if job["quantized"]:
        return "held in " + ", ".join(f"{name} {precision}" for name, precision in model.precision.items())
    rest = sum(precision != job["precision"] for precision in model.precision.values())
    return f"{rest} of {len(model.precision)} layers held in another precision"


def open_stream(job, model):
    """One stream, or as many in lock-step as the job has rows."""
    return model.stream() if job["batch"] == 1 else model.stream(batch_size=job["batch"])


def stream_bytes(job):
    """Bytes that one more stream takes (a row of a batch: its share), Python objects included; None if none opens.

    The larger of what Python's allocators count and what the process grew by: the first misses memory that C takes
    by itself, the second what was taken from memory freed earlier (as much as possible of it is given back before).
    """
    import tracemalloc

    if job["precision"] != "float32" or job["grid"] == "calls":
        return None  # states are float32 in every precision, and a caller of `run` keeps them
    model = load(job, 1)
    if not model.streamable:
        return None
    streams = [open_stream(job, model)]
    count = max(16, min(2000, SAMPLE_BYTES // (8 * job["batch"] * max(job["H"], 128))))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    tracemalloc.start()
    try:
        before, resident = tracemalloc.get_traced_memory()[0], rss()
        streams += [open_stream(job, model) for _ in range(count)]
        grown = max(tracemalloc.get_traced_memory()[0] - before, rss() - resident)
    finally:
        tracemalloc.stop()
    return grown // (count * job["batch"])


def rss():
    """Resident bytes of this process; 0 if the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def bits(job):
    """Digests of the job's answers by the way that they were computed, the first by single rows, step by step."""
    model, shared = (small(job, threads) for threads in (1, 2))
    x = np.load(job["x"])[:, 0]  # [T, batch, I]
    T, rows = x.shape[:2]
    order = np.random.default_rng(0).permutation(rows)

    def stepped(model, x, pause=0.0):
        stream = model.stream(batch_size=x.shape[1])
        found = []
        for t in range(T):
            if pause and t % 8 == 7:
                time.sleep(pause)
            found.append(stream.step(x[t]))
        return np.stack(found)

    def pooled():
        pool = model.pool(capacity=rows)
        slots = np.array([pool.open() for _ in range(rows)])[order]
        return np.stack([pool.step(slots, x[t]) for t in range(T)])

    def pushed(model, x, length):
        stream = model.stream(batch_size=x.shape[1])
        parts = [stream.push(np.ascontiguousarray(x[t : t + length].swapaxes(0, 1))) for t in range(0, T, length)]
        return np.concatenate(parts, axis=1).swapaxes(0, 1)

    single = [model.stream() for _ in range(rows)]
    ways = {
        "single rows": np.stack([np.stack([single[r].step(x[t, r]) for r in range(rows)]) for t in range(T)]),
        "a batch": stepped(model, x),
        "other places": stepped(model, x[:, order])[:, np.argsort(order)],
        "batches of 5": np.concatenate([stepped(model, x[:, r : r + 5]) for r in range(0, rows, 5)], axis=1),
        "a pool": pooled(),
        "chunks of 7": pushed(model, x, 7),
        "one chunk": pushed(model, x, T),
        "run": model.run(x)[0],
        "two threads, steps": stepped(shared, x),
        "two threads, run": shared.run(x)[0],
        "pauses": stepped(model, x, 0.003),
    }
    return {way: hashlib.sha256(np.ascontiguousarray(y).tobytes()).hexdigest()[:16] for way, y in ways.items()}


def small(job, threads):
    """The job's cell with its layer in the precision by name, which no rule about small layers keeps in float32."""
    model = fastrnn.load(job["free_file"], threads=threads)
    if job["precision"] == "float32":
        return model
    precision = {layer.name: job["precision"] for layer in model.layers}
    return fastrnn.load(job["free_file"], threads=threads, precision=precision)


def steps_of(candidate, x) -> np.ndarray:
    """The answers of one call per row of x, stacked; the candidate's `calls` reads its `x` and writes its `y`."""
    found = []
    for row in x:
        candidate.x[...] = row.reshape(candidate.x.shape)
        candidate.calls(1)
        found.append(candidate.y.copy())
    return np.stack(found)


class Step:
    """`stream.step(x, out=y)`."""

    name = "step"

    def __init__(self, job, model):
        self.stream = open_stream(job, model)
        self.x = np.zeros(job["step_shape"], np.float32)
        self.y = np.array(self.stream.step(self.x))

    def calls(self, n):
        step, x, y = self.stream.step, self.x, self.y
        for _ in range(n):
            step(x, out=y)

    def answer(self, x):
        self.stream.reset()
        return steps_of(self, x)


class PoolStep:
    """`pool.step(slots, x, out=y)`: some of the open slots, in an order of their own."""

    name = "pool"

    def __init__(self, job, model):
        self.pool = model.pool(capacity=job["slots"])
        opened = np.array([self.pool.open() for _ in range(job["slots"])])
        self.slots = np.random.default_rng(0).permutation(opened)[: job["batch"]].copy()
        whole = tuple(job["shape"])
        self.x = np.zeros(whole[1:] if job["kind"] != "model" else whole, np.float32)
        self.y = np.array(self.pool.step(self.slots, self.x))

    def calls(self, n):
        step, slots, x, y = self.pool.step, self.slots, self.x, self.y
        for _ in range(n):
            step(slots, x, out=y)

    def answer(self, x):
        for slot in self.slots:
            self.pool.reset(slot)
        return steps_of(self, x)


class Push:
    """`stream.push(chunk)`; the chunk is [T, I], or [batch, T, I]."""

    name = "push"

    def __init__(self, job, model):
        self.stream = open_stream(job, model)
        self.batch, self.cell = job["batch"], job["kind"] != "model"
        self.x = self.chunk(np.zeros(job["shape"], np.float32))

    def chunk(self, x):
        if not self.cell:  # the example's [1, T, features]
            return np.ascontiguousarray(x.reshape(x.shape[1:]))
        return np.ascontiguousarray(x[:, 0] if self.batch == 1 else x.swapaxes(0, 1))

    def calls(self, n):
        push, x = self.stream.push, self.x
        for _ in range(n):
            push(x)

    def answer(self, x):
        found = []
        for row in x:
            self.stream.reset()
            y = self.stream.push(self.chunk(row))
            found.append(y if self.batch == 1 else y.swapaxes(0, 1))
        return np.stack(found)


class StepSeveral:
    """`stream.step(xs, out=ys)` with several inputs and outputs; the job's x has all inputs side by side."""

    name = "step"

    def __init__(self, job, model):
        self.stream = open_stream(job, model)
        self.widths = np.split(np.arange(job["I"]), job["inputs"])
        self.xs = tuple(np.zeros(len(columns), np.float32) for columns in self.widths)
        self.ys = tuple(np.array(y) for y in self.stream.step(self.xs))

    def calls(self, n):
        step, xs, ys = self.stream.step, self.xs, self.ys
        for _ in range(n):
            step(xs, out=ys)

    def answer(self, x):
        self.stream.reset()
        found = []
        for row in x:
            for part, columns in zip(self.xs, self.widths, strict=True):
                part[...] = row.ravel()[columns]
            self.calls(1)
            found.append(np.concatenate(self.ys))
        return np.stack(found)


class WholeRun:
    """`model.run(x, *states)`: the file's own axes; states are what the last call returned."""

    name = "run"

    def __init__(self, job, model):
        self.run = model.run
        names = [info.name for info in model.outputs]
        self.at = names.index(job["output"])
        self.x = np.zeros(job["shape"], np.float32)
        self.zeros = [np.zeros(shape, np.float32) for _, _, shape in job["states"]]
        self.states = self.zeros

    def calls(self, n):
        run, x, states = self.run, self.x, self.states
        # The plain forms are what a caller writes.
        if not states:
            for _ in range(n):
                run(x)
        elif len(states) == 1:
            (h,) = states
            for _ in range(n):
                (h,) = run(x, h)
            self.states = [h]
        else:
            h, c = states
            for _ in range(n):
                h, c = run(x, h, c)
            self.states = [h, c]

    def answer(self, x):
        states, found = self.zeros, []
        for row in x:
            results = self.run(row, *states)
            states = results[: len(states)]
            found.append(results[self.at])
        return np.stack(found)


class SessionRun:
    """`session.run(names, feeds)`: fastrnn's session, called as on_onnxruntime.py calls the other one."""

    name = "session.run"

    def __init__(self, job, session):
        self.run = session.run
        self.states = [name for name, _, _ in job["states"]]
        outputs = [output for _, output, _ in job["states"]]
        self.names = outputs + [job["output"]] * (job["output"] not in outputs)
        self.at = self.names.index(job["output"])
        self.input = job["input"]
        self.feeds = {name: np.zeros(shape, np.float32) for name, _, shape in job["states"]}
        self.feeds[self.input] = np.zeros(job["shape"], np.float32)

    def calls(self, n):
        run, names, feeds, states = self.run, self.names, self.feeds, self.states
        if not states:
            for _ in range(n):
                run(names, feeds)
        elif len(states) == 1:
            (h,) = states
            for _ in range(n):
                (feeds[h],) = run(names, feeds)
        else:
            h, c = states
            for _ in range(n):
                feeds[h], feeds[c] = run(names, feeds)

    def answer(self, x):
        for name in self.states:
            self.feeds[name] = np.zeros_like(self.feeds[name])
        found = []
        for row in x:
            self.feeds[self.input] = row
            results = self.run(self.names, self.feeds)
            self.feeds.update(zip(self.states, results, strict=False))
            found.append(results[self.at])
        return np.stack(found)
