"""fastrnn.machine.workers: which threads share calls, OpenMP's absence, forks, and the same bits everywhere."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from test_model_stream import some, stack

import fastrnn
from fastrnn.errors import FastRNNError
from fastrnn.machine import _isa, workers
from fastrnn.model import Model

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parents[2]
KINDS = ("team", "openmp")


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """No variable is set, and what a test chooses ends with it."""
    monkeypatch.delenv("FASTRNN_THREADING", raising=False)
    monkeypatch.setattr(workers, "_chosen", None)
    workers.prepare()
    yield monkeypatch
    monkeypatch.undo()
    workers.prepare()


@pytest.fixture(scope="module")
def has_openmp():
    if workers.threading_info({"FASTRNN_THREADING": "openmp"}).note:
        pytest.skip("no OpenMP in this build")


@pytest.fixture
def openmp(has_openmp):
    fastrnn.set_threading("openmp")


def used(work) -> tuple[int, int]:
    """How many calls OpenMP's workers, and our own, shared in work()."""
    before = _isa.shared_calls()
    work()
    after = _isa.shared_calls()
    return after[0] - before[0], after[1] - before[1]


def fresh(code: str, **environ: str) -> subprocess.CompletedProcess:
    """A new interpreter that runs the code."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environ
    command = [sys.executable, "-c", f"import numpy as np, fastrnn\n{code}"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


MODEL = """
W = np.ones((512, 128), np.float32) / 128
model = fastrnn.from_arrays("lstm", W=W, R=W, order="iofc", threads=2)
y = model(np.ones((64, 40, 128), np.float32))
"""

# A call of 11 Gflop that may use two threads and can't have them.
REFUSED = """
import ctypes, os, resource, sys, threading
from fastrnn.machine import _isa
model = fastrnn.from_arrays("lstm", W=np.ones((4096, 64), np.float32) / 64, R=np.ones((4096, 1024), np.float32) / 1024,
                            threads=2)
x = np.ones((64, 20, 64), np.float32)
limit = ctypes.CDLL(_isa.__file__).frnn_set_thread_limit
limit(1)
want = model(x)  # alone; the memory of the next call is there
limit(0)
{limit}
try:
    threading.Thread(target=int).start()
except (RuntimeError, MemoryError):
    pass
else:
    print("skip: the limit does not hold")
    sys.exit()
print(np.array_equal(model(x), want), *_isa.shared_calls())
resource.setrlimit(which, before)
print(np.array_equal(model(x), want), sum(_isa.shared_calls()) - 1)
"""
LIMITS = {
    "processes": """
if os.getuid() == 0:
    os.setresuid(65534, 65534, 0)  # root is not limited
which = resource.RLIMIT_NPROC
before = resource.getrlimit(which)
resource.setrlimit(which, (1, before[1]))
""",
    "memory": """
