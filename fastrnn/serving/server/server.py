"""Server: models behind HTTP, gRPC and WebSocket, in the event loop of the caller."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

import uvicorn

from ...errors import FastRNNError
from . import live, metrics, openapi, websocket
from .connections import Connections, HttpServer
from .engine import Engine
from .faults import Fault
from .grpc import GrpcServer
from .guard import Guard, guarded, is_loopback
from .hosted import versions_of
from .http import Application
from .limits import HELD_MESSAGES, Limits
from .options import Options
from .peers import Peers
from .tls import Certificates, Tls
from .tokens import Tokens
from .tracing import tracer
from .watched import WatchedHttp
from .watching import watch

logger = logging.getLogger("fastrnn")
KEEP_ALIVE_SECONDS = 75  # longer than proxies keep theirs, so that these close an idle connection and not the server


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
    tls : Tls; both ports then speak TLS alone
    tokens : path of a file of bearer tokens, one a line, or `name: token`; every client then needs one
    origins : pages of other sites that may use the server, such as "https://example.com"; "*" is every page
    hosts : further names that a server on loopback answers to, besides addresses and names without a dot
    access_log : "json" or "text": a line for each request goes to the logger "fastrnn.access"; "off": none
    tracer_provider : of OpenTelemetry, for a span for each request; None: the program's, if it has set one
    profile : fastrnn.profile, for the live page to show what a step should cost. It is called when the page is first
        opened, and takes about a second of one core; None: not shown
    worker : (folder of their sockets, its number, how many) of a process of `fastrnn serve --workers`
    **options : those of `Options`

    Raises
    ------
    ShapeError : no model, or a wrong option. FastRNNError : a file of tls or tokens is wrong. OSError : a port is
    taken.
    """

    def __init__(
        self,
        models: dict[str, Any],
        *,
        host: str = "127.0.0.1",
        http_port: int | None = 8000,
        grpc_port: int | None = 8001,
        limits: Limits | None = None,
        tls: Tls | None = None,
        tokens: str | os.PathLike[str] | None = None,
        origins: Iterable[str] = (),
        hosts: Iterable[str] = (),
        access_log: str = "off",
        tracer_provider: Any = None,
        worker: tuple[str | os.PathLike[str], int, int] | None = None,
        profile: Callable[..., Any] | None = None,
        **options: Any,
    ):
        self.engine = Engine(versions_of(models), Options(**options), limits or Limits())
        self._expected = live.Expected(self.engine, profile)
        self.engine.peers = None if worker is None else Peers(*worker)
        self.engine.watch = watch(access_log, tracer(tracer_provider))
        self.host = host
        self.certificates = None if tls is None else Certificates(tls)
        self.guard = Guard(
            host,
            self.engine.clients,
            None if tokens is None else Tokens(tokens),
            secure=tls is not None,
            origins=origins,
            hosts=hosts,
            count=self.engine.refused,
        )
        self.http_port: int | None = http_port
        self.grpc_port: int | None = grpc_port
        self._http: HttpServer | None = None
        self._grpc: GrpcServer | None = None
        self._serving: asyncio.Task | None = None

    async def start(self) -> None:
        """Listen. It returns when requests are answered."""
        if not self._closed_to_strangers():
            logger.warning(
                "the server listens on %s without tokens or client certificates: anyone who can reach it can use it, "
                "and go on with sequences whose ids they guess. Give it --token-file FILE or --tls-client-ca FILE",
                self.host,
            )
        for hosted in self.engine if self.engine.peers is None or self.engine.peers.index == 0 else ():
            for version, why in hosted.stateless.items():
                if hosted.models[version].streamable:
                    logger.warning(why)
        await self.engine.start()
        try:
            if self.engine.peers is not None:
                answers = {"statistics": self.engine.statistics, "move": self.engine.move}
                answers["live"] = lambda: live.snapshot(self.engine, self._expected)
                await self.engine.peers.start(self.engine, metrics=lambda: metrics.text_of(self.engine), **answers)
            if self.grpc_port is not None:
                self._grpc = GrpcServer(self.engine, self.guard, self.certificates)
                self.grpc_port = await self._grpc.start(self.host, self.grpc_port)
            if self.http_port is not None:
                await self._start_http(self.http_port)
            if self.engine.peers is not None:
                await self.engine.peers.met()
        except BaseException:
            await self.stop()
            raise

    async def _start_http(self, port: int) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.engine.peers is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind((self.host, port))
        except OSError as error:
            listener.close()
            raise OSError(error.errno, f"{self.host}:{port} can't be listened on: {error.strerror}") from None
        self.http_port = int(listener.getsockname()[1])
        limits = self.engine.limits
        own = [websocket.route(self.engine), metrics.route(self.engine), openapi.route(self.engine)]
        routes = [*own, *live.routes(self.engine, self._expected)]
        app = guarded(Application(self.engine, routes), self.guard)
        config = uvicorn.Config(
            app if self.engine.watch is None else WatchedHttp(app, self.engine.watch),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=5,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            server_header=False,
            ws_max_size=limits.message_bytes,
            ws_per_message_deflate=False,  # float32 does not get smaller, and bombs don't get in
        )
        held = HELD_MESSAGES * limits.message_bytes
        connections = Connections(limits.connections, limits.client_connections, self._dropped, held)
        self._http = HttpServer(config, connections, self.certificates and self.certificates.context)
        self._serving = asyncio.get_running_loop().create_task(self._http.serve_on(listener))
        while not self._http.started:
            if self._serving.done():
                await self._serving
                raise FastRNNError("the HTTP server ended at its start")
            await asyncio.sleep(0.001)

    def _closed_to_strangers(self) -> bool:
        mutual = self.certificates is not None and self.certificates.files.client_ca is not None
        return is_loopback(self.host) or self.guard.tokens is not None or mutual

    def _dropped(self, reason: str) -> None:
        """A connection was refused or ended."""
        self.engine.refused(Fault("UNAVAILABLE", reason, "the connection was dropped"))

    async def reload(self) -> None:
        """Read the tokens and the files of TLS again. Open connections stay.

        Raises
        ------
        FastRNNError : a file is wrong. What it held before stays valid, and so does everything else.
        """
        if self.guard.tokens is not None:
            self.guard.tokens.reload()
        if self.certificates is not None:
            self.certificates.reload()
            if self._http is not None:
                await self._http.renew(self.certificates.context)

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
        if self.engine.peers is not None:
            await self.engine.peers.close()
        await self.engine.close()

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
