"""The Open Inference Protocol over HTTP, as a Starlette application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import bodies
from .engine import Engine
from .faults import Fault, brief, invalid
from .guard import retry_headers
from .limits import Clients
from .sequence import checked_id, number_of, shown

logger = logging.getLogger("fastrnn")
LEAST_COMPRESSED = 1 << 10  # bytes of an answer; less would hardly shrink
LARGE_COMPRESSED = 16 << 10  # bytes that may become 16 MiB, which others should not wait for
BODY_SECONDS = 30.0  # in which a whole body must come


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
        most = self.engine.limits.message_bytes
        body, encoding = await _body(request, self.engine.clients), request.headers.get("content-encoding", "").strip()
        if encoding and len(body) > LARGE_COMPRESSED:
            body = await asyncio.to_thread(bodies.inflated, body, encoding, most)
        else:
            body = bodies.inflated(body, encoding, most)
        length = request.headers.get(bodies.LENGTH)
        asked, answer = bodies.request_of(body, length, hosted.name, _version(request), client_of(request))
        reply = await _unless_gone(request, self.engine.infer(asked))
        data, head = answer(reply)
        headers = {} if head is None else {bodies.LENGTH: str(head)}
        if len(data) > LEAST_COMPRESSED:
            accepted = bodies.accepted(request.headers.get("accept-encoding", ""))
            data, encoding = bodies.compressed(data, accepted)
            if encoding:
                headers["content-encoding"] = encoding
        kind = "application/json" if head is None else "application/octet-stream"
        return Response(data, media_type=kind, headers=headers)

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


def application(engine: Engine, more: list | None = None) -> Starlette:
    """The routes of the protocol, and others."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Fault)
        engine.refused(error, request.path_params.get("model", ""))
        return JSONResponse({"error": str(error)}, error.status, retry_headers(error))

    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = f"{request.method} {request.url.path}: {error.detail}"
        if error.status_code == 404:
            if request.url.path.endswith("/stream"):
                text += ": a WebSocket is here; a proxy in front must pass on the headers Upgrade and Connection"
            else:
                text += ": this server has the inference paths of the Open Inference Protocol, below /v2"
        return JSONResponse({"error": text}, error.status_code, error.headers)

    async def failed(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, shown(request.url.path), exc_info=error)
        return JSONResponse({"error": "the request failed, and the server's log says why"}, 500)

    handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
        Fault: refused,
        HTTPException: no_route,
        Exception: failed,
    }
    return Starlette(routes=[*Endpoints(engine).routes(), *(more or [])], exception_handlers=handlers)


def client_of(request: Any) -> str:
    """Who asks: the name that its token gave it, or its address."""
    return str(request.scope.get("fastrnn.client") or (request.client.host if request.client else "local"))


def _version(request: Request) -> str:
    return request.path_params.get("version", "")


async def _body(request: Request, clients: Clients) -> bytes:
    """The body. Fault: it has too many bytes, or comes too slowly."""
    try:
        return await asyncio.wait_for(_read(request, clients), BODY_SECONDS)
    except asyncio.TimeoutError:
        text = f"the body did not come within {BODY_SECONDS:g} s: send it again"
        raise Fault("DEADLINE_EXCEEDED", "slow", text, status=408) from None
    except ClientDisconnect:
        raise Fault("CANCELLED", "cancelled", "the client closed the connection") from None


async def _read(request: Request, clients: Clients) -> bytes:
    most = clients.limits.message_bytes
    told = request.headers.get("content-length", "")
    if told.isascii() and told.isdigit() and len(told) < 20 and int(told) > most:
        raise bodies.too_large(most)  # before it comes
    parts, size = [], 0
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
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
    if not task.done() or task.cancelled():
        raise Fault("CANCELLED", "cancelled", "the client closed the connection before the answer")
    return task.result()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
