"""A small model, and what its lone streams answer."""

import asyncio
import threading

import numpy as np
import pytest

import fastrnn


@pytest.fixture(scope="session")
def model():
    rng = np.random.default_rng(7)
    W, R = (rng.normal(size=(24, n)).astype(np.float32) * 0.4 for n in (5, 8))
    return fastrnn.from_arrays("gru", W=W, R=R, order="zrh", threads=1)


@pytest.fixture(scope="session")
def frames():
    """float32 [400, 5]."""
    return np.random.default_rng(8).normal(size=(400, 5)).astype(np.float32)


@pytest.fixture(scope="session")
def alone(model, frames):
    """What one stream answers to the frames, [400, 8]."""
    return model.stream().push(frames)


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


@pytest.fixture(scope="session")
def serve():
    """Running: `with serve({"m": model}, **options) as server`."""
    pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
    pytest.importorskip("grpc", reason="no grpc: pip install 'fastrnn[serve]'")
    return Running


@pytest.fixture(scope="session")
def two_ends():
    """A model with two inputs and two outputs."""
    W, V, R = (np.eye(4, dtype=np.float32) * k for k in (0.5, 0.3, 0.2))
    text = "h = tanh(W @ x + V @ z + R @ prev(h))\ns = x + z"
    return fastrnn.from_equations(text, inputs={"x": 4, "z": 4}, outputs=["h", "s"], W=W, V=V, R=R)


@pytest.fixture(scope="module")
def running(model, two_ends):
    pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
    pytest.importorskip("grpc", reason="no grpc: pip install 'fastrnn[serve]'")
    with Running({"m": model, "two": two_ends}) as server:
        yield server


@pytest.fixture
def run():
    """Runs a coroutine to its end."""
    return lambda coroutine: asyncio.run(asyncio.wait_for(coroutine, 120))


@pytest.fixture(scope="session")
def redis(tmp_path_factory):
    """A real redis-server."""
    pytest.importorskip("fsspec", reason="no fsspec: pip install 'fastrnn[serve]'")
    from store_programs import Redis

    server = Redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(params=["folder", "redis"])
def url(request, tmp_path):
    """An empty store, of each kind that servers share."""
    if request.param == "folder":
        return str(tmp_path / "store")
    redis = request.getfixturevalue("redis")
    redis.empty()
    return redis.url


@pytest.fixture
def folder(tmp_path):
    """An empty store."""
    return str(tmp_path / "store")
