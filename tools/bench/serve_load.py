"""The load generator of tools/bench/serve.py: paced steps of many sequences from one process, which does nothing else.

    python tools/bench/serve_load.py '{"route": "websocket", "port": 8000, "units": 300, ...}'

Every unit (a sequence, or a request with one step of each of several) has a step each `period` seconds; the phases are
spread evenly, and the units start within the first `ramp` seconds, which are not measured. A step is sent when it is
due, whether or not the server has answered the one before it; over HTTP/1.1 and unary gRPC, which have one request in
flight, it waits for its turn. Its latency counts from the moment when it was due. `late` is how long after that moment
a step was handed to the socket, and `own_cpu` the share of its core that this process used: if both are small, the
generator was not what limited the result.

Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import select
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serve_wire import Connection, GrpcConnection, HttpConnection, WebSocketConnection, Wrong, masked, post, prefixed

SERVICE = "/inference.GRPCInferenceService/"
ROUTES = ("http", "grpc", "grpc_stream", "websocket", "many_http", "many_grpc")


class Plan:
    """What to send.

    Attributes: those of the JSON object on the command line: route, host, port, units, rows (of a request for many),
    seconds, warm (seconds before that), wait (seconds for the last replies), period, model, input, features, base (of
    the ids), pids (of the server)
    """

    def __init__(self, given: dict):
        self.host, self.period, self.ramp, self.warm, self.rows, self.base = "127.0.0.1", 0.032, 1.0, 0.7, 250, 0
        self.model, self.input, self.features, self.pids = "vad", "input", 576, []
        self.route, self.port, self.units, self.seconds, self.wait = "", 0, 1, 2.0, 5.0
        for name, value in given.items():
            setattr(self, name, value)
        source = random.Random(7)
        self.frame = struct.pack(f"<{self.features}f", *(source.uniform(-0.1, 0.1) for _ in range(self.features)))

    def connection(self, unit: int) -> Connection:
        """A connection for a unit."""
        if self.route == "websocket":
            path = f"/v2/models/{self.model}/stream?output=binary&id={self.base + unit}"
            return WebSocketConnection(self.host, self.port, path)
        if self.route.endswith("http"):
            return HttpConnection(self.host, self.port)
        unary = self.route == "grpc"
        path = SERVICE + ("ModelInfer" if unary else "ModelStreamInfer")
        return GrpcConnection(self.host, self.port, path, unary)

    def message(self, unit: int, start: bool, end: bool) -> bytes:
        """The request of a unit's step."""
        if self.route == "websocket":
            return masked(self.frame)
        if not self.route.startswith("many"):
            shapes = [(self.input, "FP32", [1, self.features], self.frame)]
            given = {"sequence_id": self.base + unit + 1, "sequence_start": start, "sequence_end": end}
        else:
            n, first = self.rows, self.base + unit * self.rows + 1
            shapes = [
                (self.input, "FP32", [n, self.features], self.frame * n),
                ("SEQUENCE_IDS", "INT64", [n], struct.pack(f"<{n}q", *range(first, first + n))),
                ("SEQUENCE_START", "BOOL", [n], bytes([start]) * n),
                ("SEQUENCE_END", "BOOL", [n], bytes([end]) * n),
            ]
            given = {}
        if self.route.endswith("http"):
            return self._http(shapes, given)
        return prefixed(self._grpc(shapes, given))

    def _http(self, shapes: list, given: dict) -> bytes:
        inputs = [
            {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}
            for name, kind, shape, data in shapes
        ]
        header = {"parameters": {**given, "binary_data_output": True}, "inputs": inputs}
        path = f"/v2/models/{self.model}/infer"
        return post(path, f"{self.host}:{self.port}", header, b"".join(data for *_, data in shapes))

    def _grpc(self, shapes: list, given: dict) -> bytes:
        from fastrnn.serving.server.messages import message

        request = message("ModelInferRequest")(model_name=self.model)
        for name, kind, shape, data in shapes:
            request.inputs.add(name=name, datatype=kind, shape=shape)
            request.raw_input_contents.append(data)
        for name, value in given.items():
            parameter = request.parameters[name]
            if isinstance(value, bool):
                parameter.bool_param = value
            else:
                parameter.int64_param = value
        return request.SerializeToString()


