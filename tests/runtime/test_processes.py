"""Processes: a fork after work neither hangs nor corrupts; streams go on in both, each for itself."""

import contextlib
import gc
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import weakref

import numpy as np
import pytest
from test_model_stream import some, stack

import fastrnn
from fastrnn.machine import forks
from fastrnn.model import Model

pytestmark = pytest.mark.any_isa
X = some(48, 30, 5)  # enough work for two threads


@pytest.fixture(scope="module")
def model():
    """One whose calls two threads share; its team has worked before any fork."""
    model = Model(stack("lstm", H=128), threads=2)
    model(X)
    return model


def in_child(work):
    """What work() returns in a forked child, sent as bytes; the test fails where the child hangs or dies."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(there, work())
        finally:
            os._exit(0)
    os.close(there)
    watchdog = threading.Timer(30, os.kill, (child, 9))
    watchdog.start()
    with os.fdopen(here, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    watchdog.cancel()
    assert answer, "the child gave no answer"
    return answer


def answers(model):
    """Bytes that tell what a process makes of a model: a run, a stream, a pool."""
    pool = model.pool(capacity=48)
    y = np.stack(pool.push([pool.open() for _ in range(48)], X))
    assert np.array_equal(y, model(X))
    return y.tobytes() + model.stream().push(X[0]).tobytes()


class TestFork:
    def test_streams_and_pools_go_on_in_both(self, model):
        stream, pool = model.stream(), model.pool(capacity=48)
        slots = [pool.open() for _ in range(48)]
        stream.push(X[0, :10])
        pool.push(slots, X[:, :10])

        def go_on():
            return stream.push(X[0, 10:]).tobytes() + b"".join(y.tobytes() for y in pool.push(slots, X[:, 10:]))

        answer = in_child(go_on)
        again = in_child(go_on)
        assert answer == again == go_on()  # in the parent nothing had moved

    def test_forks_while_other_threads_work(self, model):
        """What a thread was in the middle of is whole in the child: its pool, and the model's programs."""
        pool, stop, problems = model.pool(capacity=48), threading.Event(), []
        slots = [pool.open() for _ in range(48)]

        def work():
            while not stop.is_set():
                pool.push(slots, X)
                Model(stack("rnn"))(X)

        workers = [threading.Thread(target=work) for _ in range(2)]
        for w in workers:
            w.start()
        try:
            for _ in range(12):

                def look():
                    steps = {pool.steps_done(s) for s in slots}
                    y = pool.push(slots, X)
                    return b"whole" if len(steps) == 1 and np.isfinite(y).all() and answers(model) else b"torn"

                if in_child(look) != b"whole":
                    problems.append("a torn pool in a child")
        finally:
            stop.set()
            for w in workers:
                w.join()
        assert problems == []

    def test_a_stream_in_mid_call_is_refused_in_the_child(self, model):
        stream, x = model.stream(batch_size=48), np.repeat(X, 60, 1)
        worker = threading.Thread(target=stream.push, args=(x,))
        worker.start()
        time.sleep(0.05)

        def touch():
            try:
                stream.step(X[:, 0])
            except fastrnn.StreamError as error:
                return str(error).encode()
            return b"stepped"

        answer = in_child(touch)
        alive = worker.is_alive()
        worker.join()
        if not alive:
            pytest.skip("the call was over before the fork")
        assert b"when the process was forked" in answer

    def test_a_fork_in_a_signals_handler(self, model):
        pool, answer = model.pool(capacity=48), []
        slots = [pool.open() for _ in range(48)]
        old = signal.signal(signal.SIGALRM, lambda *_: answer.append(in_child(lambda: b"alive")))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            for _ in range(1000):  # until the alarm comes in one of them
                y = pool.push(slots, np.repeat(X, 30, 1))
                if answer:
                    break
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # a call that ends early leaves no alarm behind
            signal.signal(signal.SIGALRM, old)
        assert answer == [b"alive"]
        assert len(y) == 48

    @pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
    def test_multiprocessing(self, model, method):
        context = multiprocessing.get_context(method)
        small = Model(stack("lstm", H=128), threads=2) if method == "fork" else model
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it ends a Pool's workers; Ray leaves a handler behind
        try:
            with context.Pool(2) as workers:
                got = workers.map_async(len_of_answers, [small] * 3).get(90)
        finally:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        assert got == [len(answers(model))] * 3


