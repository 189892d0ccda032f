"""Loops that were written out and divide by the number of their steps."""

import io
import warnings

import numpy as np
import pytest

import fastrnn

torch = pytest.importorskip("torch")


class Divided(torch.nn.Module):
    """An own cell whose input is divided by the number of steps, or by another number."""

    def __init__(self, by):
        super().__init__()
        self.W, self.R, self.by = torch.nn.Linear(4, 5), torch.nn.Linear(5, 5), by

    def forward(self, x):
        h, out = torch.zeros(x.shape[0], 5), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.W(x[:, t] / (self.by or x.shape[1])) + self.R(torch.relu(h)))
            out.append(h)
        return torch.stack(out, 1)


@pytest.mark.parametrize("steps", [3, 4, 6])
@pytest.mark.parametrize("by", [None, 7.5])
def test_a_division_by_the_number_of_steps_keeps_the_length(steps, by):
    """It may be x / T: at another length the file's number would be wrong."""
    torch.manual_seed(1)
    module, file = Divided(by).eval(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(2, steps, 4),), file, dynamo=False, input_names=["x"])
    model = fastrnn.load(file.getvalue())
    assert model.inputs[0].dims == ("batch", "time" if by else steps, 4)
    for length in (steps, 8):
        x = torch.randn(2, length, 4)
        if by is None and length != steps:
            with pytest.raises(fastrnn.ShapeError, match=f"divides by {steps} in each of {steps} steps"):
                model.run(x.numpy())
            continue
        with torch.no_grad():
            np.testing.assert_allclose(model.run(x.numpy())[0], module(x).numpy(), atol=2e-6)
