"""onnxruntime: `run` with NumPy arrays, or IOBinding with every buffer bound once. The caller feeds states back."""

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
    session = onnxruntime.InferenceSession(job["file"], options, providers=["CPUExecutionProvider"])
    return [IOBinding(job, session) if engine == "ort-iobinding" else Run(job, session)]


def stream_bytes(job):
    """The states of one stream, which the caller holds."""
    return sum(4 * int(np.prod(shape)) for _, _, shape in job["states"]) // job["batch"]


class Run:
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


class IOBinding:
    """`run_with_iobinding`; with states two bindings take turns, each reading the buffers that the other writes."""

    name = "IOBinding"

    def __init__(self, job, session):
        self.run = session.run_with_iobinding
        plain = Run(job, session)
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
