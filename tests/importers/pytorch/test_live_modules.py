"""from_torch: names of arguments and results, modules that write into their input or keep a state, quiet conversion."""

import collections
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import fastrnn
from fastrnn.errors import ModelFormatError, UnsupportedError

pytestmark = pytest.mark.any_isa
X, H = torch.randn(2, 7, 4), torch.randn(1, 2, 4)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.rnn, self.lin = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 4)
        self.eval()


def module(arguments: str, body: str, base: type = Base, **names) -> nn.Module:
    """A module whose forward takes these arguments, as its author would have written it."""
    held: dict = {}
    exec(f"def forward(self, {arguments}):\n    " + body.replace("\n", "\n    "), {**globals(), **names}, held)
    return type("Written", (base,), held)()


def flat(value) -> list:
    from fastrnn.importers.pytorch.nesting import tensors_in

    return tensors_in(value)


def agrees(model, written, *args, **kwargs):
    with torch.no_grad():
        want = flat(written(*args, **kwargs))
    got = model.run(*(t.numpy() for t in flat([*args, *kwargs.values()])))
    assert len(got) == len(want)
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-5, atol=1e-5)


def names(model) -> tuple[list, list]:
    return [i.name for i in model.inputs], [o.name for o in model.outputs]


@pytest.mark.parametrize("name", "y input output state time batch y0 lengths module graph constant self_ args".split())
def test_an_argument_keeps_its_name(name):
    written = module(name, f"return self.rnn({name})[0]")
    model = fastrnn.from_torch(written, X)
    assert names(model) == ([name], ["y_out" if name == "y" else "y"])
    agrees(model, written, torch.randn(3, 5, 4))


LOOP = """out = []
for t in range(y.shape[1]):
    {h} = torch.tanh(self.lin(y[:, t]) + {h})
    out.append({h})
return torch.stack(out, 1), {h}"""


def test_names_that_clash_in_an_exported_module():
    written = module("y, y0", LOOP.replace("{h}", "y0"))
    model = fastrnn.from_torch(written, (X, H[0]))
    assert names(model) == (["y", "y0"], ["y0_out", "y1"])
    assert "torch.onnx.export" in model.notes[0]
    agrees(model, written, X, H[0])


@dataclasses.dataclass
class Parts:
    logits: torch.Tensor
    h: torch.Tensor
    note: str = "none"


Pair = collections.namedtuple("Pair", "logits h")
RESULTS = {
    "a dict": ("{'logits': self.lin(y), 'h': n}", ["logits", "h_out"]),
    "a dataclass": ("Parts(self.lin(y), n)", ["logits", "h_out"]),
    "a named tuple": ("Pair(self.lin(y), n)", ["logits", "h_out"]),
    "nested": ("(y, {'a': {'h': n}, 'b': (y, self.lin(y)), 'c': None})", ["y0", "a_h", "b0", "b1"]),
    "one in a tuple": ("(y,)", ["y"]),
    "tuples": ("(y, (n, y + 1))", ["y0", "y1", "y2"]),
}


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("name", RESULTS)
def test_results_are_named_after_keys_and_fields(name, traced):
    text, wanted = RESULTS[name]
    stop = "" if traced else "assert x.shape[-1] == 4\n"  # which torch.fx can't follow
    written = module("x, h", f"{stop}y, n = self.rnn(x, h)\nreturn {text}")
    model = fastrnn.from_torch(written, (X, H))
    assert ("traced" in model.notes[0].partition("(")[0]) == traced
    assert names(model) == (["x", "h"], wanted)
    agrees(model, written, X, H)
    agrees(model, written, torch.randn(3, 5, 4), torch.randn(1, 3, 4))


