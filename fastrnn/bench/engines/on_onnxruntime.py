"""onnxruntime: `run` with NumPy arrays, or IOBinding with every buffer bound once. The caller feeds states back.

In int8 it runs what its `quantize_dynamic` makes of the file, with a scale per channel.
"""

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime


def version():
    return f"onnxruntime {onnxruntime.__version__}"


def candidates(job, engine, threads):
    """Sequential execution, all graph optimisations, `threads` threads that stop spinning when a run ends."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # Threads may spin inside a run, where it helps; between runs they would take the core from the next engine.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if engine == "ort-sessions":
        make = lambda: onnxruntime.InferenceSession(  # noqa: E731
            job["lone_file"], options, providers=["CPUExecutionProvider"]
        )
        return [Sessions(job, [make() for _ in range(job["slots"])])]
    if job["precision"] == "int8":
        with tempfile.TemporaryDirectory() as folder:
            file = quantized(job["file"], Path(folder))
            session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return [SessionRun(job, session), BoundRun(job, session)]
    session = onnxruntime.InferenceSession(job["file"], options, providers=["CPUExecutionProvider"])
    if engine == "ort-gather":
        return [Gather(job, session)]
    return [BoundRun(job, session) if engine == "ort-iobinding" else SessionRun(job, session)]


def quantized(file, folder):
    """The file as `quantize_dynamic` writes it; ValueError if that left every operator in float32."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    logging.disable(logging.WARNING)  # it recommends to prepare the model, which these have no need of
    target = folder / "quantized.onnx"
    quantize_dynamic(file, target, per_channel=True)
    operators = {node.op_type for node in onnx.load(target).graph.node}
    if not operators & {"DynamicQuantizeLSTM", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul"}:
        raise ValueError("quantize_dynamic left the whole file in float32")
    return str(target)


def stream_bytes(job):
    """The states of one stream, which the caller holds."""
    return sum(4 * int(np.prod(shape)) for _, _, shape in job["states"]) // job["batch"]


class SessionRun:
    """`session.run(names, feeds)`."""

    name = "run"

    def __init__(self, job, session):
        self.run = session.run
        self.states = [name for name, _, _ in job["states"]]
        outputs = [output for _, output, _ in job["states"]]
        self.names = outputs + [job["output"]] * (job["output"] not in outputs)
        self.at = self.names.index(job["output"])
        self.input = job["input"]
        self.feeds = {name: np.array(value, np.int64) for name, value in job["bind"]}
        self.feeds |= {name: np.zeros(shape, np.float32) for name, _, shape in job["states"]}
        self.feeds[self.input] = np.zeros(job["shape"], np.float32)

    def calls(self, n):
        run, names, feeds, states = self.run, self.names, self.feeds, self.states
        # The plain forms are what a caller writes; the general one costs a few hundred ns more.
        if not states:
            for _ in range(n):
                run(names, feeds)
        elif len(names) == len(states) == 1:
            (h,) = states
            for _ in range(n):
                (feeds[h],) = run(names, feeds)
        elif len(names) == len(states) == 2:
            h, c = states
            for _ in range(n):
                feeds[h], feeds[c] = run(names, feeds)
        else:
            for _ in range(n):
                feeds.update(zip(states, run(names, feeds), strict=False))

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


class Gather:
    """A service that batches by hand: the rows' states are gathered out of one array, and scattered back."""

    name = "gather"

    def __init__(self, job, session):
        self.plain = SessionRun(job, session)
        axes = [shape.index(job["batch"]) if job["batch"] > 1 else len(shape) - 2 for _, _, shape in job["states"]]
        self.rows = np.random.default_rng(0).permutation(job["slots"])[: job["batch"]]
        self.held = {}
        for (name, _, shape), axis in zip(job["states"], axes, strict=True):
            whole = (*shape[:axis], job["slots"], *shape[axis + 1 :])
            self.held[name] = (np.zeros(whole, np.float32), (slice(None),) * axis + (self.rows,))

    def calls(self, n):
        plain, held = self.plain, self.held
        for _ in range(n):
            for name, (array, rows) in held.items():
                plain.feeds[name] = array[rows]
            results = plain.run(plain.names, plain.feeds)
            for (array, rows), new in zip(held.values(), results, strict=False):
                array[rows] = new
        self.last = results

    def answer(self, x):
        for array, _ in self.held.values():
            array[...] = 0
        found = []
        for row in x:
            self.plain.feeds[self.plain.input] = row
            self.calls(1)
            found.append(self.last[self.plain.at])
        return np.stack(found)


class Sessions:
    """A session for each stream, as in a service that opens one per call; the rows' sessions run one by one."""

    name = "sessions"

    def __init__(self, job, sessions):
        lone = job | {"batch": 1, "states": [(n, o, one_row(s, job["batch"])) for n, o, s in job["states"]]}
        lone["shape"] = one_row(job["shape"], job["batch"])
        self.axis = 1 if job["kind"] != "model" else 0
        rows = np.random.default_rng(0).permutation(job["slots"])[: job["batch"]]
        self.streams = [SessionRun(lone, sessions[i]) for i in rows]
        self.others = sessions  # open, though not stepped now

    def calls(self, n):
        for _ in range(n):
            for stream in self.streams:
                stream.calls(1)

    def answer(self, x):
        axis = self.axis
        rows = [s.answer(np.take(x, [i], axis + 1)) for i, s in enumerate(self.streams)]
        return np.concatenate(rows, axis=rows[0].ndim - 2)


def one_row(shape, batch):
    """The shape of one row, if `batch` rows share one axis."""
    if batch == 1:
        return tuple(shape)
    axis = list(shape).index(batch)
    return (*shape[:axis], 1, *shape[axis + 1 :])


class BoundRun:
    """`run_with_iobinding`; with states two bindings take turns, each reading the buffers that the other writes."""

    name = "IOBinding"

    def __init__(self, job, session):
        self.run = session.run_with_iobinding
        plain = SessionRun(job, session)
        shapes = {n: a.shape for n, a in zip(plain.names, session.run(plain.names, plain.feeds), strict=True)}
        self.x = np.zeros(job["shape"], np.float32)
        first = {o: np.zeros(shapes[o], np.float32) for o in plain.names}
        # Call 0 reads buffers[0] and writes buffers[1], call 1 the other way round; without states one set will do.
        self.buffers = [first, {o: a.copy() for o, a in first.items()} if job["states"] else first]
        # Arrays that a binding points into must outlive it.
        self.constants = {name: np.array(value, np.int64) for name, value in job["bind"]}
        self.output = job["output"]
        self.at = 0
        self.bindings = []
        for reads, writes in (self.buffers, self.buffers[::-1]):
            binding = session.io_binding()
            bind_input(binding, job["input"], self.x)
            for name, value in self.constants.items():
                bind_input(binding, name, value)
            for name, output, _ in job["states"]:
                bind_input(binding, name, reads[output])
            for name, array in writes.items():
                binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            self.bindings.append(binding)

    def calls(self, n):
        run = self.run
        now, later = self.bindings[self.at], self.bindings[1 - self.at]
        for _ in range(n):
            run(now)
            now, later = later, now
        self.at = (self.at + n) % 2

    def answer(self, x):
        for buffers in self.buffers:
            for array in buffers.values():
                array[...] = 0
        self.at = 0
        found = []
        for row in x:
            self.x[...] = row
            self.calls(1)
            found.append(self.buffers[self.at][self.output].copy())
        return np.stack(found)


def bind_input(binding, name, array):
    """Bind an array in place: its later contents are what a run reads."""
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
