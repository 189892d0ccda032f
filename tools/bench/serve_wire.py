"""Bytes of the protocols that tools/bench/serve_load.py speaks, prepared ahead: what a client sends at every step is
the same, so that the load generator only writes buffers and counts replies.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
from collections import deque

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
FIRST_WINDOW = 65_535


class Wrong(Exception):
    """A reply that says that the request failed."""


class Connection:
    """A client's connection: `send` queues a request, `received` takes bytes of replies.

    due : when each request that has no reply yet should have been sent
    pending : bytes that the socket did not take
    size : bytes of the last reply
    """

    def __init__(self, host: str, port: int):
        self.socket = socket.create_connection((host, port), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.address = f"{host}:{port}"
        self.due: deque[float] = deque()
        self.pending = b""
        self.data = b""
        self.size = 0

    def open(self) -> None:
        """Finish the handshake; the socket does not block from then on."""
        self.socket.setblocking(False)

    def write(self, data: bytes) -> None:
        """Send bytes, now or when the socket takes them."""
        if self.pending:
            self.pending += data
            return
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.pending = data[sent:]

    def flush(self) -> None:
        """Send what is left."""
        data, self.pending = self.pending, b""
        if data:
            self.write(data)

    def send(self, message: bytes, due: float) -> None:
        """Send a request, or queue it."""
        self.due.append(due)
        self.write(message)

    def received(self, data: bytes) -> int:
        """The number of replies that these bytes complete. Wrong: one is an error."""
        raise NotImplementedError


class WebSocketConnection(Connection):
    """A connection of one sequence; its messages are masked frames."""

    def __init__(self, host: str, port: int, path: str):
        super().__init__(host, port)
        self.path = path

    def open(self) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        text = (
            f"GET {self.path} HTTP/1.1\r\nHost: {self.address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self.socket.sendall(text.encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            part = self.socket.recv(4096)
            if not part:
                raise Wrong(f"the handshake was refused: {answer[:200]!r}")
            answer += part
        if b" 101 " not in answer[:20]:
            raise Wrong(f"the handshake was refused: {answer[:200]!r}")
        super().open()

    def received(self, data: bytes) -> int:
        data, at, count = self.data + data if self.data else data, 0, 0
        while len(data) - at >= 2:
            size, head = data[at + 1], 2
            if size == 126:
                if len(data) - at < 4:
                    break
                size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
            if len(data) - at < head + size:
                break
            if data[at] & 15 == 8 or data[at + head : at + head + 8] == b'{"error"':
                raise Wrong(data[at + head : at + head + 200].decode(errors="replace"))
            at += head + size
            count += 1
            self.size = size
        self.data = data[at:]
        return count


class HttpConnection(Connection):
    """A connection with one request in flight, as HTTP/1.1 has it; others wait for their turn."""

    def __init__(self, host: str, port: int):
        super().__init__(host, port)
        self.queue: deque[bytes] = deque()

    def send(self, message: bytes, due: float) -> None:
        self.due.append(due)
        if len(self.due) > 1:
            self.queue.append(message)
        else:
            self.write(message)

    def received(self, data: bytes) -> int:
        data, count = self.data + data if self.data else data, 0
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head = data[:end].lower()
            at = head.find(b"\r\ncontent-length:")
            if at < 0:
                raise Wrong(f"a reply without its length: {data[:200]!r}")
            size = int(head[at + 17 :].split(b"\r\n", 1)[0])
            if len(data) < end + 4 + size:
                break
            if b" 200 " not in head[:16]:
                raise Wrong(data[end + 4 : end + 204].decode(errors="replace"))
            data = data[end + 4 + size :]
            count += 1
            self.size = size
            if self.queue:
                self.write(self.queue.popleft())
        self.data = data
        return count


class GrpcConnection(Connection):
    """HTTP/2 with the least that gRPC needs: one stream of messages, or one call after another.

    unary : each request is a call of its own, with one in flight
    """

    def __init__(self, host: str, port: int, path: str, unary: bool):
        super().__init__(host, port)
        self.unary = unary
        self.block = b"".join(
            _literal(name, value)
            for name, value in (
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", path.encode()),
                (b":authority", self.address.encode()),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
            )
        )
        self.stream = -1 if unary else 1
        self.window = FIRST_WINDOW  # of the connection
        self.first = self.room = FIRST_WINDOW  # of a stream
        self.most = 16_384  # bytes of a frame
        self.queue: deque[bytes] = deque()
        self.body = b""  # of replies, not yet a message
        self.answered = False  # the call that runs has its message

    def open(self) -> None:
        settings = struct.pack("!HIHI", 2, 0, 4, (1 << 31) - 1)
        start = PREFACE + _frame(SETTINGS, 0, 0, settings)
        start += _frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", (1 << 31) - 1 - FIRST_WINDOW))
        if not self.unary:
            start += _frame(HEADERS, 4, 1, self.block)
        self.socket.sendall(start)
        super().open()

    def send(self, message: bytes, due: float) -> None:
        self.due.append(due)
        self.queue.append(message)
        if self.unary and len(self.due) == 1:
            self._call()
        elif not self.unary:
            self._pump()

    def _call(self) -> None:
        self.stream += 2
        self.room = self.first
        message = self.queue.popleft()
        self.window -= len(message)
        self.write(_frame(HEADERS, 4, self.stream, self.block) + _frame(DATA, 1, self.stream, message))

    def _pump(self) -> None:
        """Send queued messages as far as the windows allow."""
        frames = []
        while self.queue:
            message = self.queue[0]
            size = min(len(message), self.most, self.window, self.room)
            if size <= 0:
                break
            frames.append(_frame(DATA, 0, 1, message[:size]))
            self.window -= size
            self.room -= size
            if size == len(message):
                self.queue.popleft()
            else:
                self.queue[0] = message[size:]
        if frames:
            self.write(b"".join(frames))

    def received(self, data: bytes) -> int:
        data, at, count = self.data + data if self.data else data, 0, 0
        while len(data) - at >= 9:
            size = int.from_bytes(data[at : at + 3], "big")
            if len(data) - at < 9 + size:
                break
            kind, flags = data[at + 3], data[at + 4]
            count += self._frame(kind, flags, data[at + 5 : at + 9], data[at + 9 : at + 9 + size])
            at += 9 + size
        self.data = data[at:]
        return count

    def _frame(self, kind: int, flags: int, stream: bytes, payload: bytes) -> int:
        """Take one frame; the replies that it completes."""
        if kind == DATA:
            self.body += payload
            return self._messages()
        if kind == HEADERS and flags & 1:
            if not self.unary or not self.answered:
                raise Wrong("the call ended with an error")
            self.answered = False
            if self.queue:
                self._call()
        elif kind == SETTINGS and not flags & 1:
            self._settings(payload)
            self.write(_frame(SETTINGS, 1, 0, b""))
        elif kind == PING and not flags & 1:
            self.write(_frame(PING, 1, 0, payload))
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if any(stream):
                self.room += more
            else:
                self.window += more
            if not self.unary:
                self._pump()
        elif kind in (RESET, GOAWAY):
            raise Wrong(f"the server ended the call: {payload!r}")
        return 0

    def _settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack("!HI", payload):
            if name == 4:
                self.room += value - self.first
                self.first = value
            elif name == 5:
                self.most = min(value, 1 << 20)

    def _messages(self) -> int:
        body, at, count = self.body, 0, 0
        while len(body) - at >= 5:
            size = int.from_bytes(body[at + 1 : at + 5], "big")
            if len(body) - at < 5 + size:
                break
            if not self.unary and body[at + 5 : at + 6] == b"\x0a":  # error_message
                raise Wrong(body[at + 5 : at + 205].decode(errors="replace"))
            at += 5 + size
            count += 1
            self.size = size
        self.body = body[at:]
        self.answered |= count > 0
        return count


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack("!BHBBI", len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


# -- requests --
def masked(payload: bytes) -> bytes:
    """A binary frame of a client; a mask of zeros leaves the payload as it is."""
    size = len(payload)
    head = struct.pack("!BBH", 0x82, 0x80 | 126, size) if 126 <= size < 1 << 16 else None
    if head is None:
        head = struct.pack("!BB", 0x82, 0x80 | size) if size < 126 else struct.pack("!BBQ", 0x82, 0x80 | 127, size)
    return head + bytes(4) + payload


def post(path: str, address: str, header: dict, tail: bytes) -> bytes:
    """An inference request with binary tensors over HTTP."""
    text = json.dumps(header).encode()
    lines = (
        f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(text)}\r\nContent-Length: {len(text) + len(tail)}\r\n\r\n"
    )
    return lines.encode() + text + tail


def prefixed(message: bytes) -> bytes:
    """A message of gRPC."""
    return struct.pack("!BI", 0, len(message)) + message