ARGUMENTS = {
    "by name alone": ("x, *, scale=2.0, h", "return self.rnn(x, h)[0] * scale", {"x": X, "h": H}, ["x", "h"]),
    "by name, as a tuple": ("x, *, h", "return self.rnn(x, h)[0]", (X, H), ["x", "h"]),
    "one left out": ("x, scale=2.0, h=None", "return self.rnn(x, h)[0] * scale", {"x": X, "h": H}, ["x", "h"]),
    "none": ("x, h=None", "return self.rnn(x, torch.zeros(1, x.size(0), 4) if h is None else h)[0]", (X, None), ["x"]),
    "a dict": ("x, states", "return self.rnn(x, states['h'])[0]", (X, {"h": H}), ["x", "states_h"]),
    "a list": ("x, states", "return self.rnn(x, states[0])[0]", (X, [H]), ["x", "states0"]),
    "any number": ("*xs", "return self.rnn(xs[0], xs[1])[0]", (X, H), ["xs0", "xs1"]),
    "a flag": ("x, h, double", "y = self.rnn(x, h)[0]\nreturn y * 2 if double else y", (X, H, True), ["x", "h"]),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_every_kind(name):
    arguments, body, example, wanted = ARGUMENTS[name]
    written = module(arguments, body)
    model = fastrnn.from_torch(written, example)
    assert names(model) == (wanted, ["y"])
    x, h = torch.randn(3, 5, 4), torch.randn(1, 3, 4)
    with torch.no_grad():
        start = h if len(wanted) == 2 else None
        want = written.rnn(x, start)[0] * (2 if "scale" in arguments or "double" in arguments else 1)
    got = model.run(*(t.numpy() for t in (x, h)[: len(wanted)]))[0]
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-5)


def test_arguments_that_do_not_fit():
    written = module("x, h", "return self.rnn(x, h)[0]")
    for example, text in (
        (X, r"does not fit forward\(x, h\) of Written: missing a required argument: 'h'"),
        ((X, H, H), "too many positional arguments"),
        ({"x": X, "hidden": H}, "names hidden, which forward does not take; put a dict that is itself an argument"),
        ((X, object()), "example= has a object"),
    ):
        with pytest.raises(ModelFormatError, match=text):
            fastrnn.from_torch(written, example)


@pytest.mark.parametrize(
    "body",
    [
        "x += 1\nx[:, :, 0] *= 2\nreturn self.rnn(x)[0]",
        "x.mul_(2)\nreturn self.rnn(x)[0]",
        "x[:, 0] = 0\nreturn self.rnn(x)[0]",
    ],
)
def test_a_module_that_writes_into_its_input_leaves_the_example_alone(body):
    written, example = module("x", body), X.numpy().copy()
    model = fastrnn.from_torch(written, example if "mul_" in body else torch.from_numpy(example))
    np.testing.assert_array_equal(example, X.numpy())
    x = torch.randn(3, 5, 4)
    with torch.no_grad():
        want = written(x.clone())
    np.testing.assert_allclose(model(x.numpy()), want.numpy(), rtol=1e-5, atol=1e-5)


