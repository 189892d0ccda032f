"""Requests of HTTP that offer another protocol."""

from __future__ import annotations

import contextlib
from typing import Any

import httptools

UPGRADE_HEADERS = (b"upgrade", b"http2-settings")


class Parser(httptools.HttpRequestParser):
    """httptools' parser, which goes on after a request that offers another protocol than WebSocket.

    Such an offer may be ignored (RFC 9110, section 7.8). Java's HttpClient and `curl --http2` offer h2c with each
    request, and httptools takes what follows the headers, which is their body, for bytes of that protocol.

    Parameters
    ----------
    protocol : HttpConnection, whose parser it is
    """

    def __init__(self, protocol: Any):
        super().__init__(protocol)
        self.protocol = protocol
        with contextlib.suppress(AttributeError):  # httptools before 0.6.3
            self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def feed_data(self, data: bytes) -> None:
        """Parse bytes. The callbacks of a request with such an offer come twice; the first time it has no effect."""
        parser = self
        while True:
            try:
                httptools.HttpRequestParser.feed_data(parser, data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if not self.protocol.ignores_upgrade():
                    raise
                data = _without_offer(parser, self.protocol) + data[upgrade.args[0] :]
                parser = self.protocol.parser = Parser(self.protocol)


def _without_offer(parser: httptools.HttpRequestParser, protocol: Any) -> bytes:
    """The head of the request that was parsed, without its offer."""
    lines = [b"%s %s HTTP/%s" % (parser.get_method(), protocol.url, parser.get_http_version().encode())]
    for name, value in protocol.headers:
        if name == b"connection":
            value = b", ".join(t for t in value.split(b",") if t.strip().lower() not in UPGRADE_HEADERS)
        if name not in UPGRADE_HEADERS:
            lines.append(b"%s: %s" % (name, value))
    return b"\r\n".join([*lines, b"", b""])
