"""Who may ask what: tokens, the names of the server, the pages of other sites, and how often a client may ask.

`Guard` decides, and `Gate` asks it for HTTP and WebSocket, before any route; `grpc_guard` asks it for gRPC. A web
page can reach a server on its reader's own machine, so two checks hold without tokens too: the Origin of a request
must be the server itself or an allowed page, and a server that listens on loopback answers only to names that no
stranger's DNS can give it.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse

from ...errors import ShapeError
from .faults import Fault
from .limits import Clients
from .tokens import Tokens, bearer

# Open without a token: probes have none, and these say nothing of models, clients or data.
OPEN_PATHS = frozenset({"/", "/v2/health/live", "/v2/health/ready", "/openapi.json"})
OPEN_FILES = "/page/"  # of the live page, which asks its reader for the token
OPEN_CALLS = frozenset(
    {
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    }
)
SUBPROTOCOL = "fastrnn"  # of WebSockets; a page, which can send no header, offers "fastrnn.bearer.TOKEN" beside it
WITH_TOKEN = "fastrnn.bearer."


def wanted(*names: str) -> dict[bytes, str]:
    """The names of headers, for `headers_of`."""
    return {name.encode(): name for name in names}


def headers_of(scope: Any, names: dict[bytes, str]) -> dict[str, str]:
    """These headers of a request; of one that is given twice, the first."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in names:
            found.setdefault(names[name], value.decode("latin-1"))
    return found


CHECKED = wanted("host", "origin", "authorization")


class Guard:
    """What a server lets in.

    Parameters
    ----------
    host : that it listens on
    clients : Clients
    tokens : Tokens, or None
    secure : whether it speaks TLS
    origins : pages of other sites that may use it, such as "https://example.com"; "*" is every page
    hosts : further names that it answers to
    count : called with each Fault
    """

    def __init__(
        self,
        host: str,
        clients: Clients,
        tokens: Tokens | None,
        *,
        secure: bool,
        origins: Iterable[str],
        hosts: Iterable[str],
        count: Callable[[Fault], None],
    ):
        self.clients = clients
        self.tokens, self.count = tokens, count
        self.origins = frozenset(_origin(o) for o in origins)
        self.hosts = frozenset(h.lower() for h in hosts)
        # A page that points its own name at 127.0.0.1 has no token, and no certificate of that name.
        self.checks_host = bool(self.hosts) or (is_loopback(host) and tokens is None and not secure)

    def client(self, authorization: str | None, otherwise: str) -> str:
        """The name of who asks. Fault UNAUTHENTICATED: the token is missing or wrong. otherwise: its name without."""
        if self.tokens is None:
            return otherwise
        token = bearer(authorization)
        name = None if token is None else self.tokens.name_of(token)
        if name is not None:
            return name
        what = "this server asks for a token" if token is None else "the token is not one of this server's"
        raise Fault("UNAUTHENTICATED", "token", f"{what}: send the header Authorization: Bearer TOKEN")

    def check_names(self, host: str | None, origin: str | None) -> None:
        """Fault PERMISSION_DENIED: the request is for another server, or from a page of another site."""
        if self.checks_host and host is not None and not self._answers_to(host):
            raise Fault(
                "PERMISSION_DENIED",
                "host",
                f"this server does not answer to the name {host!r:.200}: start it with --allow-host NAME if it should",
            )
        if origin is None or "*" in self.origins or origin.lower() in self.origins:
            return
        if not _is_of(origin, host):
            raise Fault(
                "PERMISSION_DENIED",
                "origin",
                f"pages of {origin!r:.200} may not connect here: start the server with --allow-origin ORIGIN if they "
                "should",
            )

    def _answers_to(self, host: str) -> bool:
        """Whether a Host header is this server's. A name without a dot and an address can't be a stranger's page."""
        name = _hostname(host)
        return name in self.hosts or "." not in name or name.endswith(".localhost") or _is_address(name)


class Gate:
    """An ASGI application before another one.

    Parameters
    ----------
    app : what requests that pass go to
    guard : Guard
    """

    def __init__(self, app: Any, guard: Guard):
        self.app, self.guard = app, guard

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        guard, kind = self.guard, scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            client = scope["fastrnn.client"] = self._checked(scope)
            with guard.clients.stream(client) if kind == "websocket" else nullcontext():
                await self.app(scope, receive, send)
        except Fault as fault:  # of the checks: the application answers its own
            guard.count(fault)
            headers = retry_headers(fault)
            if fault.code == "UNAUTHENTICATED":
                headers["www-authenticate"] = 'Bearer realm="fastrnn"'
            await JSONResponse({"error": str(fault)}, fault.status, headers)(scope, receive, send)

    def _checked(self, scope: Any) -> str:
        """The client of a request that may pass. Fault: it may not."""
        guard, headers = self.guard, headers_of(scope, CHECKED)
        guard.check_names(headers.get("host"), headers.get("origin"))
        address = scope.get("fastrnn.certificate") or client_address(*(scope.get("client") or ("local",))[:1])
        if scope["type"] == "websocket":
            return guard.client(headers.get("authorization") or _offered(scope), address)
        if scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FILES):
            return address
        client = guard.client(headers.get("authorization"), address)
        guard.clients.take(client)
        return client


def guarded(app: Any, guard: Guard) -> Any:
    """An ASGI application behind the checks. Answers to pages of allowed sites have the headers of CORS."""
    gate: Any = Gate(app, guard)
    if not guard.origins:
        return gate
    return CORSMiddleware(
        gate,
        allow_origins=sorted(guard.origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "inference-header-content-length", "x-sequence-id"],
        expose_headers=["inference-header-content-length", "retry-after"],
    )


def retry_headers(fault: Fault) -> dict[str, str]:
    """The header that says when a request may be sent again."""
    return {} if fault.retry_after is None else {"retry-after": str(max(1, math.ceil(fault.retry_after)))}


@lru_cache(4096)
def client_address(host: str) -> str:
    """The name of a client that has only an address. Of IPv6 it is the network: one machine has all of it."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address) or address.is_loopback:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


def _offered(scope: Any) -> str | None:
    """The token among the subprotocols of a page, as an Authorization header."""
    for name in scope.get("subprotocols", ()):
        if name.startswith(WITH_TOKEN):
            return f"Bearer {name[len(WITH_TOKEN) :]}"
    return None


def _origin(text: str) -> str:
    """An allowed origin, as browsers write it."""
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    if text != "*" and text != "null" and (not parts.scheme or not parts.netloc or parts.path or parts.query):
        raise ShapeError(f"an origin is a scheme and a host, such as https://example.com, without a path; got {text!r}")
    return text.lower()


def _is_of(origin: str, host: str | None) -> bool:
    """Whether a page is of the server itself."""
    try:
        return bool(host) and urlsplit(origin).netloc.lower() == (host or "").lower()
    except ValueError:  # it is no URL
        return False


def _hostname(host: str) -> str:
    """The name of a Host header, without its port."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to what listens on a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