class Buffered(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("h", torch.zeros(1, 2, 4))
        self.inner = nn.Module()
        self.inner.past = [torch.zeros(2, 1, 4)]
        self.count = 0
        self.box = {}


STATES = {
    "an attribute": ("y, self.h = self.rnn(x, getattr(self, 'h', None))\nreturn y", "self.h", Base),
    "a buffer": ("y, n = self.rnn(x, self.h)\nself.h.copy_(n)\nreturn y", "self.h", Buffered),
    "a list of an inner module": (
        "y = self.rnn(torch.cat([self.inner.past[-1], x], 1))[0]\nself.inner.past[-1] = x[:, -1:]\nreturn y",
        "self.inner.past", Buffered,
    ),
    "a counter": ("self.count += 1\nreturn self.rnn(x)[0] * self.count", "self.count", Buffered),
    "a dict": ("y, self.box['h'] = self.rnn(x, self.box.get('h'))\nreturn y", "self.box", Buffered),
}  # fmt: skip


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", STATES)
def test_a_state_that_the_module_keeps_is_refused_by_name(name, given):
    body, where, base = STATES[name]
    written = module("x", body, base)
    if name == "an attribute":
        written.h = None
    before = {k: v for k, v in vars(written).items() if k not in ("_parameters", "_buffers", "_modules")}
    # without an example, Python code that looks into a traced value can't be traced
    text = rf"the module keeps its state in {where}; a model has no hidden state: make it an argument of forward"
    with pytest.raises((UnsupportedError, ModelFormatError), match=text if given else "state in|pass example="):
        fastrnn.from_torch(written, X if given else None)
    assert all(vars(written)[k] is v for k, v in before.items())  # and the module is as it was
    assert written.count == 0 if base is Buffered else True


def test_what_a_module_only_notes_down_is_no_state():
    body = "y, self.h = self.rnn(x)\nself.calls = getattr(self, 'calls', 0) + 1\nreturn y"
    written = module("x", body)
    for example in (X, None):
        agrees(fastrnn.from_torch(written, example), written, torch.randn(3, 5, 4))


def test_random_numbers_are_refused():
    written = module("x", "self.noise = torch.randn(4)\nreturn self.rnn(x + self.noise)[0]")
    with pytest.raises(UnsupportedError, match="returns other numbers each time"):
        fastrnn.from_torch(written, X)


UNFOLD = {
    "samples": ("return self.rnn(x.unfold(-1, 4, 4))[0]", (2, 28), (3, 41)),
    "samples that overlap": ("return self.rnn(x.unfold(1, 4, 2))[0]", (2, 28), (1, 33)),
    "steps": ("return x.unfold(1, 3, 2)", (2, 9, 4), (3, 12, 4)),
    "steps of channels": ("return self.lin(x.unfold(2, 4, 1).mean(1))", (2, 3, 9), (3, 3, 14)),
    "one axis": ("return self.lin(x.unfold(0, 4, 3))", (19,), (30,)),
}


@pytest.mark.parametrize("name", UNFOLD)
def test_unfold(name):
    body, shape, other = UNFOLD[name]
    written = module("x", body)
    model = fastrnn.from_torch(written, torch.randn(shape))
    agrees(model, written, torch.randn(shape))
    agrees(model, written, torch.randn(other))
    if name.startswith("samples"):
        assert "traced" in model.notes[0]
        x = np.random.default_rng(0).normal(size=(2, 40)).astype(np.float32)
        stream = model.stream(batch_size=2)
        parts = [stream.push(x[:, :11]), stream.push(x[:, 11:12]), stream.push(x[:, 12:])]
        np.testing.assert_array_equal(np.concatenate(parts, 1), model(x))


class Packed(nn.Module):
    def __init__(self, rnn, last, sorted_):
        super().__init__()
        self.rnn, self.last, self.sorted = rnn, last, sorted_

    def forward(self, x, lengths):
        first = self.rnn.batch_first
        p = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=first, enforce_sorted=self.sorted)
        y, h = self.rnn(p)
        h = h[0] if isinstance(self.rnn, nn.LSTM) else h
        return h[-1] if self.last else nn.utils.rnn.pad_packed_sequence(y, batch_first=first)[0]


RNNS = {
    "gru": lambda: nn.GRU(4, 5, batch_first=True),
    "lstm both ways": lambda: nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True),
    "rnn, time first": lambda: nn.RNN(4, 5, nonlinearity="relu"),
}


class OverPadded(nn.Module):
    """What is computed over time from a padded result; total: as long as the input."""

    def __init__(self, what, total):
        super().__init__()
        self.rnn, self.what, self.total = nn.GRU(4, 5, batch_first=True), what, total

    def forward(self, x, lengths):
        p = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        more = {"total_length": x.shape[1]} if self.total else {}
        y = nn.utils.rnn.pad_packed_sequence(self.rnn(p)[0], batch_first=True, **more)[0]
        return self.what(y)


