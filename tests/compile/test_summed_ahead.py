"""Input halves that are summed ahead of their steps, where a cell is large enough for that to pay."""

import numpy as np
import pytest
from test_model_stream import some, stack

from fastrnn.model import Model


@pytest.mark.parametrize(
    ("kind", "H", "batch"), [("lstm", 128, 2), ("gru", 160, 2), ("rnn", 1024, 3), ("rnn", 1024, 16), ("gru", 1024, 32)]
)
def test_input_halves_summed_ahead_give_the_same_bits(kind, H, batch):
    """Sizes at which few rows have the input half of many steps summed at once; ragged rows end within such a run."""
    model = Model(stack(kind, I=H, H=H, head=False))
    plan = model._core._program("run").plan
    assert all(op.fields["hoisted_rows"] >= batch for op in plan.ops if op.kind == "cell")
    lengths = [1 + (5 * row) % 11 for row in range(batch)]
    x = some(batch, max(lengths), H)
    y, ragged = model(x), model(x, lengths=lengths)
    s = model.stream(batch_size=batch)
    for t in range(x.shape[1]):
        assert np.array_equal(s.step(x[:, t]), y[:, t])
    for row, n in enumerate(lengths):
        assert np.array_equal(ragged[row, :n], y[row, :n])
