"""Damaged copies of requests for the server, without atheris: a fixed seed, the same copies in every run."""

import importlib.util
import random
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
pytest.importorskip("grpc", reason="no grpc: pip install 'fastrnn[serve]'")
from test_fuzz_load import damaged

COPIES = 100  # of each seed

pytestmark = [pytest.mark.any_isa, pytest.mark.filterwarnings("ignore")]  # of numbers that overflow


@pytest.fixture(scope="module")
def target():
    path = Path(__file__).resolve().parent / "fuzz" / "fuzz_requests.py"
    spec = importlib.util.spec_from_file_location("fuzz_requests", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    loop, engine = module.served()
    loop.run_until_complete(engine.close())
    loop.close()


def test_damage_is_found_or_harmless(target):
    for i, data in enumerate(target.seeds()):
        assert target.one_input(data), f"seed {i} is not answered"
        rng = random.Random(i)
        found = sum(not target.one_input(data[:1] + damaged(data[1:], rng)) for _ in range(COPIES))
        assert found > COPIES // 10, f"of seed {i}"
