"""A short run of tools/soak.py, and that it sees what it is there to see."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import soak  # noqa: E402
import soak_parts  # noqa: E402
from soak_streams import MOST_GROWTH, Found, Streams, World  # noqa: E402

pytestmark = [
    pytest.mark.any_isa,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]


def test_a_short_run_finds_nothing():
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, ROOT / "tools" / "soak.py", "--seconds", "8"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in soak.PARTS:
        assert f"\n{part} " in done.stdout
    assert "steps compared, 0 problems" in done.stdout


@pytest.fixture(scope="module")
def spoilt():
    """A world with one wrong bit in the answers to each sequence."""
    world = World()
    world.y[:, 3].view(np.uint32)[:] ^= 1
    return world


class TestWhatIsWrongIsFound:
    @pytest.mark.parametrize("name", ["step", "push"])
    def test_a_wrong_bit(self, name, spoilt):
        found, pool = Found("x"), spoilt.model.pool(10)
        streams = Streams(spoilt, pool, found, 0, 10)
        for i in range(10):
            streams.add(pool.open(), i, 0)
        for _ in range(10):
            getattr(streams, name)()
        assert any(problem.startswith("x: WRONG BITS") for problem in found.problems)

    def test_a_wrong_bit_in_a_child(self, spoilt):
        found, pool = Found("x"), spoilt.model.pool(10)
        streams = Streams(spoilt, pool, found, 0, 10)
        for i in range(5):
            streams.add(pool.open(), i, 0)
        assert soak_parts.in_child(streams, found, os.devnull, pool.snapshot_all(os.devnull)) == 3

    def test_a_wrong_bit_in_a_stream_that_was_taken_over(self, spoilt, tmp_path):
        pool, paths = spoilt.model.pool(soak_parts.SEQUENCES), [str(tmp_path / name) for name in "abc"]
        for _ in range(soak_parts.SEQUENCES):
            pool.open()
        pool.snapshot_all(paths[0])
        assert soak_parts.take_over(spoilt, paths) == 3
        assert soak_parts.take_over(World(), paths) == 0

    def test_a_wrong_bit_of_a_client(self, spoilt, monkeypatch):
        import soak_clients

        monkeypatch.setattr(soak_clients, "World", lambda *a: spoilt if not a else World(*a))
        found = Found("x")
        for _ in range(10):  # beside other tests, some seconds may not be enough
            soak_clients.clients(found, time.monotonic() + 3, "", 0)
            if found.problems:
                break
        assert any("WRONG BITS: paced" in problem for problem in found.problems)

    def test_a_slot_that_leaks(self):
        found, pool = Found("x"), World().model.pool(3)
        pool.close(pool.open())
        found.check_slots(pool)
        assert found.problems == []
        pool.open()
        found.check_slots(pool)
        assert found.problems == ["x: 1 slots leak: 2 opened, 1 closed"]

    @pytest.mark.parametrize(("memory", "descriptors"), [(MOST_GROWTH * 2, 0), (0, 9), (0, 0)])
    def test_memory_or_descriptors_that_grow(self, memory, descriptors):
        found = Found("x")
        found.memory = [100 + memory * i // 40 for i in range(60)]
        found.descriptors = [10 + descriptors * i // 40 for i in range(60)]
        found.check_flat()
        assert len(found.problems) == (memory > 0) + (descriptors > 0)

    def test_memory_of_several_processes(self):
        found = Found("x")
        found.memory = [100 + MOST_GROWTH * 2 * i // 40 for i in range(60)]
        found.descriptors = [10] * 60
        found.check_flat(2)
        assert found.problems == []
        found.memory = [100 + MOST_GROWTH * 4 * i // 40 for i in range(60)]
        found.check_flat(2)
        assert len(found.problems) == 1

    @pytest.mark.parametrize("what", ["descriptors", "tasks", "requests"])
    def test_what_a_server_keeps_without_clients(self, what):
        for module in ("aiohttp", "grpc", "websockets"):
            pytest.importorskip(module, reason=f"no {module}: pip install 'fastrnn[serve]'")
        import soak_serve

        first = {"descriptors": 23, "tasks": 11, "memory": 1}
        found = Found("x")
        soak_serve.check_left(found, first, {**first, "memory": 2, "requests": 1}, 1)
        assert found.problems == []
        soak_serve.check_left(found, first, {**first, what: 40}, 1)
        assert found.problems == [f"x: {what}: {first.get(what, 0)} at first, 40 when all clients have gone"]

    def test_an_error_in_a_thread(self):
        found, stop = Found("x"), threading.Event()
        soak_parts.in_thread(found, stop, lambda: 1 / 0).join()
        assert found.problems == ["x: ZeroDivisionError: division by zero"]

    def test_a_child_that_hangs(self, monkeypatch):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
        monkeypatch.setattr(soak_parts, "PATIENCE", 0.05)
        assert soak_parts.ended(child.pid) is None
        child.returncode = -9  # it has been waited for

    def test_a_part_that_fails(self, capsys):
        process, pipe = soak.start("nothing of this name", 1, "")
        found = soak.result(process, pipe)
        assert found["problems"] == ["nothing of this name: KeyError: 'nothing of this name'"]
        soak.report(found)
        assert "PROBLEM" in capsys.readouterr().out
