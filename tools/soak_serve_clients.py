"""The clients of soak_serve.py. Each takes its sequences through a server that is killed again and again; what it
sends, and in which order it replays after a kill, is up to it. Every answer is compared with a lone stream's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import struct

import aiohttp
import grpc
import numpy as np
import websockets
from soak_streams import Found, World

from fastrnn.serving.server.messages import SERVICE, message

EXPECTS = re.compile(r"expects step_index (\d+)|went on from step (\d+)")
# What a client may be told.
AGAIN = ("START flag", "is draining", "when this server ended", "try again", "send it again", "started again")
PAUSE = 0.05  # seconds until a lost connection is tried again


class Refused(Exception):
    """An answer that is an error. code : of gRPC, or the status of HTTP."""

    def __init__(self, code, text: str):
        super().__init__(f"{code}: {text}")
        self.code, self.text = code, text


class Gone(Exception):
    """No answer: the connection broke, or nothing listens."""


class Server:
    """How clients reach the server, by three protocols.

    Attributes
    ----------
    over : the clients stop
    """

    def __init__(self, found: Found, world: World, http: int, grpc_port: int):
        self.found, self.world, self.over = found, world, False
        self.base, self.ws = f"http://127.0.0.1:{http}", f"ws://127.0.0.1:{http}"
        self.http_port, self.grpc_port = http, grpc_port
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{grpc_port}",
            [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)],
        )
        call = {
            "request_serializer": lambda m: m.SerializeToString(),
            "response_deserializer": message("ModelInferResponse").FromString,
        }
        self.unary = self.channel.unary_unary(f"/{SERVICE}/ModelInfer", **call)
        call["response_deserializer"] = message("ModelStreamInferResponse").FromString
        self.stream = self.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer", **call)
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20))

    async def close(self) -> None:
        await self.session.close()
        await self.channel.close()

    # -- a request of one sequence --
    async def by_http(self, id, x: np.ndarray, **given) -> tuple[np.ndarray, int]:
        """(output, step_index)."""
        head = {
            "parameters": {"sequence_id": id, "binary_data_output": True, **given},
            "inputs": [_input("x", "FP32", x)],
        }
        found, arrays = await self.post(head, x.tobytes())
        return arrays["y"][0], found["parameters"]["step_index"]

    async def post(self, head: dict, tail: bytes) -> tuple[dict, dict[str, np.ndarray]]:
        """(the JSON of the answer, its tensors)."""
        text = json.dumps(head).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        try:
            async with self.session.post(f"{self.base}/v2/models/m/infer", data=text + tail, headers=headers) as answer:
                body = await answer.read()
                if answer.status != 200:
                    raise Refused(answer.status, json.loads(body)["error"])
                at = int(answer.headers["Inference-Header-Content-Length"])
        except (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError) as error:
            raise Gone(str(error)) from None
        found, arrays = json.loads(body[:at]), {}
        for item in found["outputs"]:
            size = item["parameters"]["binary_data_size"]
            dtype = np.float32 if item["datatype"] == "FP32" else np.int64
            arrays[item["name"]] = np.frombuffer(body[at : at + size], dtype).reshape(item["shape"])
            at += size
        return found, arrays

    async def by_grpc(self, id, x: np.ndarray, timeout: float = 20.0, **given) -> tuple[np.ndarray, int]:
        """(output, step_index)."""
        try:
            return answer_of(await self.unary(request(id, x, **given), timeout=timeout))
        except grpc.aio.AioRpcError as error:
            text = error.details() or ""
            lost = (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN)
            refused = error.code() is grpc.StatusCode.UNAVAILABLE and any(part in text for part in AGAIN)
            if error.code() in lost or (error.code() is grpc.StatusCode.UNAVAILABLE and not refused):
                raise Gone(text) from None
            raise Refused(error.code().name, text) from None

    def compare(self, sequence: int, first: int, y: np.ndarray, what: str) -> None:
        """Count the steps, and compare their bits."""
        self.found.counts["steps"] += len(y)
        if y.tobytes() != self.world.y[sequence, first : first + len(y)].tobytes():
            self.found.problem(f"WRONG BITS: {what}, sequence {sequence}, steps {first} to {first + len(y)}")


def _input(name: str, kind: str, array: np.ndarray) -> dict:
    return {
        "name": name,
        "datatype": kind,
        "shape": list(array.shape),
        "parameters": {"binary_data_size": array.nbytes},
    }


def request(id, x: np.ndarray, **given):
    """A ModelInferRequest."""
    made = message("ModelInferRequest")(model_name="m", id=str(given.get("step_index", "")))
    made.inputs.add(name="x", datatype="FP32", shape=x.shape)
    made.raw_input_contents.append(x.tobytes())
    for name, value in {"sequence_id": id, **given}.items():
        kind = "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else "string"
        setattr(made.parameters[name], f"{kind}_param", value)
    return made


def answer_of(response) -> tuple[np.ndarray, int]:
    """(output, step_index) of a ModelInferResponse."""
    (output,) = response.outputs
    y = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(tuple(output.shape))
    return y[0], response.parameters["step_index"].int64_param


class Client:
    """Takes one sequence after another to its end, each step with its index, so that it counts once."""

    def __init__(self, server: Server, name: str, seed: int):
        self.server, self.name, self.rng = server, name, random.Random(seed)
        self.number = seed * 1_000_000
        self.sent = 0  # steps of the current sequence that the server may have taken

    def new(self) -> tuple[int | str, int]:
        """(an id that was not used before, the number of its sequence)."""
        self.number, self.sent = self.number + 1, 0
        id = self.number if self.rng.random() < 0.5 else f"{self.name}-{self.number}"
        return id, self.rng.randrange(len(self.server.world.x))

    async def run(self) -> None:
        """Until the end. An error that should not be is a problem."""
        while not self.server.over:
            try:
                await self.turn()
                self.server.found.counts[f"{self.name} sequences"] += 1
            except (Gone, Refused) as error:
                if isinstance(error, Refused):
                    self.server.found.problem(f"{self.name}: {error}")
                await asyncio.sleep(PAUSE)

    async def turn(self) -> None:
        """One sequence."""
        raise NotImplementedError

    async def taken(self, ask, id, sequence: int, at: int, size: int, end: bool) -> int:
        """Take steps from `at` on, as often as it needs: after a kill, from where the server says that it is. Returns
        the next step."""
        server, steps = self.server, self.server.world.x.shape[1]
        goal, self.sent = min(at + size, steps), max(at, self.sent)
        while at < goal:
            last = min(goal, at + size)
            self.sent = max(self.sent, last)
            x = server.world.x[sequence, at:last][None]
            given = {"sequence_start": at == 0, "sequence_end": end and last == steps, "step_index": at}
            try:
                y, first = await ask(id, x, **given)
            except Gone:
                server.found.counts["broken connections"] += 1
                await asyncio.sleep(PAUSE)
                if server.over:
                    raise
                continue
            except Refused as error:
                at = await self.told(error, at)
                if at > self.sent:
                    server.found.problem(f"{self.name}: {id} is at step {at}, and steps up to {self.sent} were sent")
                if end and last == steps and at == 0 and "was ended by its client" in error.text:
                    return steps  # the answer to the last request was lost, and the sequence has ended
                continue
            server.compare(sequence, at, y.reshape(-1, y.shape[-1]), f"{self.name} {id}")
            if first != at:
                server.found.problem(f"{self.name}: step_index is {first}, not {at}")
            at = last
        return at

    async def told(self, error: Refused, at: int) -> int:
        """The step to go on from, after an error."""
        if match := EXPECTS.search(error.text):
            self.server.found.counts["replays"] += 1
            return int(match[1] or match[2])
        if "must specify the START flag" in error.text:
            self.server.found.counts["replays from START"] += 1
            return 0
        if error.code in (429, 503, "RESOURCE_EXHAUSTED", "UNAVAILABLE"):
            self.server.found.counts["told to wait"] += 1
            await asyncio.sleep(PAUSE)
            return at
        raise error


class Unary(Client):
    """Steps and chunks by HTTP or gRPC, some of which it stops waiting for."""

    async def turn(self) -> None:
        id, sequence = self.new()
        ask = self.server.by_http if self.rng.random() < 0.5 else self.server.by_grpc
        at, steps = 0, self.server.world.x.shape[1]
        while at < steps and not self.server.over:
            if self.rng.random() < 0.05:
                await self.impatient(id, sequence, at)
            at = await self.taken(ask, id, sequence, at, self.rng.choice((1, 1, 1, 3, 20)), True)
            await asyncio.sleep(self.rng.random() * 0.02)
            if self.rng.random() < 0.01:
                return  # without END: it is idle from now on
            if self.rng.random() < 0.01:
                at = 0  # START on a live id

    async def impatient(self, id, sequence: int, at: int) -> None:
        """Send the next step, and go before its answer; the index makes it count once."""
        x = self.server.world.x[sequence, at : at + 1][None]
        given = {"sequence_start": at == 0, "step_index": at}
        self.sent = max(self.sent, at + 1)
        with contextlib.suppress(Gone, Refused):
            await self.server.by_grpc(id, x, timeout=self.rng.random() * 0.004, **given)


class Streaming(Client):
    """Several sequences on one gRPC stream, all of their steps at once."""

    async def turn(self) -> None:
        lives = {id: [sequence, 0] for id, sequence in (self.new() for _ in range(6))}
        try:
            for start in range(0, self.server.world.x.shape[1], 10):
                await self.window(lives, start)
        except grpc.aio.AioRpcError:
            raise Gone("stream") from None

    async def window(self, lives: dict, start: int) -> None:
        """Ten steps of each on a stream of its own. If it breaks, the steps are taken one by one."""
        server = self.server
        sent = [(id, start + i) for i in range(10) for id in lives]

        async def items():
            for id, t in sent:
                x = server.world.x[lives[id][0], t : t + 1]
                yield request(id, x, sequence_start=t == 0, step_index=t, sequence_end=t == server.world.x.shape[1] - 1)

        try:
            answers = [answer async for answer in server.stream(items(), timeout=20.0)]
        except grpc.aio.AioRpcError:
            answers = []
        for (id, t), answer in zip(sent, answers, strict=False):
            if not answer.error_message and t == lives[id][1]:
                y, first = answer_of(answer.infer_response)
                server.compare(lives[id][0], t, y[None], f"{self.name} {id}")
                lives[id][1] = t + 1
                if first != t:
                    server.found.problem(f"{self.name}: step_index is {first}, not {t}")
        for id, (sequence, at) in lives.items():
            if at < start + 10:
                lives[id][1] = await self.taken(server.by_grpc, id, sequence, at, start + 10 - at, True)


class Many(Client):
    """A step of each of many sequences in one request."""

    async def turn(self) -> None:
        n, server = 40, self.server
        ids = np.arange(self.number, self.number + n, dtype=np.int64) + 1
        self.number += n
        sequences = [self.rng.randrange(len(server.world.x)) for _ in ids]
        t, steps = 0, server.world.x.shape[1]
        while t < steps and not server.over:
            x = server.world.x[sequences, t]
            flags = np.full(n, t == 0), np.full(n, t == steps - 1)
            tensors = [("x", "FP32", x), ("SEQUENCE_IDS", "INT64", ids), ("SEQUENCE_START", "BOOL", flags[0])]
            tensors += [("SEQUENCE_END", "BOOL", flags[1]), ("STEP_INDEX", "INT64", np.full(n, t, np.int64))]
            head = {"inputs": [_input(*item) for item in tensors], "parameters": {"binary_data_output": True}}
            try:
                _, arrays = await server.post(head, b"".join(a.tobytes() for *_, a in tensors))
                for i, sequence in enumerate(sequences):
                    server.compare(sequence, t, arrays["y"][i][None], f"{self.name} {ids[i]}")
            except (Gone, Refused):  # each row says where it is
                await asyncio.sleep(PAUSE)
                for id, sequence in zip(ids.tolist(), sequences, strict=True):
                    await self.taken(server.by_http, id, sequence, t, 1, True)
            t += 1


class Socket(Client):
    """A connection is a sequence, which ends with it: after a kill it begins another one."""

    async def turn(self) -> None:
        server, (_, sequence) = self.server, self.new()
        url = f"{server.ws}/v2/models/m/stream?output=binary"
        try:
            async with websockets.connect(url, open_timeout=20, ping_interval=None) as connection:
                at = 0
                while at < server.world.x.shape[1] and not server.over:
                    before, goal = at, min(at + self.rng.randrange(1, 80), server.world.x.shape[1])
                    while at < goal:
                        size = min(self.rng.choice((1, 1, 4)), goal - at)
                        await connection.send(server.world.x[sequence, at : at + size].tobytes())
                        at += size
                    if self.rng.random() < 0.05:
                        connection.transport.abort()
                        return
                    await self.answers(connection, sequence, before, at)
        except (OSError, websockets.WebSocketException, asyncio.TimeoutError):
            raise Gone("connection") from None

    async def answers(self, connection, sequence: int, first: int, last: int) -> None:
        """Compare the answers to the steps from `first` to `last`."""
        while first < last:
            data = await asyncio.wait_for(connection.recv(), 20)
            if isinstance(data, str):
                if any(part in data for part in AGAIN):
                    raise Gone(data)
                raise Refused("websocket", data)
            y = np.frombuffer(data, np.float32).reshape(-1, self.server.world.y.shape[2])
            self.server.compare(sequence, first, y, self.name)
            first += len(y)


class Flood(Client):
    """Hundreds of requests of one sequence at once: what is refused has no effect, and the rest is in order."""

    async def turn(self) -> None:
        server, (id, sequence) = self.server, self.new()
        await self.taken(server.by_grpc, id, sequence, 0, 1, False)
        for _ in range(4):
            x = server.world.x[sequence, 1:2][None]
            asked = [server.by_grpc(id, x, step_index=10**6) for _ in range(300)]  # no step has this index
            for error in await asyncio.gather(*asked, return_exceptions=True):
                if not isinstance(error, (Gone, Refused)):
                    server.found.problem(f"{self.name}: a wrong step_index was answered with {error!r:.100}")
                server.found.counts["flooding requests"] += 1
        await self.taken(server.by_grpc, id, sequence, 1, 30, False)
        await asyncio.sleep(0.5)


class Nonsense(Client):
    """Messages that no client should send, and connections that break in the middle of one."""

    BODIES = (b"", b"{", b"[1]", b'{"inputs": 3}', b'{"inputs": [{"name": "x"}]}', b"\xff" * 40, b"[" * 5000)

    async def turn(self) -> None:
        server = self.server
        for body in (*self.BODIES, self.rng.randbytes(200)):
            try:
                async with server.session.post(f"{server.base}/v2/models/m/infer", data=body) as answer:
                    text = await answer.text()
                    if answer.status not in (400, 404, 413):
                        server.found.problem(f"{self.name}: status {answer.status} for {body[:40]!r}: {text[:100]}")
            except (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError):
                raise Gone("http") from None
        for port in (server.http_port, server.grpc_port):
            for data in (self.rng.randbytes(300), b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 90\r\n\r\nx"):
                await self.broken(port, data)
        with contextlib.suppress(OSError, websockets.WebSocketException, asyncio.TimeoutError):
            async with websockets.connect(f"{server.ws}/v2/models/m/stream", open_timeout=20) as connection:
                await connection.send(b"12345")
                if "error" not in json.loads(await connection.recv()):
                    server.found.problem(f"{self.name}: a bad frame was taken")
        server.found.counts["wrong messages"] += len(self.BODIES) + 6
        await asyncio.sleep(0.3)

    async def broken(self, port: int, data: bytes) -> None:
        """Send something, and reset the connection."""
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            await writer.drain()
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()


KINDS = {"unary": (Unary, 12), "streaming": (Streaming, 3), "many": (Many, 2), "socket": (Socket, 6)}
KINDS |= {"flood": (Flood, 1), "nonsense": (Nonsense, 1)}
