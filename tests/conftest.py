"""What all tests share: the folder of published models, Keras on top of torch, and a header that names the seed."""

import os
import signal
from pathlib import Path

import pytest
import rnn_cases

os.environ.setdefault("KERAS_BACKEND", "torch")  # read once, when Keras is first imported
os.environ.setdefault("FASTRNN_TUNE", "off")  # tests leave no measurements in the user's cache

ROOT = Path(__file__).resolve().parent.parent


def pytest_report_header(config):
    isa = os.environ.get("FASTRNN_ISA", "the best there is")
    return f"fastrnn: isa {isa}; {len(rnn_cases.CASES)} RNN cases, seed {rnn_cases.SEED}"


@pytest.fixture(scope="session")
def published_models():
    """The folder of published models, beside the repository; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared" / "models"
    if not folder.is_dir():
        pytest.skip("the published models are not here: they lie in shared/models beside the repository")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    """Ctrl-C works in tests that send it, and in the programs that they start, also where a shell began the run in the
    background and so with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