@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("what", [lambda y: y.mean(1), lambda y: y[:, -1], lambda y: y.flip(1)[:, 0]])
def test_a_padded_result_over_time(what, total):
    """torch cuts it to the longest row, so its last step and its mean depend on the lengths, unless it is told how long
    to be. The example's longest row is shorter than the sequence, or as long."""
    torch.manual_seed(3)
    for lengths in ([4, 3, 2], [6, 3, 2]):
        module, example = OverPadded(what, total).eval(), (torch.randn(3, 6, 4), torch.tensor(lengths))
        if not total:
            with pytest.raises(fastrnn.UnsupportedError, match=r"Pass total_length=x\.shape\[1\] to pad_packed"):
                fastrnn.from_torch(module, example)
            continue
        model = fastrnn.from_torch(module, example)
        for steps, rows in ((6, lengths), (9, [5, 2, 8])):
            x = torch.randn(3, steps, 4)
            with torch.no_grad():
                want = module(x, torch.tensor(rows)).numpy()
            np.testing.assert_allclose(model.run(x.numpy(), np.array(rows))[0], want, atol=2e-6)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", RNNS)
def test_packed_sequences(name, last):
    torch.manual_seed(5)
    for in_order in (False, True):
        written = Packed(RNNS[name](), last, in_order).eval()
        axes = (0, 1) if written.rnn.batch_first else (1, 0)
        example = (torch.randn(2, 7, 4).transpose(0, axes[0]), torch.tensor([7, 4]))
        model = fastrnn.from_torch(written, example)
        assert names(model)[0] == ["x", "lengths"]
        assert model.notes[0] == "the module was traced by torch.fx"
        agrees(model, written, *example)
        lengths = torch.tensor([9, 5, 1]) if in_order else torch.tensor([2, 9, 5])
        agrees(model, written, torch.randn(3, 9, 4).transpose(0, axes[0]), lengths)


QUIET = """
import torch, fastrnn, warnings
from torch import nn
class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 4, batch_first=True)
class Loop(Stateful):
    def forward(self, x):
        out, h = [], torch.zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            h = torch.tanh(x[:, t] + h)
            out.append(h)
        return torch.stack(out, 1)
class Lengths(Stateful):
    def forward(self, x, lengths):
        p = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        assert x.shape[-1] == 4
        return nn.utils.rnn.pad_packed_sequence(self.rnn(p)[0], batch_first=True)[0]
class Odd(Stateful):
    def forward(self, x):
        return x * 2 if float(x.sum()) > 0 else torch.linalg.inv(x @ x.mT)
x = torch.randn(2, 7, 4)
for module, example in ((nn.GRU(4, 4), None), (nn.LSTM(4, 4, proj_size=2), x), (Loop(), x),
                        (Lengths(), (x, torch.tensor([7, 4]))), (Odd(), -x)):
    try:
        fastrnn.from_torch(module, example)
    except fastrnn.FastRNNError as error:
        pass
script = torch.jit.trace(Loop(), x)
try:
    fastrnn.from_torch(script, x)
except fastrnn.FastRNNError as error:
    pass
"""


def test_nothing_of_torch_is_printed():
    """Tracing a script and torch's deprecation of it warn by themselves: that part is told not to."""
    text = QUIET.replace("script = ", "warnings.simplefilter('ignore')\nscript = ")
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_modules_that_hold_no_numbers_say_so():
    with pytest.raises(ModelFormatError, match=r"its weight_ih_l0 is on the meta device.*load its weights first"):
        fastrnn.from_torch(nn.GRU(3, 4, device="meta"))
    with pytest.raises(ModelFormatError, match=r"its 0\.weight has no size yet: call the module once"):
        fastrnn.from_torch(nn.Sequential(nn.LazyLinear(3)))


def test_weights_that_are_shared_or_parametrised():
    torch.manual_seed(0)
    written = module("x", "return self.lin(self.rnn(x)[0])")
    written.lin.weight = nn.Parameter(written.rnn.weight_hh_l0[:4])
    nn.utils.parametrizations.weight_norm(written.lin)
    old = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    old[0] = torch.nn.utils.spectral_norm(old[0])
    old(X)  # a weight with a history, which torch refuses to copy
    for one in (written, old):
        one.eval()
        agrees(fastrnn.from_torch(one, X), one, torch.randn(3, 5, 4))
