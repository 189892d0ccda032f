"""A small model, and what its lone streams answer."""

import numpy as np
import pytest

import fastrnn


@pytest.fixture(scope="session")
def model():
    rng = np.random.default_rng(7)
    W, R = (rng.normal(size=(24, n)).astype(np.float32) * 0.4 for n in (5, 8))
    return fastrnn.from_arrays("gru", W=W, R=R, order="zrh", threads=1)


@pytest.fixture(scope="session")
def frames():
    """float32 [400, 5]."""
    return np.random.default_rng(8).normal(size=(400, 5)).astype(np.float32)


@pytest.fixture(scope="session")
def alone(model, frames):
    """What one stream answers to the frames, [400, 8]."""
    return model.stream().push(frames)
