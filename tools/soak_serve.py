"""`fastrnn serve` under clients of every kind, with kills of the server and of clients, for as long as you like.

    python tools/soak_serve.py [--seconds 600] [--workers N]

The server runs under a supervisor with `--store`. For the first part of the time it is killed (SIGKILL) every few
seconds and started again; clients replay by `step_index`. Then it stays, while clients come and go, are killed, stop
waiting, flood it and send nonsense. At the end all clients leave. What is looked for: a wrong bit against a lone
stream; a step that was acknowledged and can't be replayed; an error that should not be; a sequence, descriptor or task
that is left when everything has settled; memory that grows; a traceback of the server. The exit code is 1 if there is
one. How long the recovery takes is printed: until a request is answered after the kill. With `--recovery 2`, longer
than 2 s is a problem too; on a busy machine the start of Python alone takes that. With `--workers 2`, a third
of the kills are of the parent, whose workers have to end, and the others of a worker, which the parent has to start
again.

Memory is what is left after a full collection and `malloc_trim`, once a second. Without them it grows for longer than
a short run takes, although nothing leaks: `fastrnn serve` lets Python collect seldom, and Python and glibc keep what
they had when there was most of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import math
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from soak_serve_clients import KINDS, Client, Gone, Refused, Server  # noqa: E402
from soak_streams import Found, World  # noqa: E402

IDLE = 4.0  # seconds until an idle sequence ends
KILLS, VICTIMS = (3.0, 7.0), (1.0, 3.0)  # seconds between kills of the server, and of clients
PATIENCE = 30.0  # seconds for a start, or to settle
PROBES = 12  # sequences that are started to see that the server answers: each worker has some


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Supervisor:
    """Runs the server, and starts it again when it has died.

    Attributes
    ----------
    recoveries : seconds from each kill until a request was answered
    """

    def __init__(self, found: Found, folder: Path, model: Path, workers: int):
        self.found, self.folder, self.workers = found, folder, workers
        self.http, self.grpc = free_port(), free_port()
        self.command = [sys.executable, str(ROOT / "soak_serve.py"), "--serve", f"m={model}"]
        self.command += ["--http-port", str(self.http), "--grpc-port", str(self.grpc), "--idle-timeout", str(IDLE)]
        self.command += ["--store", str(folder / "store"), "--checkpoint-seconds", "0.3"]
        self.command += ["--workers", str(workers)] if workers > 1 else []
        self.log = (folder / "log").open("wb")
        self.recoveries: list[float] = []
        self.process = self._started()

    def pids(self) -> list[int]:
        """The processes that serve."""
        pid = self.process.pid
        if self.workers == 1:
            return [pid]
        with contextlib.suppress(OSError):
            return [int(k) for k in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def _started(self) -> subprocess.Popen:
        env = {**os.environ, "SOAK_TOLD": str(self.folder / "told")}
        return subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=self.log, env=env)

    async def kill(self, server: Server, rng: random.Random) -> None:
        """SIGKILL, and a new start: of the server, or of a worker, which the parent starts again."""
        pids = self.pids()
        began = time.monotonic()
        if self.workers > 1 and pids and rng.random() < 0.67:
            killed = rng.choice(pids)
            os.kill(killed, signal.SIGKILL)
            self.found.counts["kills of a worker"] += 1
            while killed in self.pids() or len(self.pids()) < self.workers:
                if time.monotonic() > began + PATIENCE:
                    raise RuntimeError(f"the parent did not start worker {killed} again: {self.tail()}")
                await asyncio.sleep(0.02)
        else:
            self.process.kill()
            self.process.wait()
            self.process = self._started()
            self.found.counts["kills of the server"] += 1
        await self.answers(server)
        while any(Path(f"/proc/{pid}").exists() for pid in set(pids) - set(self.pids())):
            if time.monotonic() > began + PATIENCE:
                raise RuntimeError(f"processes of a server that was killed are left: {pids}, {self.tail()}")
            await asyncio.sleep(0.02)
        self.recoveries.append(time.monotonic() - began)

    async def answers(self, server: Server) -> None:
        """Wait until a step is answered, of sequences of all workers."""
        end = time.monotonic() + PATIENCE
        probes = PROBES if self.workers > 1 else 1
        while time.monotonic() < end:
            with contextlib.suppress(Gone, Refused):
                for k in range(probes):
                    await server.by_http(f"probe {k}", server.world.x[0, :1], sequence_start=True)
                return
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}: {self.tail()}")
            await asyncio.sleep(0.02)
        raise RuntimeError(f"the server did not answer within {PATIENCE:g} s: {self.tail()}")

    def tail(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def measured(self) -> dict[str, int]:
        """Memory, descriptors, asyncio's tasks and requests of the server, of all workers together."""
        found = Counter()
        for pid in self.pids():
            file = self.folder / f"told.{pid}"
            file.unlink(missing_ok=True)
            os.kill(pid, signal.SIGUSR1)
            end = time.monotonic() + 5
            while not file.exists() and time.monotonic() < end:
                time.sleep(0.01)
            found += json.loads(file.read_text()) if file.exists() else {"tasks": 1000}
            found["descriptors"] += len(os.listdir(f"/proc/{pid}/fd"))
        return dict(found)

    def stop(self) -> None:
        """SIGTERM: it has to end by itself."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self.found.problem(f"the server did not end within {PATIENCE:g} s of SIGTERM: {self.tail()}")
            return
        if code:
            self.found.problem(f"the server ended with {code} after SIGTERM")


async def kills(supervisor: Supervisor, server: Server, seconds: float, rng: random.Random) -> None:
    """Kill the server for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(rng.uniform(*KILLS))
        await supervisor.kill(server, rng)


