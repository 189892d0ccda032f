"""What a call costs besides its arithmetic: no allocation, no GIL where it matters, threads that sleep between."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from test_model_stream import some, stack

from fastrnn.graph import Graph
from fastrnn.model import Model

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WAITS = """
import os, signal, sys
import numpy as np
import fastrnn

fastrnn.load(sys.argv[1], threads=2)(np.zeros((64, 40, 5), np.float32))
print(len(os.listdir("/proc/self/task")), "threads")
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.kill(os.getpid(), signal.SIGTERM)
print(int(signal.sigtimedwait({signal.SIGTERM}, 20).si_signo))
"""
COUNT = """
import ctypes, itertools, sys
import numpy as np
sys.path[:] = {paths!r}
from test_model_stream import some, stack
from test_several_arrays import floats
from fastrnn.model import Model

library = ctypes.CDLL(None)
counting = ctypes.c_int.in_dll(library, "counting")
allocations = ctypes.c_long.in_dll(library, "allocations")
streams = [Model(stack(kind, H=H)).stream(batch) for kind in ("lstm", "gru") for H in (20, 64) for batch in (None, 8)]
for s in streams:
    x, y = (some(5), np.zeros(3, np.float32)) if s.batch_size is None else (some(8, 5), np.zeros((8, 3), np.float32))
    s.step(x, out=y)
    steps = itertools.repeat(None, 1000)
    counting.value = 1
    for _ in steps:
        s.step(x, out=y)
    counting.value = 0
for s, x in ((floats().stream(), lambda: some(6)), (floats().stream(8), lambda: some(8, 6))):
    given = (x(), x()), [x(), x()], dict(a=x(), c=x())
    targets = x(), x()
    for arrays in given:
        s.step(arrays, out=targets)
        steps = itertools.repeat(None, 1000)
        counting.value = 1
        for _ in steps:
            s.step(arrays, out=targets)
        counting.value = 0
pool = streams[0].model.pool(capacity=20)
slots = np.array([pool.open() for _ in range(20)])
ticks = [(slots[:n], some(n, 5), np.zeros((n, 3), np.float32)) for n in (20, 3, 7, 1)]
for tick in ticks:
    pool.step(*tick[:2], out=tick[2])
steps = iter(ticks * 250)
counting.value = 1
for taken, frames, target in steps:
    pool.step(taken, frames, out=target)
