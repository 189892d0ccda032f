"""Damaged copies of the fuzz target's seeds, without atheris: a fixed seed, the same copies in every run."""

import importlib.util
import random
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent / "fuzz"
SEEDS = sorted((FOLDER / "corpus").iterdir())
COPIES = 25  # of each seed


def target():
    spec = importlib.util.spec_from_file_location("fuzz_load", FOLDER / "fuzz_load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.one_input


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A copy with some bytes changed, cut out, doubled, or its end lost."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, how = rng.randrange(len(out) or 1), rng.randrange(4)
        if how == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif how == 1:
            del out[at : at + rng.randint(1, 16)]
        elif how == 2:
            out[at:at] = out[at : at + rng.randint(1, 16)]
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out)


@pytest.mark.any_isa
@pytest.mark.filterwarnings("ignore")  # of numbers that overflow, which damage makes
@pytest.mark.parametrize("path", SEEDS, ids=lambda p: p.name)
def test_damage_is_found_or_harmless(path):
    one_input, rng = target(), random.Random(path.name)
    data = path.read_bytes()
    assert one_input(data)
    found = sum(not one_input(damaged(data, rng)) for _ in range(COPIES))
    assert found > COPIES // 4
