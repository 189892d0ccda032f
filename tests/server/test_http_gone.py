"""Clients of HTTP that close their connection before they are answered, over our own server and over others."""

import asyncio
import contextlib
import json
import socket
import threading

import numpy as np
import pytest
from running import Running, body, until

from fastrnn.serving.server.engine import Engine
from fastrnn.serving.server.http import Application
from fastrnn.serving.server.limits import Limits
from fastrnn.serving.server.options import Options
from fastrnn.serving.server.sequence import Call

pytestmark = pytest.mark.any_isa
PATH = "/v2/models/m/infer"


@contextlib.contextmanager
def standing(server, frames):
    """The engine's thread takes no step meanwhile; what comes waits behind a tick that has begun."""
    free, lane = threading.Event(), server.sequences.lanes[1]
    server.do(server.sequences.run(call(frames, 0, True)))
    busy = server.start(lane.call(free.wait, 60))
    taken = server.start(server.sequences.run(call(frames, 1)))
    until(lambda: server.sequences.live["other"].running is not None and server.sequences.live["other"].running.taken)
    try:
        yield
    finally:
        free.set()
        busy.result(30), taken.result(30)


def call(frames, t, starts=False):
    return Call(("other",), (starts,), (False,), {"x": frames[t : t + 1]})


@contextlib.contextmanager
def sent(server, *requests):
    """A connection with these requests written to it."""
    with socket.create_connection(("127.0.0.1", server.http), timeout=30) as connection:
        for data in requests:
            connection.sendall(head(len(data)) + data)
        yield connection


def head(length):
    return f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


def step(frames, t, **parameters):
    return body(frames[t], sequence_id="a", **parameters).encode()


def answer_of(connection):
    """The first answer, as JSON."""
    got = b""
    while b"\r\n\r\n" not in got or not got.endswith(b"}"):
        got += connection.recv(4096)
    return json.loads(got.partition(b"\r\n\r\n")[2])


def values(answer):
    return np.array(answer["outputs"][0]["data"], np.float32)


def test_a_step_whose_client_has_gone_is_not_taken(model, frames, alone):
    with Running({"m": model}) as server:
        with sent(server, step(frames, 0, sequence_start=True)) as connection:
            assert np.array_equal(values(answer_of(connection)), alone[0])
        with standing(server, frames):
            lane = server.sequences.lanes[1]
            with sent(server, step(frames, 1)):
                until(lambda: len(lane.batcher) == 1)
            until(lambda: server.sequences.live["a"].running is None)
        with sent(server, step(frames, 1)) as connection:
            assert np.array_equal(values(answer_of(connection)), alone[1])


def test_what_was_sent_behind_it_is_dropped(model, frames, alone):
    """A client that has gone gets nothing for its second request either."""
    with Running({"m": model}) as server:
        with sent(server, step(frames, 0, sequence_start=True)) as connection:
            answer_of(connection)
        with standing(server, frames):
            lane = server.sequences.lanes[1]
            with sent(server, step(frames, 1)) as connection:
                until(lambda: len(lane.batcher) == 1)
                data = step(frames, 2)
                connection.sendall(head(len(data)) + data)
                (protocol,) = server.server._http.connections.open
                until(lambda: protocol.pipeline)  # uvicorn reads no further then, and would not see the end
            until(lambda: server.sequences.live["a"].running is None)
        with sent(server, step(frames, 1)) as connection:
            assert np.array_equal(values(answer_of(connection)), alone[1])


def test_a_body_in_many_pieces(model, frames, alone):
    """What is here as a whole is not waited for; this is not."""
    with Running({"m": model}) as server, sent(server) as connection:
        data = step(frames, 0, sequence_start=True)
        connection.sendall(head(len(data)))
        for at in range(0, len(data), 7):
            connection.sendall(data[at : at + 7])
        assert np.array_equal(values(answer_of(connection)), alone[0])
        connection.sendall(
            b"POST " + PATH.encode() + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        data = step(frames, 1)
        for at in range(0, len(data), 100):
            piece = data[at : at + 100]
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")
        assert np.array_equal(values(answer_of(connection)), alone[1])


class Asgi:
    """Another server: it calls the application with a scope that has nothing of ours."""

    def __init__(self, application):
        self.application = application

    async def post(self, data, gone=None, **scope):
        """(status, JSON) of a request. gone: an Event, at which the client goes."""
        messages = [{"type": "http.request", "body": data[:9], "more_body": True}]
        messages.append({"type": "http.request", "body": data[9:], "more_body": False})
        found = []

        async def receive():
            if messages:
                return messages.pop(0)
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message):
            found.append(message)

        asked = {"type": "http", "method": "POST", "path": PATH, "headers": [], "query_string": b"", "client": None}
        await self.application(asked | scope, receive, send)
        return found[0]["status"], json.loads(b"".join(m.get("body", b"") for m in found[1:]))


def test_servers_that_are_not_ours(run, model, frames, alone):
    """As Ray Serve: the same answers, and a step whose client has gone is not taken."""

    async def main():
        engine = Engine({"m": {1: model}}, Options(), Limits())
        await engine.start()
        try:
            asgi, lane = Asgi(Application(engine)), next(iter(engine)).sequences.lanes[1]
            status, answer = await asgi.post(step(frames, 0, sequence_start=True))
            assert status == 200
            assert np.array_equal(values(answer), alone[0])
            gone, free, sequences = asyncio.Event(), threading.Event(), next(iter(engine)).sequences
            await sequences.run(call(frames, 0, True))
            busy = [lane.call(free.wait, 60), sequences.run(call(frames, 1))]
            busy = [asyncio.ensure_future(item) for item in busy]
            while not (sequences.live["other"].running and sequences.live["other"].running.taken):
                await asyncio.sleep(0.001)
            asks = asyncio.ensure_future(asgi.post(step(frames, 1), gone))
            while not len(lane.batcher):
                await asyncio.sleep(0.001)
            gone.set()
            status, answer = await asks
            assert (status, answer["error"]) == (400, "the client closed the connection before the answer")
            free.set()
            await asyncio.gather(*busy)
            below = {"root_path": "/api", "path": "/api" + PATH}
            status, answer = await asgi.post(step(frames, 1), **below)
            assert status == 200
            assert np.array_equal(values(answer), alone[1])
            for scope, expected in (({"path": "/v2/models/none/infer"}, 404), ({"method": "PUT"}, 405)):
                assert (await asgi.post(step(frames, 2), **scope))[0] == expected
        finally:
            await engine.close()

    run(main())


def test_a_failure_of_the_server_itself_is_told_and_logged(model, frames, monkeypatch, caplog):
    async def fails(*_):
        raise RuntimeError("planted")

    with Running({"m": model}) as server:
        monkeypatch.setattr(Engine, "infer", fails)
        with sent(server, step(frames, 0, sequence_start=True)) as connection:
            assert answer_of(connection)["error"] == "the request failed, and the server's log says why"
        monkeypatch.undo()
        with sent(server, step(frames, 0, sequence_start=True)) as connection:
            assert "outputs" in answer_of(connection)
    assert "planted" in caplog.text
    assert f"POST {PATH} failed" in caplog.text
