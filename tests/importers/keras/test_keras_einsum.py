"""EinsumDense after a mask."""

import numpy as np
import pytest

import fastrnn

# Keras warns that EinsumDense drops the mask, and NumPy about Keras's arrays.
pytestmark = [pytest.mark.any_isa, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")]


def test_einsum_dense_drops_the_mask():
    """As Keras does: the layer behind it sees every step. Dense hands the mask on."""
    keras = pytest.importorskip("keras")
    L = keras.layers
    keras.utils.set_random_seed(1)
    values = np.random.default_rng(0).standard_normal((2, 6, 5)).astype(np.float32)
    values[0, 4:] = 0
    for make in (lambda: L.EinsumDense("abc,cd->abd", (None, 4)), lambda: L.Dense(4)):
        x = keras.Input((None, 5))
        hidden = make()(L.GRU(8, return_sequences=True)(L.Masking()(x)))
        model = keras.Model(x, L.GRU(4)(hidden))
        got = fastrnn.from_keras(model)(values)
        np.testing.assert_allclose(got, model.predict(values, verbose=0), atol=2e-6)
