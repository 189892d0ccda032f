"""The standard health service of gRPC, grpc.health.v1.Health: what load balancers and Kubernetes ask.

Its messages are in the private pool of `messages.py`, so a program that imports grpc_health works too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc

from .engine import Engine
from .faults import Fault
from .grpc_guard import address_of
from .messages import SERVICE, message

HEALTH = "grpc.health.v1.Health"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
LOOK_SECONDS = 0.5  # between two looks of a Watch
LIVE = "liveness"  # the service that says whether the engine threads answer
# Watches need no token, and each takes 22 KB while it is open.
MOST_WATCHES, MOST_OF_ADDRESS = 1000, 100


def handler(engine: Engine, watches: Counter[str]) -> grpc.GenericRpcHandler:
    """Check and Watch. The services are "" and the protocol's, which serve while sequences may start, and "liveness",
    which serves while the engine threads answer. watches: address -> how many are open; it is kept here."""
    request, response = message("HealthCheckRequest"), message("HealthCheckResponse")

    async def check(asked: Any, context: grpc.aio.ServicerContext) -> Any:
        status = _status(engine, asked.service)
        if status == SERVICE_UNKNOWN:
            text = f"there is no service {asked.service!r:.80}: ask for '', '{SERVICE}' or '{LIVE}'"
            await context.abort(grpc.StatusCode.NOT_FOUND, text)
        return response(status=status)

    async def watch(asked: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        address = address_of(context)
        if watches.total() >= MOST_WATCHES or watches[address] >= MOST_OF_ADDRESS:
            text = f"{MOST_WATCHES} watches may be open, {MOST_OF_ADDRESS} of one address: close one, or call Check"
            engine.refused(Fault("RESOURCE_EXHAUSTED", "watches", text))
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        watches[address] += 1
        try:
            last = None
            while engine.started:
                status = _status(engine, asked.service)
                if status != last:
                    last = status
                    yield response(status=status)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            watches[address] -= 1
            if not watches[address]:
                del watches[address]

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