async def victims(server: Server, rng: random.Random) -> None:
    """Processes of clients that are killed in the middle of what they do."""
    command = [sys.executable, str(ROOT / "soak_serve.py"), "--victim", str(server.http_port), str(server.grpc_port)]
    while not server.over:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        await asyncio.sleep(1.0 + rng.uniform(*VICTIMS))
        process.kill()
        process.wait()
        server.found.counts["kills of clients"] += 1


async def victim(http: int, grpc: int) -> None:
    """The work of such a process."""
    server = Server(Found("victim"), World(), http, grpc)
    clients: list[Client] = [kind(server, "victim", os.getpid() + i) for i, (kind, _) in enumerate(KINDS.values())]
    await asyncio.gather(*(client.run() for client in clients[:4]))


async def live(server: Server) -> float:
    """Live sequences, as the server counts them."""
    async with server.session.get(f"{server.base}/metrics") as answer:
        if answer.status != 200:  # a worker is not there
            return math.inf
        lines = (await answer.text()).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("fastrnn_sequences{"))


async def settled(supervisor: Supervisor, server: Server) -> dict[str, int]:
    """What is left when the clients have gone."""
    end = time.monotonic() + PATIENCE
    while await live(server) and time.monotonic() < end:
        await asyncio.sleep(0.1)
    if left := await live(server):
        server.found.problem(f"{left:g} sequences are live {PATIENCE:g} s after their clients have gone")
    await server.close()
    best = supervisor.measured()
    while time.monotonic() < end:  # connections take a moment to close
        await asyncio.sleep(0.2)
        now = supervisor.measured()
        if all(now.get(what, 0) >= best.get(what, 0) for what in ("descriptors", "tasks", "requests")):
            break
        best = now
    return best


def check_left(found: Found, first: dict[str, int], last: dict[str, int], workers: int) -> None:
    """A problem if there is more when all clients have gone than at first."""
    # The record of an ended sequence may hold its last request: few of them, and 10,000 records at most.
    for what, more in (("descriptors", 8), ("tasks", 2), ("requests", 5)):
        if last.get(what, 0) > first.get(what, 0) + more * workers:
            found.problem(f"{what}: {first.get(what, 0)} at first, {last[what]} when all clients have gone")


