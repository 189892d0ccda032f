"""Where records begin and end: around the application of HTTP and WebSocket, and around the calls of gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from .grpc_guard import client_of
from .watching import Record, Watch

QUIET = ("/v2/health/", "/metrics", "/live", "/page/")  # paths of probes and of the page itself
QUIET_CALLS = {"ServerLive", "ServerReady", "Check", "Watch"}


class WatchedHttp:
    """An ASGI application around another."""

    def __init__(self, app: Any, watch: Watch):
        self.app, self.watch = app, watch

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        path, socket = scope["path"], kind == "websocket"
        quiet = path == "/" or path.startswith(QUIET)
        record = Record(kind, f"{scope.get('method', 'GET')} {path}", "", many=socket, quiet=quiet)
        carrier = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        self.watch.begin(record, carrier)

        async def received() -> Any:
            message = await receive()
            record.received += len(message.get("body") or message.get("bytes") or message.get("text") or b"")
            return message

        async def sent(message: Any) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                record.status = message["status"]
            elif message["type"] == "websocket.accept":
                record.status = 101
            elif message["type"] == "websocket.close":
                record.fields["close"] = message.get("code", 1000)
            record.sent += len(message.get("body") or message.get("bytes") or message.get("text") or b"")
            await send(message)

        try:
            await self.app(scope, received, sent)
        finally:
            client = scope.get("client")
            record.client = str(scope.get("fastrnn.client") or (client[0] if client else "local"))
            if socket and record.messages == 0:
                record.fields.setdefault("model", scope.get("path_params", {}).get("model", ""))
            self.watch.end(record)


class WatchedGrpc(grpc.aio.ServerInterceptor):
    """An interceptor around the calls of gRPC."""

    def __init__(self, watch: Watch):
        self.watch = watch

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        method = details.method.rpartition("/")[2]
        carrier = {k.lower(): v for k, v in details.invocation_metadata or () if isinstance(v, str)}
        if handler.stream_stream is not None:
            make, inner = grpc.stream_stream_rpc_method_handler, self._stream(handler.stream_stream, method, carrier)
        elif handler.unary_unary is not None:
            make, inner = grpc.unary_unary_rpc_method_handler, self._unary(handler.unary_unary, method, carrier)
        else:
            return handler
        return make(inner, handler.request_deserializer, handler.response_serializer)

    def _begin(self, context: Any, method: str, carrier: dict[str, str], many: bool) -> Record:
        record = Record("grpc", method, client_of(context), many=many, quiet=method in QUIET_CALLS)
        return self.watch.begin(record, carrier)

    def _end(self, record: Record, context: Any, done: bool) -> None:
        code = context.code()
        number = code.value[0] if isinstance(code, grpc.StatusCode) else code
        names = {c.value[0]: c.name for c in grpc.StatusCode}
        record.status = names[number] if number else "OK" if done else "CANCELLED"
        if record.status == "UNAUTHENTICATED":  # refused before the record began
            record.reason = "token"
        self.watch.end(record)

    def _unary(self, call: Any, method: str, carrier: dict[str, str]) -> Any:
        async def watched(request: Any, context: Any) -> Any:
            record, response = self._begin(context, method, carrier, False), None
            record.received = request.ByteSize()
            try:
                response = await call(request, context)
                record.sent = response.ByteSize()
                return response
            finally:
                self._end(record, context, response is not None)

        return watched

    def _stream(self, call: Any, method: str, carrier: dict[str, str]) -> Any:
        async def watched(requests: Any, context: Any) -> AsyncIterator[Any]:
            record, done = self._begin(context, method, carrier, True), False

            async def counted() -> AsyncIterator[Any]:
                async for item in requests:
                    record.received += item.ByteSize()
                    yield item

            try:
                async for response in call(counted(), context):
                    record.sent += response.ByteSize()
                    yield response
                done = True
            finally:
                self._end(record, context, done)

        return watched
