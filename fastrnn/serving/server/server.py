"""Server: models behind HTTP, gRPC and WebSocket, in the event loop of the caller."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from typing import Any

import uvicorn

from ...errors import FastRNNError
from . import direct, metrics, websocket
from .engine import Engine, Limits
from .grpc import GrpcServer
from .hosted import versions_of
from .http import application
from .options import Options
from .tracing import tracer
from .watched import WatchedHttp
from .watching import watch

logger = logging.getLogger("fastrnn")


class Server:
    """Serves models to clients of the Open Inference Protocol v2, with Triton's sequences.

    async with Server({"vad": model}, http_port=0, grpc_port=0) as server:
        print(server.http_port, server.grpc_port)

    Parameters
    ----------
    models : name -> Model, or name -> {version: Model}
    host : address to listen on; only this machine by default
    http_port, grpc_port : 0: any free one; None: not this protocol
    limits : Limits
    origins : pages of other hosts that may connect by WebSocket, such as "https://example.com"
    access_log : "json" or "text": a line for each request goes to the logger "fastrnn.access"; "off": none
    tracer_provider : of OpenTelemetry, for a span for each request; None: the program's, if it has set one
    **options : those of `Options`

    Raises
    ------
    ShapeError : no model, or a wrong option. OSError : a port is taken.
    """

    def __init__(
        self,
        models: dict[str, Any],
        *,
        host: str = "127.0.0.1",
        http_port: int | None = 8000,
        grpc_port: int | None = 8001,
        limits: Limits | None = None,
        origins: Iterable[str] = (),
        access_log: str = "off",
        tracer_provider: Any = None,
        **options: Any,
    ):
        self.engine = Engine(versions_of(models), Options(**options), limits or Limits())
        self.engine.watch = watch(access_log, tracer(tracer_provider))
        self.origins = frozenset(origins)
        self.host = host
        self.http_port: int | None = http_port
        self.grpc_port: int | None = grpc_port
        self._http: uvicorn.Server | None = None
        self._grpc: GrpcServer | None = None
        self._serving: asyncio.Task | None = None

    async def start(self) -> None:
        """Listen. It returns when requests are answered."""
        await self.engine.start()
        try:
            if self.grpc_port is not None:
                self._grpc = GrpcServer(self.engine)
                self.grpc_port = await self._grpc.start(self.host, self.grpc_port)
            if self.http_port is not None:
                await self._start_http(self.http_port)
        except BaseException:
            await self.stop()
            raise

    async def _start_http(self, port: int) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.host, port))
        except OSError as error:
            listener.close()
            raise OSError(error.errno, f"{self.host}:{port} can't be listened on: {error.strerror}") from None
        self.http_port = int(listener.getsockname()[1])
        routes = [websocket.route(self.engine, self.origins), metrics.route(self.engine)]
        app = application(self.engine, routes)
        config = uvicorn.Config(
            app if self.engine.watch is None else WatchedHttp(app, self.engine.watch),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=5,
            ws=direct.protocol(),
            ws_max_size=self.engine.limits.message_bytes,
            ws_per_message_deflate=False,  # float32 does not get smaller, and bombs don't get in
        )
        self._http = uvicorn.Server(config)
        self._serving = asyncio.get_running_loop().create_task(_serve(self._http, listener))
        while not self._http.started:
            if self._serving.done():
                await self._serving
                raise FastRNNError("the HTTP server ended at its start")
            await asyncio.sleep(0.001)

    async def drain(self, seconds: float = 0.0) -> None:
        """Not ready from now on: no sequence starts. Returns when the last one has ended, or after these seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        for hosted in self.engine:
            hosted.sequences.draining = True
        while any(hosted.sequences.live for hosted in self.engine) and loop.time() < end:
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Start no sequence, finish what waits, close the ports. It may be called again."""
        await self.engine.drain()
        await websocket.close_all(self.engine)
        if self._grpc is not None:
            await self._grpc.stop()
            self._grpc = None
        if self._http is not None and self._serving is not None:
            self._http.should_exit = True
            await asyncio.wait([self._serving])
            self._http = None
        await self.engine.close()

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    """Run uvicorn in this loop; signals stay those of the caller."""
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    await server._serve([listener])
