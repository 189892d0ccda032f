"""Connections of HTTP and WebSocket: how many there are, and how slow or large a client may make them.

uvicorn bounds neither the time nor the size of a request's headers, nor the time of a TLS handshake, and a client that
reads nothing holds its connection for ever. These protocols are uvicorn's with such bounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from . import direct
from .http import CONNECTION, WHOLE
from .offers import Parser

# What uvicorn says of each malformed request would let strangers fill the log: set the level of this logger to see it.
logger = logging.getLogger("fastrnn.connections")
logger.setLevel(logging.ERROR)

HANDSHAKE_SECONDS = 10.0  # of TLS
HEADER_SECONDS = 10.0  # from the connection, or the first byte of a further request, to the end of its headers
REQUEST_SECONDS = 40.0  # to the end of its body, or of a WebSocket's message
STUCK_SECONDS = 30.0  # in which a client must read something of what is written to it
CLOSE_SECONDS = 5.0  # in which a closed connection must end
MOST_HEADER_BYTES = 64 << 10  # of the URL, and of all headers
MOST_HEADERS = 100
MOST_PIPELINED = 16  # requests of a connection that wait for the answer to an earlier one
MOST_FRAGMENTS = 1024  # of a WebSocket message
MOST_PINGS = 20  # of a WebSocket client within a second
UNREAD_BYTES = 1 << 20  # of answers to pings
SMALL_MESSAGE = 64 << 10  # bytes of a WebSocket's message that may come although too much is held
SWEEP_SECONDS = 1.0


class Connections:
    """The open connections of a server.

    Parameters
    ----------
    most : how many there may be
    most_per_client : of one address; None: no bound
    refused : called with the reason when one is not taken, or is dropped
    most_held : bytes of messages of WebSockets that are not whole
    """

    def __init__(self, most: int, most_per_client: int | None, refused: Callable[[str], None], most_held: int):
        self.most, self.most_per_client, self.refused = most, most_per_client, refused
        self.held, self.most_held = 0, most_held
        self.open: dict[Any, str] = {}  # protocol -> address
        self.by_address: Counter[str] = Counter()

    def admit(self, protocol: Any, address: str) -> bool:
        """Whether a connection may stay."""
        per_client = self.most_per_client
        if len(self.open) >= self.most or (per_client is not None and self.by_address[address] >= per_client):
            self.refused("connections")
            return False
        self.open[protocol] = address
        self.by_address[address] += 1
        return True

    def leave(self, protocol: Any) -> None:
        """A connection has ended, or has become another protocol's."""
        address = self.open.pop(protocol, None)
        if address is not None:
            self.by_address[address] -= 1
            if not self.by_address[address]:
                del self.by_address[address]

    def succeed(self, before: Any, after: Any) -> None:
        """A connection goes on with another protocol."""
        self.open[after] = self.open.pop(before)

    async def sweep(self) -> None:
        """Drop connections whose time is over, again and again."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = loop.time()
            for protocol in list(self.open):
                try:
                    protocol.look(now)
                except Exception:  # the checks of all others must go on
                    logger.exception("the check of a connection failed, so the connection is ended")
                    protocol.transport.abort()


class Paced:
    """What both protocols look after: a client that reads, and a connection that ends when it is closed."""

    transport: Any
    connections_of: Connections

    def _begin(self) -> None:
        self.unsent = 0
        self.stuck_since: float | None = None
        self.closing_since: float | None = None

    def look(self, now: float) -> None:
        """Drop the connection if the client takes too long to read, or it doesn't end."""
        if self.transport.is_closing():  # asyncio's transport of TLS can't tell what is unsent if it is closed twice
            if self.closing_since is None:
                self.closing_since = now
            elif now - self.closing_since > CLOSE_SECONDS:
                self.closing_since = math.inf  # drop it once
                self.drop("slow")
            return
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self.unsent or self.stuck_since is None:
            self.stuck_since = now
        self.unsent = unsent
        if unsent and now - self.stuck_since > STUCK_SECONDS:
            self.drop("slow")

    def drop(self, reason: str) -> None:
        """End the connection at once."""
        self.connections_of.refused(reason)
        self.transport.abort()


