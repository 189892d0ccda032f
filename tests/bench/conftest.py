"""Engines that do nothing, for tests of how the benchmark runs them."""

import textwrap

import pytest

from fastrnn.bench import entrants

STUB = """
import sys
import time
import numpy as np

def version():
    return "stub 1.0"

def candidates(job, engine, threads):
    print("libraries print")
    return [Stub(job)]

class Stub:
    name = "stub"
    def __init__(self, job):
        self.job = job
    def calls(self, n):
        time.sleep(1e-5 * n)
    def answer(self, x):
        return np.load(self.job["expected"]) + OFFSET
"""


@pytest.fixture
def engine_file(tmp_path):
    """Write an engine's file; its path."""

    def write(text, name="on_stub.py"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return str(tmp_path / name)

    return write


@pytest.fixture
def stubs(monkeypatch, engine_file):
    """ENGINES replaced by stubs that answer with these offsets; None: an engine that is not installed."""

    def install(**offsets):
        files = {}
        for name, offset in offsets.items():
            text = "import no_such_library" if offset is None else STUB + f"\nOFFSET = {offset}\n"
            files[name] = engine_file(text, f"on_{name}.py")
        monkeypatch.setattr(entrants, "ENGINES", files)

    return install
