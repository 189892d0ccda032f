"""A small model, and what its lone streams answer."""

import asyncio

import numpy as np
import pytest
from running import Running, until

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


@pytest.fixture(scope="module")
def served(model, frames, alone, tmp_path_factory):
    """`fastrnn serve`, with a client whose sequence must go on."""
    pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
    pytest.importorskip("grpc", reason="no grpc: pip install 'fastrnn[serve]'")
    from attacked import MOST_GROWTH, Served, Victim

    folder = tmp_path_factory.mktemp("served")
    model.save(folder / "m.fastrnn")
    served = Served(folder)
    served.victim = Victim(served.grpc, frames, alone)
    served.victim.start()
    served.victim.goes_on()
    before, files = served.resident(), served.files()
    try:
        yield served
        served.victim.goes_on()
        served.victim.ended = True
        served.victim.join(60)
        served.victim.channel.close()
        assert served.resident() - before < MOST_GROWTH
        until(lambda: served.files() <= files + 2)
    finally:
        served.close()
    assert "Traceback" not in "".join(served.log), "".join(served.log)
    assert "ASGI" not in "".join(served.log), "".join(served.log)
