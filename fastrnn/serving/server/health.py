"""The standard health service of gRPC, grpc.health.v1.Health: what load balancers and Kubernetes ask.

Its messages are in the private pool of `messages.py`, so a program that imports grpc_health works too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from .engine import Engine
from .messages import SERVICE, message

HEALTH = "grpc.health.v1.Health"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
LOOK_SECONDS = 0.5  # between two looks of a Watch
LIVE = "liveness"  # the service that says whether the engine threads answer


def handler(engine: Engine) -> grpc.GenericRpcHandler:
    """Check and Watch. The services are "" and the protocol's, which serve while sequences may start, and "liveness",
    which serves while the engine threads answer."""
    request, response = message("HealthCheckRequest"), message("HealthCheckResponse")

    async def check(asked: Any, context: grpc.aio.ServicerContext) -> Any:
        status = _status(engine, asked.service)
        if status == SERVICE_UNKNOWN:
            text = f"there is no service {asked.service!r:.80}: ask for '', '{SERVICE}' or '{LIVE}'"
            await context.abort(grpc.StatusCode.NOT_FOUND, text)
        return response(status=status)

    async def watch(asked: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        last = None
        while engine.started:
            status = _status(engine, asked.service)
            if status != last:
                last = status
                yield response(status=status)
            await asyncio.sleep(LOOK_SECONDS)

    methods = {
        "Check": grpc.unary_unary_rpc_method_handler(check, request.FromString, response.SerializeToString),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, request.FromString, response.SerializeToString),
    }
    return grpc.method_handlers_generic_handler(HEALTH, methods)


def _status(engine: Engine, service: str) -> int:
    if service in ("", SERVICE):
        return SERVING if engine.ready() else NOT_SERVING
    if service == LIVE:
        return SERVING if engine.live() else NOT_SERVING
    return SERVICE_UNKNOWN
