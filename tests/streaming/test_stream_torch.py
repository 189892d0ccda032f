"""Models with windows along time as PyTorch exports them: whole against PyTorch, streams against the whole run."""

import io
import warnings

import numpy as np
import pytest
from test_stream_windows import streamed

import fastrnn

torch = pytest.importorskip("torch")
F = torch.nn.functional


class Model(torch.nn.Module):
    """Convolutions, a GRU, and a way of putting them together."""

    def __init__(self, way):
        super().__init__()
        self.way, self.gru = way, torch.nn.GRU(8, 5, batch_first=True)
        self.conv = torch.nn.Conv1d(6, 8, 5, padding=2)
        self.more = torch.nn.Conv1d(8, 8, 3, dilation=2)
        self.up = torch.nn.ConvTranspose1d(8, 8, 4, stride=2, padding=1)

    def forward(self, x):
        y = getattr(self, self.way)(self.conv(x.transpose(1, 2)))
        return self.gru(y.transpose(1, 2))[0]

    def causal(self, x):
        return F.elu(self.more(F.pad(x, (4, 0))))

    def cut(self, x):
        return x[:, :, 4:] + torch.tanh(self.more(x))

    def pooled(self, x):
        return self.up(F.max_pool1d(torch.relu(x), 2))

    def joined(self, x):
        return self.more(torch.cat([torch.zeros(x.shape[0], 8, 4), x], 2))


@pytest.mark.any_isa
@pytest.mark.parametrize(("way", "delay"), [("causal", 2), ("cut", 6), ("pooled", 4), ("joined", 2)])
def test_exported_windows_stream(way, delay):
    torch.manual_seed(0)
    module, file = Model(way).eval(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"x": {0: "batch", 1: "time"}}
        torch.onnx.export(module, (torch.randn(2, 20, 6),), file, dynamo=False, dynamic_axes=axes, input_names=["x"])
    model = fastrnn.load(file.getvalue())
    for T in (20, 33):
        x = np.random.default_rng(T).standard_normal((3, T, 6)).astype(np.float32)
        (whole,) = model.run(x)
        with torch.no_grad():
            np.testing.assert_allclose(whole, module(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5)
        assert streamed(model, x, (1, 0, 6, 2), 3)[0][0].tobytes() == whole.tobytes()
        assert streamed(model, x[1], (4, 3), None)[0][0].tobytes() == whole[1].tobytes()
    assert model.delay == delay