class WatchedLock(forks.Lock):
    """Tells when a fork begins to wait for it."""

    def __init__(self, waiting):
        super().__init__()
        self.waiting = waiting

    def _hold_for_fork(self):
        self.waiting.set()
        super()._hold_for_fork()


RAISES = """
import os, signal, threading, time
import numpy as np
import fastrnn

class Late(Exception):
    pass

def late(*_):
    raise Late

model = fastrnn.from_arrays("rnn", W=np.ones((3, 2), "f4"), R=np.ones((3, 3), "f4"))
pool = model.pool(1)
slot, x, begun = pool.open(), np.ones((1, 2), "f4"), threading.Event()

def hold():
    with pool._alone():
        begun.set()
        while not signalled:
            time.sleep(0.01)
        time.sleep(0.2)

signalled = []
worker = threading.Thread(target=hold)
worker.start()
begun.wait()
signal.signal(signal.SIGALRM, late)
main = threading.get_ident()

def send():
    time.sleep(0.2)
    signal.pthread_kill(main, signal.SIGALRM)
    signalled.append(True)

sender = threading.Thread(target=send)
sender.start()
raised, child = False, None
try:
    child = os.fork()
    time.sleep(0 if child == 0 else 20)
except Late:
    raised = True
if child == 0:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(20)
    pool.step([slot], x)
    print("child", flush=True)
    os._exit(0)
os.wait()
print("raised" if raised else "lost", flush=True)
worker.join()
pool.step([slot], x)
print("parent", flush=True)
"""