async def soak(seconds: float, folder: Path, found: Found, most: float | None, workers: int) -> None:
    """All of it."""
    world, rng = World(), random.Random(5)
    world.model.save(folder / "m.fastrnn")
    supervisor = Supervisor(found, folder, folder / "m.fastrnn", workers)
    server = Server(found, world, supervisor.http, supervisor.grpc)
    try:
        await supervisor.answers(server)
        first = await settled(supervisor, server)  # of a server that has done nothing
        server = Server(found, world, supervisor.http, supervisor.grpc)
        clients = [
            asyncio.ensure_future(kind(server, name, 100 * n + i + 1).run())
            for n, (name, (kind, number)) in enumerate(KINDS.items())
            for i in range(number)
        ]
        clients.append(asyncio.ensure_future(victims(server, rng)))
        await kills(supervisor, server, seconds * 0.55, rng)
        end = time.monotonic() + seconds * 0.35
        samples = []
        while time.monotonic() < end:
            await asyncio.sleep(1.0)
            samples.append(supervisor.measured()["memory"])
        server.over = True
        for error in await asyncio.gather(*clients, return_exceptions=True):
            if isinstance(error, BaseException):
                found.problem(f"a client failed: {type(error).__name__}: {error}")
        last = await settled(supervisor, server)
        found.notes.append(f"at first and at the end: {first}, {last}")
        check_left(found, first, last, workers)
        found.memory = samples
        found.descriptors = [0] * max(1, len(samples))
        found.check_flat(workers)
    finally:
        supervisor.stop()
    times = sorted(supervisor.recoveries)
    if times:
        found.notes.append(f"recovery: median {times[len(times) // 2]:.2f} s, longest {times[-1]:.2f} s")
        if most is not None and times[-1] > most:
            found.problem(f"a recovery took {times[-1]:.2f} s, more than {most:g} s")
    log = (folder / "log").read_text(errors="replace")
    if "Traceback" in log:
        first = log[log.index("Traceback") :].splitlines()
        end = next((i for i, line in enumerate(first) if i and not line.startswith((" ", "|", "+"))), len(first))
        found.problem(
            f"the server wrote {log.count('Traceback')} tracebacks; the first ends in: {first[end - 3 : end + 1]}"
        )


def serve(arguments: list[str]) -> int:
    """`fastrnn serve`, which says at SIGUSR1 what it holds."""
    from fastrnn.cli import main as command
    from fastrnn.serving.server.sequence import Work

    def tell(*_: object) -> None:
        gc.collect()
        with contextlib.suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        told = {
            "memory": pages * resource.getpagesize(),
            "tasks": len(asyncio.all_tasks(asyncio._get_running_loop())),
            "requests": sum(type(o) is Work for o in gc.get_objects()),
        }
        file = Path(f"{os.environ['SOAK_TOLD']}.{os.getpid()}")
        new = file.with_name(f"{file.name}.new")
        new.write_text(json.dumps(told))
        new.rename(file)

    signal.signal(signal.SIGUSR1, tell)
    return command(["serve", *arguments]) or 0


def main(argv: list[str]) -> int:
    """Run it; 1 if something is wrong."""
    if argv[:1] == ["--serve"]:
        return serve(argv[1:])
    if argv[:1] == ["--victim"]:
        asyncio.run(victim(int(argv[1]), int(argv[2])))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--recovery", type=float, help="the most seconds that a recovery may take")
    parser.add_argument("--json", help="file for the results")
    args = parser.parse_args(argv)
    found = Found("serve")
    print(f"{args.seconds:g} s, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        try:
            asyncio.run(soak(args.seconds, Path(folder), found, args.recovery, args.workers))
        except Exception as error:
            found.problem(f"{type(error).__name__}: {error}")
    print(", ".join(f"{n} {what}" for what, n in found.counts.items()))
    for line in found.notes:
        print(line)
    for line in found.problems:
        print(f"PROBLEM: {line}")
    if args.json:
        Path(args.json).write_text(json.dumps(found.as_dict(), indent=1))
    print(f"{found.counts['steps']} steps compared, {len(found.problems)} problems; load {os.getloadavg()[0]:.1f}")
    return 1 if found.problems or not found.counts["steps"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
