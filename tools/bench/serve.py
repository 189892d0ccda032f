"""How many live sequences one core serves, by each route of `fastrnn serve`, beside what bounds it.

    python tools/bench/serve.py [--quick] [--only ROUTE ...] [--json FILE] [--seconds 1.5]

The server runs on one core, the load generator (serve_load.py) on another. Every sequence takes a step each 32 ms, as
Silero VAD does with live audio; the phases are spread. For each route the largest number of sequences is searched, by
doubling and bisection, for which the 99th percentile of the latencies stays under 20 ms, every request is answered, and
the generator is never late by more than 2 ms (99th percentile): then it is the server that bounds the result.

Beside each route stand a bare echo server of the same library, which looks at nothing and answers as many bytes, and
what people write today: onnxruntime with a dict of states behind Starlette's HTTP or WebSocket, or behind grpc.aio
(serve_rivals.py).

`fastrnn serve` runs with `--max-delay 0.008`: a step waits up to 8 ms for steps of other sequences, which suits a bound
of 20 ms, and answers most of them later than the default of 2 ms does. `--server ""` is the default.

The model is Silero VAD v5 if ../shared/models has it, or else one of the same arithmetic with random weights. All of
it takes about 9 minutes. Other processes on the two cores disturb it; `chrt -f 1 python tools/bench/serve.py --only
websocket --seconds 1` keeps them away for a short while.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SILERO = ROOT.parent / "shared" / "models" / "silero_vad_v5.onnx"
P99_MS, LATE_MS = 20.0, 2.0
ROWS = 250  # of a request for many sequences
CLOSE = 0.06  # the search ends when it knows the number to this part
# route -> (what to call it, units to begin with, protocol, the echo server, today's server)
ROUTES = {
    "http": ("HTTP, binary", 32, "http", "echo_http", "today_http"),
    "grpc": ("gRPC, unary", 32, "grpc", "echo_grpc", None),
    "grpc_stream": ("gRPC, a stream each", 64, "grpc", "echo_grpc", "today_grpc"),
    "websocket": ("WebSocket", 128, "http", "echo_websocket", "today_websocket"),
    "many_http": (f"HTTP, {ROWS} sequences a request", 4, "http", "echo_http", None),
    "many_grpc": (f"gRPC stream, {ROWS} sequences a request", 4, "grpc", "echo_grpc", None),
}
TARGETS = {"grpc_stream": 100, "websocket": 300, "many_http": 3000, "many_grpc": 3000}

HEADINGS = ("route", "sequences", "messages a second", "p50 ms", "p99 ms", "CPU us a step")
HEADINGS += ("echo, messages a second", "of the echo", "today, sequences", "times today")


class Process:
    """A server on one core; it ends with the block.

    ports : protocol -> port
    """

    def __init__(self, command: list[str], core: int):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "FASTRNN_THREADS": "1"}
        self.process = subprocess.Popen(
            ["taskset", "-c", str(core), sys.executable, *command], stdout=subprocess.PIPE, text=True, env=env
        )
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start: {' '.join(command)}")
        told = json.loads(line)
        if "port" in told:
            self.ports = dict.fromkeys(("http", "grpc"), told["port"])
        else:
            self.ports = {kind: int(told[kind].rpartition(":")[2]) for kind in ("http", "grpc")}

    @property
    def pids(self) -> list[int]:
        """The processes: with --workers, those too."""
        pid = self.process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Bench:
    """Trials of one server by one route."""

    def __init__(self, args: argparse.Namespace, model: Path):
        self.args, self.model = args, model
        self.base = 0

    def trial(self, server: Process, route: str, units: int) -> dict:
        """The result of the load generator."""
        self.base += 1_000_000
        plan = {
            "route": route,
            "port": server.ports[ROUTES[route][2]],
            "units": units,
            "rows": ROWS if not self.args.quick else 4,
            "seconds": self.args.seconds,
            "wait": 60.0 if self.args.quick else 5.0,  # a quick run tells what is wrong on a busy machine too
            "base": self.base,
            "pids": server.pids,
        }
        command = ["taskset", "-c", str(self.args.cores[1]), sys.executable, str(HERE / "serve_load.py")]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, json.dumps(plan)], capture_output=True, text=True, env=env, timeout=120)
        if done.returncode:
            raise SystemExit(f"the load generator failed:\n{done.stderr}")
        found = json.loads(done.stdout)
        found["passed"] = not found["wrong"] and found["p99_ms"] < P99_MS and found["late_p99_ms"] < LATE_MS
        if self.args.verbose:
            print("   ", {k: round(v, 2) if isinstance(v, float) else v for k, v in found.items()}, file=sys.stderr)
        return found

    def search(self, server: Process, route: str) -> dict:
        """The trial with the most units that passed; trials that failed are in `failed`."""
        units, least, most = ROUTES[route][1], 0, 0
        best: dict = {}
        failed: list[dict] = []
        if self.args.quick:
            return {**self.trial(server, route, 2), "failed": []}
        while not most or most - least > max(1, CLOSE * least):
            found = self.trial(server, route, units)
            if not found["passed"]:
                failed.append(found)
                found = self.trial(server, route, units)  # the machine may have been busy
            if found["passed"]:
                best, least = found, units
            else:
                failed.append(found)
                most = units
            if not most:
                units *= 2
            elif not least:
                if most == 1:
                    break
                units = most // 2
            else:
                units = (least + most) // 2
        if not best:
            raise SystemExit(f"{route}: not one passed; the last was {failed[-1]}")
        return {**best, "failed": failed[-2:]}

    def row(self, route: str) -> dict:
        """What was found for one route: ours, the echo, today's."""
        name, _, _, echo, today = ROUTES[route]
        found: dict = {"route": route, "name": name}
        with Process(serve_command(self.model, self.args.server), self.args.cores[0]) as server:
            found["fastrnn"] = self.search(server, route)
        rivals = {} if self.args.alone else {"echo": echo, "today": today}
        for kind, server_kind in rivals.items():
            if server_kind is None:
                continue
            command = [str(HERE / "serve_rivals.py"), server_kind, str(self.model)]
            command += ["--reply", str(found["fastrnn"]["reply_bytes"])]
            if uvloop():
                command.append("--uvloop")
            with Process(command, self.args.cores[0]) as server:
                found[kind] = self.search(server, route)
        return found


