"""PyTorch: eval, inference_mode; layers, cells, traced forms, with and without oneDNN: the fastest represents it.

In bfloat16 weights, x and states are bfloat16; in int8 it runs what its `quantize_dynamic` makes of the module.
"""

import contextlib
import warnings

import numpy as np
import torch

ORDER = {"rnn": "h", "lstm": "iofc", "gru": "zrh"}  # gates as the weights file has them
TORCH_ORDER = {"rnn": "h", "lstm": "ifco", "gru": "rzh"}


def version():
    return f"PyTorch {torch.__version__}"


def candidates(job, engine, threads):
    """Every set-up that answers; those that fail are left out unless all do."""
    torch.set_num_threads(threads)
    kind = job["kind"]
    if kind == "model":
        raise ValueError("a model file has no PyTorch module")
    layer, cell = (in_precision(module, job["precision"]) for module in modules(job))
    made, problems = [], []
    for traced in (False, True):
        for onednn in (True, False):
            forms = [("nn.LSTM", layer), ("nn.LSTMCell", cell)]
            for name, module in forms if not job["sequence"] else forms[:1]:
                title = name.replace("LSTM", kind.upper()) + (", traced" * traced) + (", oneDNN off" * (not onednn))
                try:
                    candidate = Torch(job, title, module, traced, onednn)
                    candidate.calls(2)
                    made.append(candidate)
                except Exception as error:
                    problems.append(f"{title}: {error}")
    if not made:
        raise RuntimeError("; ".join(problems))
    return made


def modules(job):
    """(nn.LSTM or its like, nn.LSTMCell or its like) with the job's weights."""
    kind, weights = job["kind"], np.load(job["weights"])
    makers = {
        "rnn": (torch.nn.RNN, torch.nn.RNNCell),
        "lstm": (torch.nn.LSTM, torch.nn.LSTMCell),
        "gru": (torch.nn.GRU, torch.nn.GRUCell),
    }[kind]
    names = {"W": "weight_ih", "R": "weight_hh", "Wb": "bias_ih", "Rb": "bias_hh"}
    made = []
    for maker, suffix in zip(makers, ("_l0", ""), strict=True):
        module = maker(job["I"], job["H"])
        state = {names[n] + suffix: torch.from_numpy(reorder(weights[n], kind)) for n in names}
        module.load_state_dict(state)
        made.append(module.eval().requires_grad_(False))
    return made


def in_precision(module, precision):
    """The module as PyTorch offers it in that precision."""
    if precision == "bfloat16":
        return module.bfloat16()
    if precision == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, and all that torch itself has
            quantize = torch.ao.quantization.quantize_dynamic
            return quantize(torch.nn.Sequential(module), {type(module)}, dtype=torch.qint8)[0]
    return module


def reorder(array, kind):
    """Gate blocks from ONNX's order to PyTorch's."""
    blocks = np.split(array, len(ORDER[kind]))
    return np.concatenate([blocks[ORDER[kind].index(gate)] for gate in TORCH_ORDER[kind]])


def stream_bytes(job):
    """h, and c of an LSTM."""
    return 0 if job["sequence"] else 4 * job["H"] * (2 if job["kind"] == "lstm" else 1)


class Torch:
    """One set-up. A layer takes x [T, batch, I] and states [1, batch, H], a cell x [batch, I] and [batch, H]."""

    def __init__(self, job, name, module, traced, onednn):
        self.name, self.onednn = name, onednn
        self.sequence, self.pair = job["sequence"], job["kind"] == "lstm"
        self.cell = "Cell" in type(module).__name__
        number = torch.bfloat16 if job["precision"] == "bfloat16" else torch.float32
        shape = job["shape"][1:] if self.cell else job["shape"]
        self.x = torch.zeros(shape, dtype=number)
        rows = (job["batch"], job["H"])
        h = torch.zeros(rows if self.cell else (1, *rows), dtype=number)
        self.zero = (h, h.clone()) if self.pair else h
        self.state = self.zero
        self.module = module
        if traced:
            example = (self.x,) if self.sequence else (self.x, self.zero)
            with self.setting(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tracing is deprecated, and still the fastest for some
                self.module = torch.jit.freeze(torch.jit.trace(module, example))

    @contextlib.contextmanager
    def setting(self):
        with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=self.onednn):
            yield

    def calls(self, n):
        with self.setting():
            module, x, state = self.module, self.x, self.state
            if self.sequence:
                for _ in range(n):
                    module(x)
            elif self.cell:
                for _ in range(n):
                    state = module(x, state)
            else:
                for _ in range(n):
                    _, state = module(x, state)
            self.state = state

    def answer(self, x):
        self.state = self.zero
        found = []
        with self.setting():
            for row in x:
                self.x.copy_(torch.from_numpy(row).reshape(self.x.shape))
                if self.sequence:
                    y = self.module(self.x)[0]
                else:
                    self.calls(1)
                    y = self.state[0] if self.pair else self.state
                found.append(y.float().numpy().copy())
        return np.stack(found)