which = resource.RLIMIT_AS
before = resource.getrlimit(which)
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(which, (size + (7 << 20), before[1]))  # less than the stack of a thread, more than the answer
""",
}


def test_this_build_has_openmp_if_the_compiler_has(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    (tmp_path / "try.c").write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
    command = [compiler, "-fopenmp", str(tmp_path / "try.c"), "-o", str(tmp_path / "try")]
    if compiler is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs a C compiler with OpenMP")
    assert workers.threading_info({"FASTRNN_THREADING": "openmp"}).note == ""


class TestChoice:
    def test_the_default_is_the_team_everywhere(self, has_openmp):
        assert workers.threading_info({}) == workers.ThreadingInfo("auto", "default", "team", "team", "")
        model = Model(stack("lstm", H=256), threads=2)
        x = some(128, 64, 5)  # 13 Gflop
        assert used(lambda: model(x)) == (0, 1)
        pushed = used(lambda: model.stream(batch_size=128).push(x))
        assert pushed[0] == 0 < pushed[1]
        assert used(lambda: model(x[:, :32])) == (0, 1)

    def test_a_call_without_a_loop_worth_sharing_wakes_nobody(self):
        model = Model(stack("lstm", I=64, H=64), threads=2)
        x = some(1, 100, 64)  # 13 Mflop, but each step has 130 thousand
        assert used(lambda: [model(x) for _ in range(20)]) == (0, 0)

    @pytest.mark.parametrize(("kind", "shared"), [("team", (0, 1)), ("openmp", (1, 0))])
    def test_a_choice_holds_for_every_call(self, has_openmp, kind, shared):
        fastrnn.set_threading(kind)
        model = Model(stack("lstm", H=256), threads=2)
        for x in (some(128, 64, 5), some(64, 4, 5)):
            assert used(lambda x=x: model(x)) == shared
        info = fastrnn.cpu_info().threading
        assert (info.kind, info.chosen_by, info.steps, info.runs) == (kind, "set_threading", kind, kind)

    def test_it_holds_from_the_next_call_on(self, has_openmp):
        model, x = Model(stack("lstm", H=256), threads=2), some(64, 4, 5)
        for kind, shared in (("openmp", (1, 0)), ("team", (0, 1)), ("auto", (0, 1)), ("openmp", (1, 0))):
            fastrnn.set_threading(kind)
            assert used(lambda: model(x)) == shared

    def test_the_variable(self, settings, has_openmp):
        settings.setenv("FASTRNN_THREADING", "openmp")
        model = Model(stack("lstm", H=256), threads=2)
        assert used(lambda: model(some(64, 4, 5))) == (1, 0)
        info = fastrnn.cpu_info().as_dict()["threading"]
        assert info == {
            "kind": "openmp", "chosen_by": "FASTRNN_THREADING", "steps": "openmp", "runs": "openmp", "note": "",
        }  # fmt: skip
        assert "workers  openmp (FASTRNN_THREADING): steps openmp, runs openmp" in str(fastrnn.cpu_info())
        fastrnn.set_threading("team")  # the program has the last word
        assert used(lambda: model(some(64, 4, 5))) == (0, 1)

    @pytest.mark.parametrize("kind", ["OpenMP", "tbb", ""])
    def test_an_unknown_kind_is_an_error_and_changes_nothing(self, settings, kind):
        fastrnn.set_threading("team")
        with pytest.raises(FastRNNError, match="set_threading: expected one of 'auto', 'team', 'openmp', got"):
            fastrnn.set_threading(kind)
        assert fastrnn.cpu_info().threading.kind == "team"

    def test_an_unknown_kind_in_the_variable_is_an_error(self, settings):
        settings.setenv("FASTRNN_THREADING", "tbb")
        for use in (fastrnn.cpu_info, lambda: Model(stack("rnn"), threads=2)):
            with pytest.raises(FastRNNError, match=r"FASTRNN_THREADING: expected one of .*, got 'tbb'"):
                use()
        settings.setenv("FASTRNN_THREADING", " ")
        assert fastrnn.cpu_info().threading.chosen_by == "default"


class TestWithoutOpenMP:
    """A machine without libgomp: the module of OpenMP can't be imported."""

    GONE = 'import sys; sys.modules["fastrnn.machine._openmp"] = None\n'

    def test_models_use_the_team(self):
        code = "print(y[0, -1, 0], *fastrnn.machine._isa.shared_calls(), fastrnn.cpu_info().to_json(), sep='\\n')"
        done = fresh(self.GONE + MODEL + code)
        assert done.returncode == 0, done.stderr
        _, openmp, own, info = done.stdout.splitlines()
        assert (openmp, own) == ("0", "1")
        info = json.loads(info)["threading"]
        assert info == {"kind": "auto", "chosen_by": "default", "steps": "team", "runs": "team", "note": ""}

    def test_who_asks_for_openmp_is_told(self):
        done = fresh(self.GONE + "fastrnn.set_threading('openmp')")
        assert 'set_threading asks for "openmp": OpenMP can\'t be loaded (' in done.stderr
        assert 'Use "auto" or "team"' in done.stderr
        done = fresh(self.GONE + MODEL, FASTRNN_THREADING="openmp")
        assert 'FastRNNError: FASTRNN_THREADING asks for "openmp": OpenMP' in done.stderr

    @pytest.mark.parametrize(("threads", "kind"), [(1, "auto"), (2, "auto"), (2, "team")])
    def test_openmp_is_not_loaded_if_nobody_needs_it(self, threads, kind):
        code = MODEL.replace("threads=2", f"threads={threads}") + "print('fastrnn.machine._openmp' in sys.modules)"
        done = fresh("import sys\n" + code, FASTRNN_THREADING=kind)
        assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_every_kind_gives_the_same_bits(has_openmp, cell):
    """By rows, by blocks, two phases of a GRU, whole runs, streams and pools."""
    graph = stack(cell, H=130, I=40)
    one = Model(graph, threads=1)
    for shape in ((1, 300, 40), (13, 60, 40), (200, 20, 40)):
        x = some(*shape)
        want = one(x)
        for kind in KINDS:
            fastrnn.set_threading(kind)
            for threads in (2, 3, 8):
                model = Model(graph, threads=threads)
                pool = model.pool(capacity=shape[0])
                slots = [pool.open() for _ in range(shape[0])]
                assert np.array_equal(model(x), want)
                assert np.array_equal(model.stream(batch_size=shape[0]).push(x), want)
                assert np.array_equal(np.stack(pool.push(slots, x)), want)