class TestLocksOverForks:
    """The forking thread waits for those who hold a lock; none of them may wait for it meanwhile."""

    def test_it_takes_locks_in_the_order_of_calls(self, model):
        """A call of a pool takes a model's lock on the way, whose holder takes those of what it made."""
        pool, (first, second) = model.pool(2), (forks.Lock(), forks.Lock())
        others = [forks.Lock() for _ in range(20)]  # some of them would be before those two in no order at all
        begun, go_on = threading.Event(), threading.Event()

        def call():
            with pool._alone():
                begun.set()
                go_on.wait()
                time.sleep(0.05)  # the fork is waiting for the pool
                with first, second:
                    pass

        worker = threading.Thread(target=call)
        worker.start()
        begun.wait()
        go_on.set()
        assert in_child(lambda: b"alive") == b"alive"
        worker.join(10)
        assert not worker.is_alive()
        assert len(others) == 20

    def test_pools_and_models_may_come_and_go_meanwhile(self, model, monkeypatch):
        told, stop = [], threading.Event()
        monkeypatch.setattr(sys, "unraisablehook", told.append)
        small = Model(stack("rnn"))

        def work():
            while not stop.is_set():
                [small.pool(1) for _ in range(20)]

        workers = [threading.Thread(target=work) for _ in range(2)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for w in workers:
                w.start()
            for _ in range(10):
                assert in_child(lambda: b"alive") == b"alive"
        finally:
            sys.setswitchinterval(interval)
            stop.set()
            for w in workers:
                w.join()
        assert told == []

    def test_a_pool_that_was_made_meanwhile(self, model):
        """The fork does not wait for its call. The child refuses it, instead of waiting for a thread that is gone, and
        can fork again."""
        waiting, made, over = threading.Event(), threading.Event(), threading.Event()
        pool, lock = model.pool(2), WatchedLock(waiting)
        slot = pool.open()
        forks.owners.remove(weakref.ref(pool))

        def hold_lock():
            with lock:
                made.wait(30)

        def use_pool():
            waiting.wait(30)  # from now on it has all pools that were there
            with pool._alone():
                forks.register(pool)
                made.set()
                over.wait(30)

        threads = [threading.Thread(target=work) for work in (hold_lock, use_pool)]
        for thread in threads:
            thread.start()

        def child():
            assert in_child(lambda: b"alive") == b"alive"
            said = []
            for use in (lambda: pool.step([slot], X[:1, 0]), pool.open, lambda: pool.steps_done(slot)):
                with pytest.raises(fastrnn.FastRNNError) as error:
                    use()
                said.append(str(error.value))
            pool.close()
            return "\n".join(said).encode()

        try:
            said = in_child(child).decode().splitlines()
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert len(said) == 3
        assert all("in a call of this pool when the process was forked: make another one" in line for line in said)
        assert len(pool.step([slot], X[:1, 0])) == 1  # nothing has changed in the parent

    def test_a_lock_that_nobody_can_let_go(self):
        lock, held, over = forks.Lock(), threading.Event(), threading.Event()

        def hold():
            with lock:
                held.set()
                over.wait(30)

        worker = threading.Thread(target=hold)
        worker.start()
        held.wait(30)
        lock._renew_after_fork()  # what a child does that was forked now, without this lock
        over.set()
        worker.join()
        with pytest.raises(fastrnn.FastRNNError, match="by another thread when the process was forked"), lock:
            pass
        free = forks.Lock()
        free._renew_after_fork()
        with free, free:
            pass

    def test_a_signals_handler_that_raises_meanwhile(self):
        """The exception comes after the fork, which has all locks."""
        done = subprocess.run([sys.executable, "-c", RAISES], capture_output=True, text=True, timeout=90)
        assert (done.returncode, done.stdout) == (0, "child\nraised\nparent\n"), done.stderr

    def test_a_lock_that_is_gone_is_forgotten(self):
        gc.collect()
        before = len(forks.locks), len(forks.owners)
        pool = Model(stack("rnn")).pool(1)
        assert (len(forks.locks), len(forks.owners)) > before
        del pool
        gc.collect()
        assert (len(forks.locks), len(forks.owners)) == before


def len_of_answers(model):
    """How much `answers` tells; run in another process."""
    return len(answers(model))


APP = """
import os, sys
import numpy as np
import fastrnn
from fastrnn.machine import forks

model = fastrnn.load({path!r}, threads=2)
x = np.random.default_rng(0).standard_normal((48, 30, 5)).astype(np.float32)
want = model(x)  # in the master, by two threads, before its workers are forked
pool = model.pool(capacity=48)
slots = [pool.open() for _ in range(48)]
first = np.stack(pool.push(slots, x[:, :10]))

def app(environ, start_response):
    pool_now = np.stack(pool.push(slots, x[:, 10:]))
    right = np.array_equal(model(x), want)
    for s in slots:
        pool.reset(s)
    again = np.stack(pool.push(slots, x))
    right = right and np.array_equal(again, want)
    for s in slots:
        pool.reset(s)
    pool.push(slots, x[:, :10])
    right = right and np.array_equal(np.concatenate([first, pool_now], 1), want)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{{os.getpid()}} {{right}}".encode()]
"""


def test_gunicorn_with_preload(model, tmp_path):
    gunicorn = shutil.which("gunicorn", path=os.path.dirname(sys.executable)) or shutil.which("gunicorn")
    if gunicorn is None:
        pytest.skip("gunicorn is not installed")
    model.save(tmp_path / "model.fastrnn")
    (tmp_path / "service.py").write_text(APP.format(path=str(tmp_path / "model.fastrnn")))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [gunicorn, "--preload", "-w", "2", "-b", f"127.0.0.1:{port}", "--timeout", "60", "service:app"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])}
    master = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        seen, end = set(), time.monotonic() + 90
        while len(seen) < 2 and time.monotonic() < end:
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as reply:
                    pid, right = reply.read().decode().split()
                assert right == "True"
                seen.add(pid)
            time.sleep(0.02)
    finally:
        master.terminate()
        said = master.communicate(timeout=30)[0].decode()
    assert len(seen) == 2, said


class TestThreadpoolctl:
    def test_it_sees_and_limits_the_team(self, model):
        import threadpoolctl

        from fastrnn.machine import threadpools

        threadpools.register()
        threadpools.register()  # once is enough

        def ours():
            (info,) = [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "fastrnn"]
            return info["num_threads"]

        assert ours() == threadpools.most()
        want = model(X)
        with threadpoolctl.threadpool_limits(1):
            assert ours() == 1

            def alone():
                """No other thread worked meanwhile; those of other libraries in this process may, now and then."""
                before, started = time.thread_time(), time.process_time()
                assert np.array_equal(model(np.tile(X, (1, 8, 1)))[:, :30], want)
                return time.process_time() - started <= 1.2 * (time.thread_time() - before) + 0.02

            assert any(alone() for _ in range(5))
        assert ours() == threadpools.most()
        with threadpoolctl.threadpool_limits(1, user_api="fastrnn"):
            assert ours() == 1
        before = threadpools.most()
        Model(stack("rnn"), threads=before + 3)
        assert ours() == before + 3  # a limit that was lifted does not bind it
        with threadpoolctl.threadpool_limits(before):
            assert ours() == before
        assert ours() == before + 3
