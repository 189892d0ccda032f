"""One engine in a process of its own: opens cases, answers them, and times calls. Not imported: run as a program.

    python worker.py FILE THREADS     FILE: engines/on_....py

It reads one JSON object per line from stdin and writes one per line to stdout. It imports nothing of fastrnn (the file
of fastrnn's own engine does), so that a peer's process holds the peer alone: its thread pool, its allocator. Every
request but "probe" names its `entrant`, since the precisions of an engine share its process.

    {"do": "open", "job": ..., "trial_ns": n, "batch_ns": n}  -> setup, note, trials, batch, stream_bytes
    {"do": "answer", "to": path}                              -> the answers to the job's inputs, saved as npy
    {"do": "round", "ns": n, "pause_ns": n}                   -> batch, ns: [a batch each], cpu_ns, wall_ns
    {"do": "bits", "job": ...}                                -> ways: {a way to compute: a digest of its answer}
    {"do": "close"}                                           -> peak_rss: bytes, since open if the system allows it;
                                                                 None if other entrants were open too

A file of engines/ has `version()`, `candidates(job, engine, threads)`, which returns a list of objects with a `name`,
`calls(n)`, which makes n calls one after the other, and `answer(x)`; and perhaps `stream_bytes(job)`. Where there are
several candidates, the fastest in a short trial represents the engine: its fastest honest set-up on this case. The
job says in which `precision` it is wanted; a candidate may have a `note`, said beside its times.
"""

import contextlib
import gc
import json
import os
import runpy
import statistics
import sys
import time
from pathlib import Path

clock = time.perf_counter_ns
WARM_SHARE = 0.1  # of a round: other engines ran in between and the caches hold their data
TRIAL_ROUNDS = 5
MAX_BATCH = 100_000


def time_batches(calls, batch, ns):
    """Times (ns) of batches of `batch` calls each, until they add up to `ns`; at least one."""
    times, total = [], 0
    while True:
        start = clock()
        calls(batch)
        spent = clock() - start
        times.append(spent)
        total += spent
        if total >= ns:
            return times


def paced_times(calls, pause_ns, ns):
    """Times (ns) of single calls, each after `pause_ns` of sleep, for about `ns` in all; at least two.

    The first is left out: it comes after whatever the other engines did.
    """
    times = []
    for _ in range(1 + max(2, int(ns // pause_ns))):
        time.sleep(pause_ns / 1e9)
        start = clock()
        calls(1)
        times.append(clock() - start)
    return times[1:]


def batch_for(calls, ns):
    """How many calls take `ns` at least: reading the clock (about 50 ns) then costs nothing."""
    batch = 1
    while batch < MAX_BATCH:
        best = min(time_batches(calls, batch, 0)[0] for _ in range(3))
        if best >= ns:
            break
        batch = min(MAX_BATCH, max(batch + 1, int(batch * min(10.0, 1.2 * ns / max(best, 1)))))
    return batch


def choose(candidates, trial_ns, batch_ns):
    """(the fastest candidate, its batch, {name: median ns a call}); candidates take turns."""
    batches = {c.name: batch_for(c.calls, batch_ns) for c in candidates}
    times = {c.name: [] for c in candidates}
    for _ in range(TRIAL_ROUNDS if len(candidates) > 1 else 1):
        for c in candidates:
            spent = time_batches(c.calls, batches[c.name], trial_ns)
            times[c.name].append(statistics.median(spent) / batches[c.name])
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min(candidates, key=lambda c: medians[c.name])
    return best, batches[best.name], medians


def forget_peak():
    """Let the peak of resident memory start again (Linux; elsewhere it is the process's)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss():
    """Peak resident memory in bytes; None if the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


class WorkerLoop:
    """The engine, and the entrants that have a case open: name -> its job, chosen candidate and batch."""

    def __init__(self, engine, threads):
        self.engine, self.threads = engine, threads
        self.opened = {}

    def open(self, message):
        self.close(message)
        name, job = message["entrant"], message["job"]
        held = self.engine["stream_bytes"](job) if "stream_bytes" in self.engine else None
        gc.collect()
        forget_peak()
        found = self.engine["candidates"](job, name, self.threads)
        chosen, batch, trials = choose(found, message["trial_ns"], message["batch_ns"])
        self.opened[name] = job, chosen, batch
        about = {"setup": chosen.name, "note": getattr(chosen, "note", "")}
        return {**about, "trials": trials, "batch": batch, "stream_bytes": held}

    def entry(self, message):
        name = message["entrant"]
        if name not in self.opened:
            raise RuntimeError(f"{name} has no case open: its process ended and was started again")
        return self.opened[name]

    def answer(self, message):
        import numpy as np

        job, chosen, _ = self.entry(message)
        np.save(message["to"], chosen.answer(np.load(job["x"])))
        return {}

    def round(self, message):
        _, chosen, batch = self.entry(message)
        pause = message.get("pause_ns", 0)
        if pause:
            # The CPU time of a process that mostly sleeps says nothing, so none is reported.
            return {"batch": 1, "ns": paced_times(chosen.calls, pause, message["ns"]), "cpu_ns": 0, "wall_ns": 0}
        gc.collect()
        gc.disable()  # a collection in one engine's round and not in another's would be chance
        try:
            time_batches(chosen.calls, batch, WARM_SHARE * message["ns"])
            wall, cpu = clock(), time.process_time_ns()
            times = time_batches(chosen.calls, batch, message["ns"])
            cpu_ns, wall_ns = time.process_time_ns() - cpu, clock() - wall
        finally:
            gc.enable()
        return {"batch": batch, "ns": times, "cpu_ns": cpu_ns, "wall_ns": wall_ns}

    def close(self, message):
        alone = len(self.opened) == 1
        self.opened.pop(message["entrant"], None)
        gc.collect()
        return {"peak_rss": peak_rss() if alone else None}

    def bits(self, message):
        return {"ways": self.engine["bits"](message["job"])}

    def probe(self, message):
        return self.engine["probe"](message)


def main(argv):
    """Serve until stdin ends."""
    file, threads = argv[1], int(argv[2])
    # Libraries that print must not disturb the pipe: they get stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    folder = str(Path(__file__).resolve().parent)
    sys.path[:] = [p for p in sys.path if p != folder]  # our modules must not pass for others of the same name

    def send(record):
        replies.write(json.dumps(record) + "\n")
        replies.flush()

    try:
        engine = runpy.run_path(file)
        version = engine["version"]()
    except ImportError as error:
        send({"missing": str(error)})
        return
    send({"version": version, "pid": os.getpid()})
    worker = WorkerLoop(engine, threads)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            send(getattr(worker, message["do"])(message))
        except Exception as error:
            send({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main(sys.argv)