class TestThreads:
    def test_a_crowd_of_callers_does_not_make_a_crowd_of_workers(self, openmp):
        """libgomp makes workers for each thread that calls; only four threads get any, until they end."""
        model, x = Model(stack("lstm", H=256), threads=3), some(64, 4, 5)
        want, right, crowd = model(x), [], []  # this thread is one of the four
        called, go_on = threading.Semaphore(0), threading.Event()

        def call():
            right.append(np.array_equal(model(x), want))
            called.release()
            go_on.wait(60)

        for _ in range(10):
            crowd.append(threading.Thread(target=call))
            crowd[-1].start()
            assert called.acquire(timeout=60)
        alive = len(os.listdir("/proc/self/task"))
        go_on.set()
        for thread in crowd:
            thread.join()
        others = len(os.listdir("/proc/self/task"))
        assert right == [True] * 10
        assert alive - others <= 10 + 3 * 2  # the callers, and the workers of three of them
        later = threading.Thread(target=lambda: right.append(used(lambda: model(x))))
        later.start()
        later.join()
        assert right[-1] == (1, 0)  # their places are free again

    def test_a_limit_holds_for_openmp(self, openmp):
        import ctypes

        library = ctypes.CDLL(_isa.__file__)
        model, x = Model(stack("lstm", H=256), threads=2), some(64, 4, 5)
        try:
            library.frnn_set_thread_limit(1)
            assert used(lambda: model(x)) == (0, 0)
        finally:
            library.frnn_set_thread_limit(0)
        assert used(lambda: model(x)) == (1, 0)

    def test_settings_of_openmp_are_left_alone(self, has_openmp):
        """Of other libraries that share libgomp: what they set stays, and ours does not depend on it."""
        code = "import ctypes, sys\nomp = ctypes.CDLL('libgomp.so.1')\nomp.omp_set_num_threads(7)\n"
        code += MODEL + "print(omp.omp_get_max_threads(), *fastrnn.machine._isa.shared_calls())"
        done = fresh(code, FASTRNN_THREADING="openmp", OMP_NUM_THREADS="5")
        assert done.stdout == "7 1 0\n", done.stderr

    @pytest.mark.parametrize(
        "variables", [{"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true"}, {"OMP_WAIT_POLICY": "passive"}]
    )
    def test_openmp_may_give_fewer_threads(self, has_openmp, variables):
        code = MODEL + "print(float(y.sum()), *fastrnn.machine._isa.shared_calls())"
        usual, few = fresh(code, FASTRNN_THREADING="team"), fresh(code, FASTRNN_THREADING="openmp", **variables)
        assert few.stdout.split() == [usual.stdout.split()[0], "1", "0"], few.stderr

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits are those of Linux")
    @pytest.mark.parametrize("kind", ["auto", "openmp"])
    @pytest.mark.parametrize("limit", LIMITS)
    def test_a_thread_that_the_system_refuses(self, has_openmp, limit, kind):
        """libgomp ends the process if it can't make one."""
        done = fresh(REFUSED.format(limit=LIMITS[limit]), FASTRNN_THREADING=kind)
        if done.stdout.startswith("skip"):
            pytest.skip(done.stdout)
        assert (done.returncode, done.stdout) == (0, "True 0 1\nTrue 1\n"), done.stderr


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
class TestFork:
    @staticmethod
    def child(work) -> str:
        """What work() returns in a forked child."""
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        process = context.Process(target=lambda: queue.put(work()))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        return queue.get()

    def test_a_child_uses_a_team_of_its_own(self, openmp):
        model, x = Model(stack("lstm", H=256), threads=2), some(128, 64, 5)
        want = model(x)

        def work():
            shared = used(lambda: model(x))
            again = Model(model.graph, threads=2)(x)  # not an error, although it asks for OpenMP
            info = fastrnn.cpu_info().threading
            return np.array_equal(again, want), shared, info.steps, info.runs, info.note

        note = "this process was forked without starting a program, and OpenMP does not survive that"
        assert self.child(work) == (True, (0, 1), "team", "team", note)
        assert used(lambda: model(x)) == (1, 0)  # nothing has changed in the parent

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells whether a process was forked")
    def test_a_child_that_loads_fastrnn_first_does_not_use_openmp(self, has_openmp):
        """Another library may have used libgomp in the parent."""
        code = "import os\nif os.fork():\n    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
        done = fresh(code + MODEL + "print(*fastrnn.machine._isa.shared_calls())", FASTRNN_THREADING="openmp")
        assert (done.returncode, done.stdout) == (0, "0 1\n"), done.stderr

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_fork_in_the_middle_of_a_call(self, has_openmp, kind):
        """A signal handler forks while several threads share a call. The child has none of them, and ends the call
        alone, with the same bits."""
        fastrnn.set_threading(kind)
        model = Model(stack("lstm", I=64, H=128), threads=2)
        x = some(64, 1, 64).repeat(2000, 1)
        want, forked = model(x), []
        before = signal.signal(signal.SIGALRM, lambda *_: forked.append(os.fork()))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.04)
            y = model(x)
            if forked == [0]:
                os._exit(0 if np.array_equal(y, want) and np.array_equal(model(x), want) else 9)
        finally:
            if forked == [0]:
                os._exit(8)  # an exception in the child must not go on in pytest
            signal.signal(signal.SIGALRM, before)
        assert len(forked) == 1, "the call was too short"
        watchdog = threading.Timer(60, os.kill, (forked[0], signal.SIGKILL))
        watchdog.start()
        assert os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]) == 0
        watchdog.cancel()
        assert np.array_equal(y, want)
