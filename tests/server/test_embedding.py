"""Server inside other programs: several in one loop, starts that fail, ASGI applications, clients in their process."""

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from running import until

import fastrnn

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
pytest.importorskip("grpc", reason="no grpc: pip install 'fastrnn[serve]'")
from fastrnn.serving import Server
from fastrnn.serving.server import grpc as served_grpc
from fastrnn.serving.server.hosted import Request
from fastrnn.serving.server.whole import WholeRuns

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parents[2]


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


async def stepped(server, frames, name="m", id=1):
    """The answer to the first step of a sequence, over HTTP."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
    values = ",".join(map(repr, frames[0].tolist()))
    body = (
        f'{{"parameters":{{"sequence_id":{id},"sequence_start":true,"binary_data_output":true}},'
        f'"inputs":[{{"name":"x","datatype":"FP32","shape":[1,5],"data":[{values}]}}]}}'
    )
    head = f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    writer.write((head + body).encode())
    answer = await reader.read()
    writer.close()
    assert b" 200 OK" in answer, answer
    return np.frombuffer(answer[-32:], "<f4")


def sockets():
    """The sockets that this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/self/fd/{fd}")
            if link.startswith("socket:"):
                found.add(link)
    return found


def listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_two_servers_in_one_loop(model, frames, alone):
    async def main():
        async with Server({"m": model}, http_port=0, grpc_port=0) as one:
            async with Server({"m": model}, http_port=0, grpc_port=0) as two:
                assert len({one.http_port, one.grpc_port, two.http_port, two.grpc_port}) == 4
                for server in (one, two):
                    assert np.array_equal(await stepped(server, frames), alone[0])
                assert [len(s.engine.hosted("m").sequences.live) for s in (one, two)] == [1, 1]
            assert not listening(two.http_port)
            assert np.array_equal(await stepped(one, frames, id=2), alone[0])

    run(main())


def own_threads():
    return {t for t in threading.enumerate() if t.name.startswith("fastrnn")}


def test_servers_one_after_the_other_leave_nothing(model, frames, alone):
    others = own_threads()

    async def main():
        before = asyncio.all_tasks()
        for _ in range(3):
            async with Server({"m": model}, http_port=0, grpc_port=0) as server:
                assert np.array_equal(await stepped(server, frames), alone[0])
        await asyncio.sleep(0)
        assert asyncio.all_tasks() - before == set()

    run(main())
    assert own_threads() <= others


@pytest.mark.parametrize("kind", ["http_port", "grpc_port"])
def test_a_start_that_fails_leaves_nothing_open(model, kind):
    others = own_threads()

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ports = {"http_port": 0, "grpc_port": 0, kind: taken.getsockname()[1]}
            server = Server({"m": model}, **ports)
            with pytest.raises(OSError, match="can't be listened on"):
                await server.start()
            other = server.grpc_port if kind == "http_port" else server.http_port
            assert not other or not listening(other)
            await server.stop()

    run(main())
    gc.collect()
    before = sockets()
    run(main())
    gc.collect()
    assert len(sockets()) <= len(before)
    assert own_threads() <= others


def test_stop_may_be_called_at_any_time(model):
    async def main():
        await Server({"m": model}, http_port=0, grpc_port=0).stop()
        server = Server({"m": model}, http_port=0, grpc_port=None)
        await server.start()
        with pytest.raises(fastrnn.StreamError, match="this server was started already: make another one"):
            await server.start()
        await asyncio.gather(server.stop(), server.stop())
        await server.stop()
        with pytest.raises(fastrnn.StreamError, match="this server was started already: make another one"):
            await server.start()

    run(main())


def test_one_protocol_alone(model, frames, alone):
    async def main():
        async with Server({"m": model}, http_port=0, grpc_port=None) as server:
            assert server.grpc_port is None
            assert np.array_equal(await stepped(server, frames), alone[0])
        async with Server({"m": model}, http_port=None, grpc_port=0) as server:
            assert server.http_port is None
            assert listening(server.grpc_port)

    run(main())


