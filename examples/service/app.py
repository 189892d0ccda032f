"""A small ASGI service: each WebSocket connection is one live stream of the model.

    gunicorn -c gunicorn.conf.py app:app

A binary message holds one frame or several: float32, little-endian, `features` numbers each. The answer to it holds as
many frames of outputs. `GET /` answers with the worker's counters as JSON; use it as the health check too.

A connection stays with the worker that accepted it, so the state of its stream is always in the right process.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn.aio import Batcher

EXAMPLE = Path(__file__).resolve().parent.parent / "tone_words.onnx"
CAPACITY = int(os.environ.get("STREAMS_PER_WORKER", "1000"))
IDLE_SECONDS = 60.0
# WebSocket close codes
GOING_AWAY, WRONG_DATA, FAILED, TRY_LATER = 1001, 1007, 1011, 1013

# Loaded before gunicorn forks (preload_app): the workers share the memory of the weights. One thread per worker,
# because there is one worker per CPU.
model = fastrnn.load(os.environ.get("MODEL", EXAMPLE), threads=1)
FEATURES = model.inputs[0].dims[2]
# Made after the fork, in each worker: slots are the worker's own, and a Batcher belongs to one event loop.
batcher: Batcher | None = None


async def app(scope, receive, send):
    """The ASGI application."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await session(receive, send)
    else:
        await stats(send)


async def lifespan(receive, send):
    """Start and end of a worker."""
    global batcher
    while True:
        kind = (await receive())["type"]
        if kind == "lifespan.startup":
            batcher = Batcher(model.pool(CAPACITY), max_delay=0.002, idle_timeout=IDLE_SECONDS)
        else:
            await batcher.close()
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def session(receive, send):
    """One connection, from its first message to its end."""
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    try:
        slot = await batcher.open()
    except fastrnn.StateError:  # all slots are taken
        await send({"type": "websocket.close", "code": TRY_LATER, "reason": "too many streams, try again later"})
        return
    try:
        while (message := await receive())["type"] == "websocket.receive":
            data = message.get("bytes") or b""
            if not data or len(data) % (4 * FEATURES):
                reason = f"a message is float32 frames of {FEATURES} numbers"
                await send({"type": "websocket.close", "code": WRONG_DATA, "reason": reason})
                return
            frames = np.frombuffer(data, "<f4").reshape(-1, FEATURES)
            answer = await batcher.push(slot, frames)
            await send({"type": "websocket.send", "bytes": answer.astype("<f4", copy=False).tobytes()})
    except fastrnn.StateError:  # closed after IDLE_SECONDS without a frame
        await send({"type": "websocket.close", "code": GOING_AWAY, "reason": "no frame came for too long"})
    except fastrnn.FastRNNError as error:
        await send({"type": "websocket.close", "code": FAILED, "reason": str(error)[:120]})
    finally:
        with contextlib.suppress(fastrnn.FastRNNError):  # it is closed already
            await batcher.close_slot(slot)


async def stats(send):
    """The answer to an HTTP request."""
    pool = batcher.pool
    counts = {"pid": os.getpid(), "open": len(pool), "capacity": pool.capacity, **batcher.stats()}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(counts).encode()})