class Load:
    """The run of a plan."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.poll = select.epoll()  # first: select() takes descriptors up to 1023
        self.connections = [plan.connection(i) for i in range(plan.units)]
        self.by_fd: dict[int, Connection] = {}
        self.latencies: list[float] = []
        self.late: list[float] = []
        self.measured = (0.0, 0.0)

    def run(self) -> dict:
        """Connect, send, wait for the rest; the result."""
        plan = self.plan
        starts = [plan.message(i, True, False) for i in range(plan.units)]
        middles = [plan.message(i, False, False) for i in range(plan.units)]
        ends = [plan.message(i, False, True) for i in range(plan.units)]
        for connection in self.connections:
            connection.open()
            self.by_fd[connection.socket.fileno()] = connection
            self.poll.register(connection.socket, select.EPOLLIN)
        before = plan.ramp + plan.warm
        ramp, rounds = max(1, round(plan.ramp / plan.period)), round((before + plan.seconds) / plan.period)
        began = time.perf_counter() + 0.01
        self.measured = (began + before, began + before + plan.seconds)
        first = rounds - max(1, round(plan.seconds / plan.period))  # whose CPU time counts, to the end
        wrong, before, after = "", None, None
        try:
            for number in range(rounds + 1):
                messages = ends if number == rounds else middles
                if number < ramp:  # unit i starts in round i % ramp
                    messages = [
                        starts[i] if i % ramp == number else messages[i] if i % ramp < number else b""
                        for i in range(plan.units)
                    ]
                if number == first:
                    before = (time.perf_counter(), cpu_seconds(plan.pids), os.times())
                if number == rounds:
                    self.settle()  # on a busy machine none of the steps may have run yet
                    after = (time.perf_counter(), cpu_seconds(plan.pids), os.times())
                self.round(began + number * plan.period, messages)
            self.settle()
        except (Wrong, OSError) as error:
            wrong = f"{type(error).__name__}: {error}"
        return self.result(wrong, before, after, rounds - first)

    def round(self, start: float, messages: list[bytes]) -> None:
        """A step of each unit, each when it is due."""
        clock, gap = time.perf_counter, self.plan.period / self.plan.units
        for i, connection in enumerate(self.connections):
            if not messages[i]:
                continue
            due = start + i * gap
            while (left := due - clock()) > 0:
                self.receive(left)
            connection.send(messages[i], due)
            self.late.append(clock() - due)
            if not i % 16:
                self.receive()

    def receive(self, wait: float = 0.0) -> None:
        """Take what has come, and write what is left. wait: seconds for it; epoll alone counts in milliseconds."""
        if wait > 0:
            select.select([self.poll], [], [], wait)
        for fd, events in self.poll.poll(0):
            connection = self.by_fd[fd]
            if events & select.EPOLLOUT:
                connection.flush()
                if not connection.pending:
                    self.poll.modify(fd, select.EPOLLIN)
            if events & ~select.EPOLLOUT:
                data = connection.socket.recv(1 << 16)
                if not data:
                    raise Wrong("the server closed a connection")
                count = connection.received(data)
                if count:
                    now, due = time.perf_counter(), connection.due
                    for _ in range(count):
                        self.note(due.popleft(), now)
            if connection.pending:
                self.poll.modify(fd, select.EPOLLIN | select.EPOLLOUT)

    def note(self, due: float, now: float) -> None:
        """A reply came, or never did."""
        if self.measured[0] <= due < self.measured[1]:
            self.latencies.append(now - due)

    def settle(self) -> None:
        """Wait for the last replies."""
        end = time.perf_counter() + self.plan.wait
        while any(c.due for c in self.connections) and time.perf_counter() < end:
            self.receive(0.01)
        for connection in self.connections:
            if connection.due:
                raise Wrong(f"{len(connection.due)} requests of a connection got no reply in {self.plan.wait:g} s")

    def result(self, wrong: str, before, after, counted: int) -> dict:
        """JSON-able."""
        plan, ordered = self.plan, sorted(self.latencies)
        rows = plan.rows if plan.route.startswith("many") else 1
        found = {
            "route": plan.route,
            "sequences": plan.units * rows,
            "messages": len(ordered),
            "messages_per_second": len(ordered) / plan.seconds,
            "p50_ms": _at(ordered, 0.5) * 1e3,
            "p99_ms": _at(ordered, 0.99) * 1e3,
            "max_ms": _at(ordered, 1.0) * 1e3,
            "late_p99_ms": _at(sorted(self.late), 0.99) * 1e3,
            "reply_bytes": max(c.size for c in self.connections),
            "wrong": wrong,
        }
        if before and after and not wrong:
            seconds = after[0] - before[0]
            steps = counted * plan.units * rows
            found["own_cpu"] = (sum(after[2][:2]) - sum(before[2][:2])) / seconds
            found["server_cpu"] = (after[1] - before[1]) / seconds
            found["cpu_us_per_step"] = (after[1] - before[1]) / steps * 1e6
        return found


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that the threads of processes have used."""
    files = [file for pid in pids for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


if __name__ == "__main__":
    print(json.dumps(Load(Plan(json.loads(sys.argv[1]))).run()))
