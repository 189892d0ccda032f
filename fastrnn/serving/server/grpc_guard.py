"""The checks of `guard` for gRPC: tokens before a call's message is read, and the name of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc

from .faults import Fault
from .guard import OPEN_CALLS, Guard, client_address

_client: ContextVar[str] = ContextVar("fastrnn_client", default="")


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a token of the server.

    Parameters
    ----------
    guard : Guard, with tokens
    """

    def __init__(self, guard: Guard):
        self.guard = guard

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        if details.method not in OPEN_CALLS:
            header = next((value for key, value in details.invocation_metadata or () if key == "authorization"), None)
            try:
                _client.set(self.guard.client(header if isinstance(header, str) else None, ""))
            except Fault as fault:
                self.guard.count(fault)
                return _refusal(fault)
        return await continuation(details)


def _refusal(fault: Fault) -> grpc.RpcMethodHandler:
    """A method that refuses. That of a stream: a unary one would read the message first."""

    async def refuse(requests: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(fault), (("www-authenticate", "Bearer"),))
        yield  # it is a stream's

    return grpc.stream_stream_rpc_method_handler(refuse)


def client_of(context: grpc.aio.ServicerContext) -> str:
    """The name of who calls: that of its token, of its certificate, or its address."""
    name = _client.get()
    if name:
        return name
    subject = context.auth_context().get("x509_common_name")
    if subject:
        return subject[0].decode("utf-8", "replace")
    return address_of(context)


def address_of(context: grpc.aio.ServicerContext) -> str:
    """The address in gRPC's name of a peer, such as ipv4:127.0.0.1:5001 or ipv6:%5B::1%5D:5001."""
    peer = context.peer()
    address = peer.partition(":")[2].rpartition(":")[0]
    return client_address(address.replace("%5B", "").replace("%5D", "")) if address else "local"
