"""The Open Inference Protocol over HTTP, as a Starlette application."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import bodies
from .engine import Engine
from .faults import Fault, brief, invalid
from .guard import headers_of, retry_headers, wanted
from .limits import Clients
from .sequence import checked_id, number_of, shown

logger = logging.getLogger("fastrnn")
LEAST_COMPRESSED = 1 << 10  # bytes of an answer; less would hardly shrink
LARGE_COMPRESSED = 16 << 10  # bytes that may become 16 MiB, which others should not wait for
BODY_SECONDS = 30.0  # in which a whole body must come
GONE = "the client closed the connection"
INFER = re.compile(r"/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?/infer")
INFER_HEADERS = wanted("content-length", "content-encoding", "accept-encoding", bodies.LENGTH)
# What this server's connections put into a scope: themselves, and, once the whole body is here, that it is.
CONNECTION, WHOLE = "fastrnn.connection", "fastrnn.whole"


class Endpoints:
    """The routes over an Engine.

    Parameters
    ----------
    engine : Engine
    """

    def __init__(self, engine: Engine):
        self.engine = engine

    def routes(self) -> list[Route]:
        """All of them."""
        model = "/v2/models/{model}"
        both = [model, model + "/versions/{version}"]
        get, post = ["GET"], ["POST"]
        found = [
            Route("/v2", self.server, methods=get),
            Route("/v2/health/live", self.live, methods=get),
            Route("/v2/health/ready", self.ready, methods=get),
            Route("/v2/repository/index", self.index, methods=post),
            Route("/v2/models/stats", self.stats, methods=get),
            Route(model + "/sequences/{id:path}/move", self.move, methods=post),  # an id may have a slash
        ]
        for base in both:
            found += [
                Route(base, self.metadata, methods=get),
                Route(base + "/ready", self.model_ready, methods=get),
                Route(base + "/config", self.config, methods=get),
                Route(base + "/stats", self.stats, methods=get),
                Route(base + "/infer", self.infer, methods=post),
            ]
        return found

    # -- about the server --
    async def server(self, request: Request) -> Response:
        return JSONResponse(self.engine.metadata())

    async def live(self, request: Request) -> Response:
        return _health({"live": self.engine.live()})

    async def ready(self, request: Request) -> Response:
        troubles = self.engine.troubles()
        return _health({"ready": self.engine.ready()} | ({"troubles": troubles} if troubles else {}))

    async def index(self, request: Request) -> Response:
        return JSONResponse(self.engine.index())

    # -- about a model --
    async def metadata(self, request: Request) -> Response:
        return JSONResponse(self._hosted(request).metadata(_version(request)))

    async def model_ready(self, request: Request) -> Response:
        name, version = request.path_params["model"], self._hosted(request).version(_version(request))
        return _health({"name": name, "version": str(version), "ready": self.engine.ready()})

    async def config(self, request: Request) -> Response:
        return JSONResponse(self._hosted(request).config(_version(request)))

    async def stats(self, request: Request) -> Response:
        name = request.path_params.get("model", "")
        return JSONResponse({"model_stats": await self.engine.all_statistics(name, _version(request))})

    # -- inference --
    async def infer(self, request: Request) -> Response:
        hosted = self._hosted(request)
        asked = headers_of(request.scope, INFER_HEADERS)
        body = await _body(request, self.engine.clients, asked.get("content-length", ""))
        body = await self._inflated(body, asked.get("content-encoding", "").strip())
        length, client = asked.get(bodies.LENGTH), client_of(request)
        wants, answer = bodies.request_of(body, length, hosted.name, _version(request), client)
        data, head = answer(await _unless_gone(request, self.engine.infer(wants)))
        headers = {"content-type": "application/json" if head is None else "application/octet-stream"}
        if head is not None:
            headers[bodies.LENGTH] = str(head)
        if len(data) > LEAST_COMPRESSED:
            data, encoding = bodies.compressed(data, bodies.accepted(asked.get("accept-encoding", "")))
            if encoding:
                headers["content-encoding"] = encoding
        return Response(data, headers=headers)

    async def _inflated(self, body: bytes, encoding: str) -> bytes:
        most = self.engine.limits.message_bytes
        if encoding and len(body) > LARGE_COMPRESSED:
            return await asyncio.to_thread(bodies.inflated, body, encoding, most)
        return bodies.inflated(body, encoding, most)

    async def move(self, request: Request) -> Response:
        id: int | str | None = request.path_params["id"]
        if request.query_params.get("type") == "int":
            id = number_of(request.path_params["id"])
            if id is None:
                text = request.path_params["id"]
                raise invalid(f"the id of a sequence of type=int must be a number below 2**64, got {brief(text)}")
        return JSONResponse(await self.engine.move(self._hosted(request).name, checked_id(id)))

    def _hosted(self, request: Request) -> Any:
        return self.engine.hosted(request.path_params["model"])


def _health(answer: dict[str, Any]) -> Response:
    """200 or 503, and why. Triton's clients read the status, KServe's the JSON."""
    good = answer.get("live", answer.get("ready"))
    return JSONResponse(answer, 200 if good else 503)


class Application:
    """The routes of the protocol, and others, as an ASGI application.

    Most requests are for inference. They skip Starlette's middleware and routing (docs/decisions/0055).

    Parameters
    ----------
    engine : Engine
    more : routes
    """

    def __init__(self, engine: Engine, more: Sequence[Any] = ()):
        self.engine, self.endpoints = engine, Endpoints(engine)
        handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
            Fault: self._refused,
            HTTPException: self._no_route,
            Exception: self._failed,
        }
        self.app = Starlette(routes=[*self.endpoints.routes(), *more], exception_handlers=handlers)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked = scope["type"] == "http" and scope["method"] == "POST" and not scope.get("root_path")
        found = INFER.fullmatch(scope["path"]) if asked else None
        if found is None:
            await self.app(scope, receive, send)
            return
        scope["path_params"] = found.groupdict("")
        request = Request(scope, receive, send)
        try:
            response = await self.endpoints.infer(request)
        except Fault as fault:
            response = await self._refused(request, fault)
        except Exception as error:
            response = await self._failed(request, error)
        await response(scope, receive, send)

    # -- errors --
    async def _refused(self, request: Request, error: Fault) -> Response:
        self.engine.refused(error, request.path_params.get("model", ""))
        return JSONResponse({"error": str(error)}, error.status, retry_headers(error))

    async def _no_route(self, request: Request, error: HTTPException) -> Response:
        text = f"{request.method} {request.url.path}: {error.detail}"
        if error.status_code == 404:
            if request.url.path.endswith("/stream"):
                text += ": a WebSocket is here; a proxy in front must pass on the headers Upgrade and Connection"
            else:
                text += ": this server has the inference paths of the Open Inference Protocol, below /v2"
        return JSONResponse({"error": text}, error.status_code, error.headers)

    async def _failed(self, request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, shown(request.url.path), exc_info=error)
        return JSONResponse({"error": "the request failed, and the server's log says why"}, 500)


def client_of(request: Any) -> str:
    """Who asks: the name that its token gave it, or its address."""
    return str(request.scope.get("fastrnn.client") or (request.client.host if request.client else "local"))


def _version(request: Request) -> str:
    return request.path_params.get("version", "")


async def _body(request: Request, clients: Clients, length: str) -> bytes:
    """The body. Fault: it has too many bytes, or comes too slowly. length: that it has by its header."""
    most = clients.limits.message_bytes
    if length.isascii() and length.isdigit() and len(length) < 20 and int(length) > most:
        raise bodies.too_large(most)  # before it comes
    if WHOLE in request.scope:  # there is nothing to wait for
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Fault("CANCELLED", "cancelled", GONE)
        body = message["body"]
        if len(body) > most:
            raise bodies.too_large(most)
        with clients.held() as more:
            more(len(body))  # bodies that are not whole may have taken all the memory there is
        return body
    try:
        return await asyncio.wait_for(_read(request, clients), BODY_SECONDS)
    except asyncio.TimeoutError:
        text = f"the body did not come within {BODY_SECONDS:g} s: send it again"
        raise Fault("DEADLINE_EXCEEDED", "slow", text, status=408) from None
    except ClientDisconnect:
        raise Fault("CANCELLED", "cancelled", GONE) from None


async def _read(request: Request, clients: Clients) -> bytes:
    most, parts, size = clients.limits.message_bytes, [], 0
    with clients.held() as more:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise bodies.too_large(most)
            more(len(part))
            parts.append(part)
    return b"".join(parts)


async def _unless_gone(request: Request, work: Any) -> Any:
    """The result of a coroutine, which is cancelled if the client closes its connection first."""
    connection = request.scope.get(CONNECTION)
    if connection is None:  # of another server than ours
        return await _unless_told(request, work)
    if connection.lost:
        work.close()
        raise _cancelled()
    task, gone = asyncio.current_task(), False

    def leave() -> None:
        nonlocal gone
        gone = task.cancel()

    connection.watch(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not gone:
            raise
        raise _cancelled() from None
    finally:
        connection.watch(None)


async def _unless_told(request: Request, work: Any) -> Any:
    """The same with ASGI alone, which tells only those that ask."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
    if not task.done() or task.cancelled():
        raise _cancelled()
    return task.result()


def _cancelled() -> Fault:
    return Fault("CANCELLED", "cancelled", f"{GONE} before the answer")


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