def test_in_the_lifespan_of_another_application(model, frames, alone):
    """Such as FastAPI: the application starts and stops the server, in its own loop."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with Server({"m": model}, http_port=0, grpc_port=0) as server:
            app.state.server = server
            yield

    async def home(request):
        y = await stepped(request.app.state.server, frames)
        return JSONResponse({"same": bool(np.array_equal(y, alone[0]))})

    async def main():
        app = Starlette(routes=[Route("/", home)], lifespan=lifespan)
        listener = socket.create_server(("127.0.0.1", 0))
        own = uvicorn.Server(uvicorn.Config(app, log_config=None))
        task = asyncio.ensure_future(own._serve([listener]))
        while not own.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b'{"same":true}' in await reader.read()
        writer.close()
        port = app.state.server.http_port
        own.should_exit = True
        await task
        assert not listening(port)

    run(main())


@pytest.mark.parametrize(
    ("models", "text"),
    [
        ({}, "Server takes at least one model"),
        ({"m": {}}, "m: expected a Model or {version: Model}"),
        ({"m": "file.onnx"}, "m: expected a Model or {version: Model}, got 'file.onnx'"),
        ({"m": {0: None}}, "m: a version is a whole number from 1 on, got 0"),
        ({"m": {"1": None}}, "m: a version is a whole number from 1 on, got '1'"),
        ({"": None}, "the name of a model is a text without '/', got ''"),
        ({"a/b": None}, "the name of a model is a text without '/', got 'a/b'"),
        ({5: None}, "the name of a model is a text without '/', got 5"),
    ],
)
def test_wrong_models(models, text):
    with pytest.raises(fastrnn.ShapeError) as caught:
        Server(models)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"idle_timeout": 0}, {"max_sequences": 0}, {"queue_size": 0}, {"max_delay": -1}, {"on_evict": 3}]
)
def test_wrong_options(model, options):
    with pytest.raises(fastrnn.ShapeError, match=next(iter(options))):
        Server({"m": model}, **options)


@pytest.mark.parametrize("order", [0, 1])
def test_the_client_and_the_server_in_one_process(order):
    """Both describe the same messages to protobuf: imported in either order, a request goes through."""
    pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install 'fastrnn[test]'")
    imports = ["import tritonclient.grpc as triton", "import fastrnn.serving; fastrnn.serving.Server"]
    code = "\n".join(
        [
            *imports[:: 1 - 2 * order],
            "import asyncio, numpy as np, fastrnn",
            "model = fastrnn.load('examples/tone_words.onnx')",
            "async def main():",
            "    async with fastrnn.serving.Server({'words': model}, http_port=0, grpc_port=0) as server:",
            "        await asyncio.to_thread(ask, server.grpc_port)",
            "def ask(port):",
            "    x = triton.InferInput('bands', [1, 20], 'FP32')",
            "    x.set_data_from_numpy(np.zeros((1, 20), np.float32))",
            "    with triton.InferenceServerClient(f'127.0.0.1:{port}') as client:",
            "        y = client.infer('words', [x], sequence_id=1, sequence_start=True).as_numpy('words')",
            "    assert (y[0] == model.stream().step(np.zeros(20, np.float32))).all()",
            "    print('same')",
            "asyncio.run(main())",
        ]
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, env=env
    )
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


def test_times_by_the_loop_of_uvloop(model, frames):
    """Its time() has whole milliseconds, and a step takes less."""
    uvloop = pytest.importorskip("uvloop", reason="no uvloop: pip install 'fastrnn[serve]'")

    async def main():
        async with Server({"m": model}, http_port=None, grpc_port=None) as server:
            for t in range(30):
                given = {"sequence_id": 1, "sequence_start": t == 0}
                reply = await server.engine.infer(Request("m", "", "", given, {"x": frames[t : t + 1]}, (), "me"))
                assert reply.computed > 0
                whole = await server.engine.infer(Request("m", "", "", {}, {"x": frames[None, :2]}, (), "me"))
                assert whole.computed > 0
            ticks = server.engine.hosted("m").sequences.lanes[1].batcher.stats()
            assert ticks["tick_seconds"]["buckets"][0][1] < ticks["ticks"]  # not all in the first, as 0 is

    uvloop.run(main())


def infer_input(frames):
    grpc = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install 'fastrnn[test]'")
    x = grpc.InferInput("x", [1, *frames.shape], "FP32")
    x.set_data_from_numpy(frames[None])
    return grpc, [x]


def test_a_call_of_grpc_that_runs_is_answered_when_the_server_stops(serve, model, frames, alone, monkeypatch):
    """It had a second before."""
    grpc, inputs = infer_input(frames[:5])
    began, go, told = threading.Event(), threading.Event(), []
    answers = WholeRuns._answers

    def slow(self, requests):
        began.set()
        assert go.wait(60)
        return answers(self, requests)

    monkeypatch.setattr(WholeRuns, "_answers", slow)
    monkeypatch.setattr(served_grpc, "CALL_SECONDS", 60.0)
    with serve({"m": model}) as server, grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        client.async_infer("m", inputs, callback=lambda result, error: told.append((result, error)))
        assert began.wait(30)
        stopped = server.start(server.server.stop())
        time.sleep(1.3)
        go.set()
        stopped.result(30)
        until(lambda: told)
    ((result, error),) = told
    assert error is None
    assert np.array_equal(result.as_numpy(result.get_response().outputs[0].name)[0], alone[:5])


@pytest.mark.parametrize("kind", ["stream", "watch"])
def test_a_stream_of_grpc_does_not_keep_a_server_that_stops(serve, model, frames, kind, monkeypatch):
    grpc, inputs = infer_input(frames[:5])
    monkeypatch.setattr(served_grpc, "STREAM_SECONDS", 0.1)
    monkeypatch.setattr(served_grpc, "CALL_SECONDS", 600.0)
    told = []
    with serve({"m": model}) as server, grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        if kind == "stream":
            client.start_stream(lambda result, error: told.append((result, error)))
            client.async_stream_infer("m", inputs)
        else:
            watch = client._channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
            told.append(next(watch))
        until(lambda: told)
        server.start(server.server.stop()).result(30)