def uvloop() -> bool:
    """Whether the servers run on uvloop: `fastrnn serve` does if it is installed, so the others do."""
    try:
        version("uvloop")
    except ImportError:
        return False
    return True


def serve_command(model: Path, more: str) -> list[str]:
    """`fastrnn serve` of the model."""
    command = ["-m", "fastrnn", "serve", f"vad={model}", "--json", "--http-port", "0", "--grpc-port", "0"]
    command += ["--max-sequences", "100000", *more.split()]
    if model == SILERO:
        command += ["--bind", "sr=16000", "--size", "size=576"]
    return command


def generated(folder: Path) -> Path:
    """A model with as many multiplications as Silero's step: dense layers, then an LSTM of 128 with its state."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(5)
    weights, nodes = {}, []

    def weight(name: str, *shape: int) -> str:
        weights[name] = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        return name

    def node(op: str, inputs: list[str], output: str | list[str], **attributes) -> str:
        outputs = output if isinstance(output, list) else [output]
        nodes.append(helper.make_node(op, inputs, outputs, **attributes))
        return outputs[0]

    x, sizes = "input", (576, 512, 384, 128)
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        x = node("Relu", [node("MatMul", [x, weight(f"w{i}", a, b)], f"d{i}")], f"r{i}")
    weights["first"], weights["second"], weights["axis"] = (np.array([v], np.int64) for v in (0, 1, 0))
    h = node("Gather", ["state", "first"], "h")
    c = node("Gather", ["state", "second"], "c")
    x = node("Unsqueeze", [x, "axis"], "x3")
    lstm = [x, weight("W", 1, 512, 128), weight("R", 1, 512, 128), weight("B", 1, 1024), "", h, c]
    node("LSTM", lstm, ["y4", "hn", "cn"], hidden_size=128)
    node("Concat", ["hn", "cn"], "stateN", axis=0)
    y = node("Squeeze", ["hn", "axis"], "y2")
    node("Sigmoid", [node("MatMul", [y, weight("out", 128, 1)], "logit")], "output")
    float32 = TensorProto.FLOAT
    inputs = [("input", ["batch", 576]), ("state", [2, "batch", 128])]
    outputs = [("output", ["batch", 1]), ("stateN", [2, "batch", 128])]
    made = [[helper.make_tensor_value_info(name, float32, shape) for name, shape in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *made, [numpy_helper.from_array(v, k) for k, v in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "generated.onnx"
    onnx.save(model, path)
    return path


def machine() -> dict:
    """Where it ran."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    names = ("fastrnn", "grpcio", "uvicorn", "starlette", "websockets", "httptools", "uvloop", "onnxruntime", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except ImportError:
            versions[name] = None
    policy = {os.SCHED_OTHER: "other", os.SCHED_FIFO: "fifo", os.SCHED_RR: "rr"}.get(os.sched_getscheduler(0), "?")
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {
        "date": now,
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "scheduler": policy,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "versions": versions,
    }


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| " + " | ".join(HEADINGS) + " |",
        "|---" * len(HEADINGS) + "|",
    ]
    for row in rows:
        own, echo, today = row["fastrnn"], row.get("echo"), row.get("today")
        cells = [
            row["name"],
            f"{own['sequences']:,}",
            f"{own['messages_per_second']:,.0f}",
            f"{own['p50_ms']:.1f}",
            f"{own['p99_ms']:.1f}",
            f"{own.get('cpu_us_per_step', 0):.1f}",
            f"{echo['messages_per_second']:,.0f}" if echo else "-",
            f"{own['messages_per_second'] / max(echo['messages_per_second'], 1):.0%}" if echo else "-",
            f"{today['sequences']:,}" if today else "-",
            f"{own['sequences'] / today['sequences']:.2f}x" if today else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def problems(rows: list[dict]) -> list[str]:
    """Replies that were wrong, in a quick run."""
    return [
        f"{row['route']}, {kind}: {row[kind]['wrong'] or 'no reply was measured'}"
        for row in rows
        for kind in ("fastrnn", "echo", "today")
        if kind in row and (row[kind]["wrong"] or not row[kind]["messages"])
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the routes; 1 if a reply was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(ROUTES), default=list(ROUTES))
    parser.add_argument("--seconds", type=float, default=1.5, help="that a trial measures")
    parser.add_argument("--cores", nargs=2, type=int, default=None, help="of the server and of the load generator")
    parser.add_argument("--quick", action="store_true", help="one short trial each, without a search: does it work?")
    parser.add_argument("--generated", action="store_true", help="the generated model, also if Silero is there")
    parser.add_argument("--alone", action="store_true", help="fastrnn alone, without the echo and today's server")
    parser.add_argument("--server", default="--max-delay 0.008", help="more options of fastrnn serve")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--verbose", action="store_true", help="each trial")
    args = parser.parse_args(argv)
    if args.quick:
        args.seconds = 0.3
    if args.cores is None:
        free = sorted(os.sched_getaffinity(0))
        args.cores = [free[0], free[-1]]
    with tempfile.TemporaryDirectory(prefix="serve") as folder:
        model = SILERO if SILERO.is_file() and not args.generated else generated(Path(folder))
        bench, rows = Bench(args, model), []
        for route in args.only:
            rows.append(bench.row(route))
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
        facts = {
            **machine(),
            "cores": args.cores,
            "model": model.name,
            "period_ms": 32,
            "p99_ms": P99_MS,
            "server": args.server,
        }
    print(table(rows))
    about = f"{facts['cpu']}, {facts['cpus']} CPUs, load {facts['load']:.1f}, scheduler {facts['scheduler']}"
    late = max(row[k]["late_p99_ms"] for row in rows for k in ("fastrnn", "echo", "today") if k in row)
    print(f"\n{about}; model {facts['model']}; fastrnn serve {args.server}.")
    print(f"The load generator was late by at most {late:.2f} ms (p99 of a trial).")
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": facts, "rows": rows}, indent=1))
    wrong = problems(rows)
    for line in wrong:
        print(f"PROBLEM: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
