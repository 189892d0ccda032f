"""The sizes that the error of a refused file recommends are found without much work."""

import io
import warnings

import pytest

import fastrnn

torch = pytest.importorskip("torch")


class Nested(torch.nn.Module):
    def forward(self, x):
        h = torch.zeros(x.size(0), 4)
        for t in range(x.size(1)):
            h = torch.tanh(h + x[:, t])
            j = 0
            while j < t + 1:
                h = h * 0.9
                j += 1
        return h


def test_a_nested_loop_is_not_written_out_for_minutes():
    """512 steps are 131,000 copies of the inner body, so small numbers are tried first. The file loads with the one
    that the error names."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            torch.jit.script(Nested()), (torch.randn(2, 5, 4),), file, dynamo=False, input_names=["x"],
            dynamic_axes={"x": {0: "B", 1: "T"}},
        )  # fmt: skip
    with pytest.raises(fastrnn.UnsupportedError, match=r"say sizes=\{'T': 8\}, or --size T=8"):
        fastrnn.load(file.getvalue())
    x = torch.randn(3, 8, 4)
    got = fastrnn.load(file.getvalue(), sizes={"T": 8}).run(x.numpy())[0]
    assert abs(got - Nested()(x).numpy()).max() < 1e-6