counting.value = 0
seen = allocations.value
counting.value = 1
s.step(arrays)
counting.value = 0
print(seen, allocations.value - seen)
"""


@pytest.mark.any_isa
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts through glibc's allocator")
def test_a_step_allocates_nothing(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sysconfig.get_config_var("SOABI").endswith("musl"):
        pytest.skip("needs a C compiler and glibc")
    library = tmp_path / "count.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "count_allocations.c"], check=True)
    # PYTHONMALLOC=malloc: Python's own small objects are counted too.
    env = os.environ | {"LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc"}
    done = subprocess.run(
        [sys.executable, "-c", COUNT.format(paths=sys.path)], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    with_out, without_out = map(int, done.stdout.split())
    assert with_out == 0  # of 15,000 steps
    assert without_out > 0  # the counter does count: a step without `out` makes its result


def runs(command, program) -> bool:
    """Whether this compiler makes a program that runs here."""
    made = subprocess.run(command, capture_output=True)
    return made.returncode == 0 and subprocess.run([program], capture_output=True).returncode == 0


def busy_seconds(work) -> tuple[float, int]:
    """Run `work` in a thread; return its seconds and how often this thread got to count meanwhile."""
    done, count = threading.Event(), 0

    def run():
        work()
        done.set()

    thread = threading.Thread(target=run)
    start = time.perf_counter()
    thread.start()
    while not done.is_set():
        count += 1
    thread.join()
    return time.perf_counter() - start, count


@pytest.mark.any_isa
def test_the_gil_is_released_in_long_calls():
    """While one call runs for a while, another Python thread goes on: it would count to a handful otherwise."""
    model = Model(stack(H=256), threads=1)
    x = some(4, 400, 5)
    model(x)
    # The interpreter hands the GIL over every 5 ms; asking for that only every 10 s leaves the release by the call.
    before = sys.getswitchinterval()
    sys.setswitchinterval(10)
    try:
        _, count = busy_seconds(lambda: model(x))
    finally:
        sys.setswitchinterval(before)
    assert count > 1000


class TestThreads:
    @pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
    def test_any_number_of_threads_gives_the_same_bits(self, kind):
        graph = stack(kind, H=130, I=40)
        one = Model(graph, threads=1)
        for shape in ((1, 300, 40), (13, 60, 40), (200, 20, 40)):
            x = some(*shape)
            y = one(x)
            for threads in (2, 3, 8):
                model = Model(graph, threads=threads)
                assert np.array_equal(model(x), y)
                assert np.array_equal(model.stream(batch_size=shape[0]).push(x), y)

    def test_before_reset_takes_two_phases_in_step(self):
        """A GRU whose reset gate comes before the product: no thread may start n before all of r is there."""
        graph = stack("gru", H=200, I=40)
        x = some(64, 50, 40)
        want = Model(graph, threads=1)(x)
        for _ in range(5):
            assert np.array_equal(Model(graph, threads=4)(x), want)

    def test_two_callers_at_once(self):
        graph, got = stack("lstm", H=200), [None] * 4
        x = some(64, 40, 5)
        want = Model(graph, threads=1)(x)
        model = Model(graph, threads=2)

        def work(i):
            for _ in range(5):
                got[i] = model(x)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert all(np.array_equal(y, want) for y in got)

    @pytest.mark.any_isa
    def test_nothing_spins_after_a_call(self):
        """Half a second of sleep after a threaded call costs no CPU time. A team that polls would use some of it."""
        model = Model(stack("lstm", H=256), threads=2)
        model(some(64, 40, 5))
        start = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - start < 0.1

    @pytest.mark.any_isa
    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
    def test_a_signal_that_the_program_blocks_does_not_come_to_a_worker(self, tmp_path):
        """A service that waits for SIGTERM by sigwait: a thread that was made before would take it, and end all."""
        Model(stack("lstm", H=256)).save(tmp_path / "model.fastrnn")
        command = [sys.executable, "-c", WAITS, str(tmp_path / "model.fastrnn")]
        env = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}  # NumPy's own take any signal
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"2 threads\n{int(signal.SIGTERM)}\n", "")

    @pytest.mark.any_isa
    @pytest.mark.parametrize("openmp", [False, True])
    def test_the_workers_race_with_nobody(self, tmp_path, openmp):
        """ThreadSanitizer over the C code of both kinds of workers, with three callers that fight for them."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        kernels, program = ROOT / "fastrnn" / "_kernels", tmp_path / "race"
        flags = ["-std=c99", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{kernels}"]
        flags += ["-fopenmp"] if openmp else []
        (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
        if compiler is None or not runs([compiler, *flags, tmp_path / "empty.c", "-o", program], program):
            pytest.skip("needs a C compiler with ThreadSanitizer, and with OpenMP for one half")
        sources = [HERE / "race_team.c", kernels / "threads.c", *([kernels / "openmp.c"] if openmp else [])]
        subprocess.run([compiler, *flags, *sources, "-o", program], check=True)
        done = subprocess.run([program], capture_output=True, text=True, timeout=120)
        kinds = " and of OpenMP" if openmp else ""
        expected = (0, f"all chunks ran once, in calls of our own{kinds}\n", "")
        assert (done.returncode, done.stdout, done.stderr) == expected

    @pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_fork_makes_a_team_of_its_own(self):
        graph, x = stack("lstm", H=256), some(64, 20, 5)
        model = Model(graph, threads=2)
        want = model(x)
        context = multiprocessing.get_context("fork")
        for _ in range(5):
            queue = context.SimpleQueue()
            child = context.Process(target=lambda queue=queue: queue.put(model(x)))
            child.start()
            got = queue.get()
            child.join(30)
            assert child.exitcode == 0
            assert np.array_equal(got, want)
            assert np.array_equal(model(x), want)

    def test_threads_are_asked_for_in_whole_numbers(self):
        from fastrnn import ShapeError

        graph: Graph = stack()
        for threads in (0, -1, 1.5, "2"):
            with pytest.raises(ShapeError, match="threads must be"):
                Model(graph, threads=threads)
        assert Model(graph, threads=3).threads == 3
        assert Model(graph).threads >= 1
