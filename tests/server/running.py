"""A server in a thread of a test, and plain requests to it."""

import asyncio
import http.client
import json
import threading
import time

import fastrnn


class Running:
    """A server in a thread of its own; `do` runs a coroutine in its loop."""

    def __init__(self, models, **options):
        self._options, self._models = options, models
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    async def _main(self):
        self.loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with fastrnn.serving.Server(self._models, http_port=0, grpc_port=0, **self._options) as server:
            self.server, self.http, self.grpc = server, server.http_port, server.grpc_port
            self._ready.set()
            await self._end.wait()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(30), "the server did not start"
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server did not end"

    def do(self, coroutine):
        """The result of a coroutine in the server's loop."""
        return self.start(coroutine).result(30)

    def start(self, coroutine):
        """The future of a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    @property
    def sequences(self):
        """Those of the model "m"."""
        return self.server.engine.hosted("m").sequences


def ask(server, method, path, body=None, **headers):
    """(status, JSON or bytes, headers) of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=30)
    connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
    response = connection.getresponse()
    data, kind = response.read(), response.headers.get_content_type()
    connection.close()
    return response.status, json.loads(data) if kind == "application/json" else data, response.headers


def body(frame, **parameters):
    """The JSON of a request of one step."""
    x = {"name": "x", "datatype": "FP32", "shape": [1, 5], "data": frame.tolist()}
    return json.dumps({"inputs": [x], "parameters": parameters})


def connect(server, query="", **named):
    """A WebSocket."""
    import websockets.sync.client

    return websockets.sync.client.connect(f"ws://127.0.0.1:{server.http}/v2/models/m/stream{query}", **named)


def until(condition, what="it did not come", seconds=60):
    """Wait for a condition; what: why the test fails if it does not come true in that time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)
