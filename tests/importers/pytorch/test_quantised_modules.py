"""Modules after PyTorch's quantize_dynamic: their own integers, and answers near those of the float module."""

import numpy as np
import pytest

import fastrnn

torch = pytest.importorskip("torch")
nn = torch.nn
quantization = pytest.importorskip("torch.ao.quantization")

pytestmark = [pytest.mark.any_isa, pytest.mark.filterwarnings("ignore")]  # torch says that it moves to another package


class Net(nn.Module):
    def __init__(self, kind="LSTM", layers=1, both=False):
        super().__init__()
        self.rnn = getattr(nn, kind)(64, 96, layers, batch_first=True, bidirectional=both)
        self.out = nn.Linear(192 if both else 96, 200)

    def forward(self, x):
        y, _ = self.rnn(x)
        return torch.relu(self.out(y))


def quantised(module, **options):
    if "quantized" not in str(torch.backends.quantized.supported_engines) and not torch.backends.quantized.engine:
        pytest.skip("this torch has no engine for quantised layers")
    return quantization.quantize_dynamic(module, {nn.LSTM, nn.GRU, nn.Linear}, **options)


def values(rows=4, steps=12):
    return torch.randn(rows, steps, 64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("options", [{}, {"layers": 2, "both": True}, {"kind": "GRU"}], ids=["lstm", "deep", "gru"])
def test_the_layers_hold_the_integers_of_the_module(options):
    torch.manual_seed(1)
    module = Net(**options).eval()
    small, x = quantised(module), values()
    with torch.no_grad():
        exact, theirs = module(x).numpy(), small(x).numpy()
    model = fastrnn.from_torch(small, x)
    assert model.precision == "int8"
    y = model(x.numpy())
    rms = lambda a: np.sqrt(((a - exact) ** 2).mean())  # noqa: E731
    assert 0 < rms(y) < rms(theirs)
    (linear,) = (n for n in model.graph.nodes if n.op == "linear")
    weight = small.out.weight()
    np.testing.assert_array_equal(model.graph.constants[linear.inputs[1]], weight.int_repr().numpy().T)
    scale = model.graph.constants[linear.inputs[3]]
    np.testing.assert_array_equal(scale, np.full(200, weight.q_scale(), np.float32))
    wide = fastrnn.from_torch(small, x, precision="float32")
    assert wide.precision == "float32"
    assert rms(wide(x.numpy())) < rms(theirs)


def test_single_cells_and_weights_a_channel():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = nn.GRUCell(64, 96), nn.Linear(96, 200)

        def forward(self, x, h):
            h = self.cell(x, h)
            return self.out(h), h

    torch.manual_seed(1)
    config = quantization.per_channel_dynamic_qconfig
    module = Cell().eval()
    small = quantization.quantize_dynamic(
        module, {nn.Linear: config, nn.GRUCell: quantization.default_dynamic_qconfig}, dtype=torch.qint8
    )
    x, h = values()[:, 0], torch.zeros(4, 96)
    with torch.no_grad():
        want = [t.numpy() for t in module(x, h)]
    model = fastrnn.from_torch(small, (x, h))
    got = model.run(x=x.numpy(), h=h.numpy())
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=0.02)
    (linear,) = (n for n in model.graph.nodes if n.op == "linear" and "out" in n.name)
    np.testing.assert_array_equal(
        model.graph.constants[linear.inputs[3]], small.out.weight().q_per_channel_scales().numpy().astype(np.float32)
    )


def test_the_module_is_not_changed():
    torch.manual_seed(1)
    small, x = quantised(Net().eval()), values()
    with torch.no_grad():
        before = small(x)
        fastrnn.from_torch(small, x)
        assert torch.equal(small(x), before)
    assert "DynamicQuantizedLSTM" in str(small)