class HttpConnection(Paced, HttpToolsProtocol):
    """A connection of HTTP."""

    def __init__(self, connections_of: Connections, *args: Any, **named: Any):
        super().__init__(*args, **named)
        self.connections_of = connections_of
        self.parser = Parser(self)
        self.admitted = False
        self._since: float | None = None  # when the request began that is not complete
        self._in_headers = True
        self._size = self._count = self._partial = 0
        self._begun = False  # a request, in the bytes that are read now
        self._wrong = 400
        self.logger = logger
        self.lost = False
        self._gone: Callable[[], Any] | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin()
        self._since = self.loop.time()
        self._certificate = _common_name(transport.get_extra_info("peercert"))
        self.admitted = self.connections_of.admit(self, self.client[0] if self.client else "local")
        if not self.admitted:
            self._wrong = 503
            self.send_400_response("this server has as many connections as it takes: try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections_of.leave(self)
        super().connection_lost(exc)
        self.lost = True
        if self._gone is not None:
            self._gone()

    def watch(self, gone: Callable[[], Any] | None) -> None:
        """From now on a loss of the connection is told. It is found only if the connection is read on, which uvicorn
        does not do behind a request that waits for the one before."""
        self._gone = gone
        if gone is not None:
            self.flow.resume_reading()

    def data_received(self, data: bytes) -> None:
        if not self.admitted or self.parser is None or self.transport.is_closing():
            return
        self._begun = False
        super().data_received(data)
        if self._in_headers and not self._begun:
            self._partial += len(data)  # httptools tells of a header when it is complete
            if self._partial > 2 * MOST_HEADER_BYTES and not self.transport.is_closing():
                self._refuse(431, f"the headers have more than {MOST_HEADER_BYTES} bytes")

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        # uvicorn has made the transport's next protocol
        self.connections_of.succeed(self, self.transport.get_protocol())

    def send_400_response(self, msg: str) -> None:
        if self.transport.is_closing():  # it is answered
            return
        status, self._wrong = self._wrong, 400
        if status == 400:
            self.connections_of.refused("malformed")
        reason = {400: "Bad Request", 408: "Request Timeout", 414: "URI Too Long", 503: "Service Unavailable"}
        body = ('{"error": "' + msg + '"}').encode("ascii")
        head = f"HTTP/1.1 {status} {reason.get(status, 'Request Header Fields Too Large')}\r\n"
        retry = "retry-after: 1\r\n" if status == 503 else ""
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{retry}connection: close\r\n\r\n"
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    # -- bounds of a request --
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._since, self._in_headers = self.loop.time(), True
        self._size = self._count = self._partial = 0
        self._begun = True

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MOST_HEADER_BYTES:
            text = f"the URL has more than {MOST_HEADER_BYTES} bytes"
            self._refuse(414, text)
            raise httptools.HttpParserError(text)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._size += len(name) + len(value)
        self._count += 1
        if self._size > MOST_HEADER_BYTES or self._count > MOST_HEADERS:
            text = f"the headers are more than {MOST_HEADERS}, or have more than {MOST_HEADER_BYTES} bytes"
            self._refuse(431, text)
            raise httptools.HttpParserError(text)

    def ignores_upgrade(self) -> bool:
        """Whether the request offers another protocol, and goes on as HTTP."""
        return self.parser.should_upgrade() and self._get_upgrade() is not None and not self._should_upgrade()

    def on_headers_complete(self) -> None:
        if self.ignores_upgrade():
            return
        self._in_headers = False
        self.scope[CONNECTION] = self  # type: ignore[typeddict-unknown-key]
        if self._certificate is not None:
            self.scope["fastrnn.certificate"] = self._certificate
        super().on_headers_complete()
        if self._gone is not None:
            self.flow.resume_reading()  # at most MOST_PIPELINED requests wait
        if len(self.pipeline) > MOST_PIPELINED:
            self.drop("connections")
            raise httptools.HttpParserError("too many requests at once")

    def on_message_complete(self) -> None:
        if self.ignores_upgrade():
            return
        self._since = None
        self.scope[WHOLE] = True  # type: ignore[typeddict-unknown-key]
        super().on_message_complete()

    def _refuse(self, status: int, text: str) -> None:
        """Answer, and read no further."""
        self.connections_of.refused("message_size")
        self._wrong = status
        self.send_400_response(text)

    def look(self, now: float) -> None:
        super().look(now)
        if self._since is None or self.transport.is_closing():
            return
        busy = self.cycle is not None and not self.cycle.response_complete
        if self.pipeline or (busy and self._in_headers):  # it waits for an earlier request of the connection
            self._since = now
        elif now - self._since > (HEADER_SECONDS if self._in_headers else REQUEST_SECONDS):
            if not self._in_headers:
                self.drop("slow")
                return
            self.connections_of.refused("slow")
            self._wrong = 408
            self.send_400_response("the request did not come in time: send it again")


class WebSocketConnection(Paced, direct.Protocol):
    """A connection that has become a WebSocket."""

    def __init__(self, connections_of: Connections, **named: Any):
        super().__init__(**named)
        self.connections_of = connections_of
        self._pings, self._second = 0, 0.0
        self._held = 0  # bytes of a message that is not whole
        self._since: float | None = None  # when it began
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections_of.leave(self)
        super().connection_lost(exc)
        self._forget()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        held = len(self.conn.reader.buffer)
        if self.frames:
            held += sum(map(len, self.frames))
        if held != self._held:
            self._hold(held)

    def _forget(self) -> None:
        """Free the message that is not whole. The protocol is a cycle of objects, and the collector counts objects, so
        it would leave megabytes for long."""
        self.frames = []
        self.conn.reader.buffer.clear()
        self._hold(0)

    def _hold(self, held: int) -> None:
        """So many bytes of a message are here that is not whole. Small ones may always come."""
        every = self.connections_of
        every.held += held - self._held
        self._held = held
        if not held:
            self._since = None
        elif self._since is None:
            self._since = self.loop.time()
        if held > SMALL_MESSAGE and every.held > every.most_held and not self.transport.is_closing():
            self.drop("memory")
            self._forget()  # at once, or the next connections would be dropped for what is no longer held

    def look(self, now: float) -> None:
        super().look(now)
        if self.read_paused:  # the server reads no more of it
            self._since = None
        elif self._held and self._since is None:
            self._since = now
        if self._since is not None and now - self._since > REQUEST_SECONDS and not self.transport.is_closing():
            self.drop("slow")

    def handle_cont(self, event: Any) -> None:
        if len(self.frames) >= MOST_FRAGMENTS:  # empty ones would have no bound
            self.drop("message_size")
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        self._since = None  # it is whole
        if self.curr_msg_data_type == "text":  # uvicorn logs a traceback of one that is not UTF-8
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self.conn.send_close(1007)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        now = self.loop.time()
        if now - self._second > 1.0:
            self._second, self._pings = now, 0
        self._pings += 1
        if self._pings > MOST_PINGS or self.transport.get_write_buffer_size() > UNREAD_BYTES:
            self.drop("rate")
            return
        super().handle_ping()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True  # uvicorn forgets it and complains of a denied handshake


def _common_name(certificate: dict | None) -> str | None:
    """The name of a client in its certificate."""
    for part in (certificate or {}).get("subject", ()):
        for name, value in part:
            if name == "commonName":
                return value
    return None


class HttpServer(uvicorn.Server):
    """uvicorn on one listening socket, with these connections.

    Parameters
    ----------
    config : uvicorn.Config
    connections : Connections
    context : SSLContext, or None
    """

    def __init__(self, config: uvicorn.Config, connections: Connections, context: ssl.SSLContext | None):
        # uvicorn calls what it gets as a class
        config.http = partial(HttpConnection, connections)  # type: ignore[assignment]
        config.ws = partial(WebSocketConnection, connections)  # type: ignore[assignment]
        super().__init__(config)
        self.connections, self.context = connections, context

    async def serve_on(self, listener: Any) -> None:
        """Serve until `should_exit`. Signals stay those of the caller."""
        sweeper = asyncio.get_running_loop().create_task(self.connections.sweep())
        try:
            await self._serve([listener])
        finally:
            sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sweeper

    async def startup(self, sockets: list | None = None) -> None:
        """uvicorn's, with a bound on handshakes, which it has no option for."""
        await self.lifespan.startup()
        assert sockets
        self.listener = sockets[0]  # that the servers have copies of
        self.servers = [await self._listening()]
        self.started = True

    async def renew(self, context: ssl.SSLContext) -> None:
        """New connections get another context. Those that are open stay, and so do those that wait to be accepted."""
        self.context = context
        if self.started and not self.should_exit:
            before, self.servers = self.servers, [await self._listening()]
            for server in before:
                server.close()

    async def _listening(self) -> asyncio.Server:
        loop, config, state = asyncio.get_running_loop(), self.config, self.server_state
        made = partial(config.http_protocol_class, config=config, server_state=state, app_state={}, _loop=loop)
        secure: dict[str, Any] = {}
        if self.context is not None:
            secure = {"ssl": self.context, "ssl_handshake_timeout": HANDSHAKE_SECONDS}
            if sys.version_info >= (3, 11):
                secure["ssl_shutdown_timeout"] = CLOSE_SECONDS  # a transport that is closed twice can't be aborted
        return await loop.create_server(made, sock=self.listener.dup(), backlog=config.backlog, **secure)
