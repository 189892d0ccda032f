"""Spans through the API of OpenTelemetry: one for each request or connection, none for a step."""

from __future__ import annotations

from typing import Any

CODES = {"websocket": "fastrnn.status", "http": "http.response.status_code", "grpc": "rpc.response.status_code"}
SERVER_ERROR = 500  # a status of HTTP from which on the server failed
FAILURES = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}  # codes of gRPC


class Tracer:
    """Makes spans.

    Parameters
    ----------
    tracer : opentelemetry.trace.Tracer
    """

    def __init__(self, tracer: Any):
        self._tracer = tracer

    def begin(self, protocol: str, method: str, carrier: dict[str, str]) -> Any:
        """A span whose parent is what the headers say, such as `traceparent`."""
        from opentelemetry import propagate, trace

        name = "inference.GRPCInferenceService/" + method if protocol == "grpc" else _route(method)
        context = propagate.extract(carrier)
        return self._tracer.start_span(name, context=context, kind=trace.SpanKind.SERVER)

    def end(self, span: Any, line: dict[str, Any]) -> None:
        """End a span with what the record says."""
        from opentelemetry.trace import Status, StatusCode

        protocol, status = line["protocol"], line["status"]
        attributes = {"network.protocol.name": protocol, "client.address": line["client"], CODES[protocol]: status}
        if protocol == "grpc":
            attributes |= {"rpc.system": "grpc", "rpc.method": line["method"]}
        else:
            verb, _, path = line["method"].partition(" ")
            attributes |= {"http.request.method": verb, "url.path": path}
        skipped = ("time", "protocol", "client", "method", "status", "reason", "total")
        attributes |= {f"fastrnn.{name}": value for name, value in line.items() if name not in skipped}
        if reason := line.get("reason"):
            attributes["error.type"] = reason
        span.set_attributes(attributes)
        if (isinstance(status, int) and status >= SERVER_ERROR) or status in FAILURES:
            span.set_status(Status(StatusCode.ERROR, line.get("reason", "")))
        span.end()


def tracer(provider: Any = None) -> Tracer | None:
    """A tracer of this provider, or of the program's; None if there is none, as without an SDK of OpenTelemetry."""
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    found = trace.get_tracer_provider() if provider is None else provider
    if isinstance(found, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    return Tracer(trace.get_tracer("fastrnn", tracer_provider=found))


def _route(method: str) -> str:
    """The method of HTTP with its path, without the names in it: a span's name has few values."""
    parts = method.split("/")
    for i, before in enumerate(parts[:-1]):
        if before in ("models", "versions", "sequences") and parts[i + 1] != "stats":
            parts[i + 1] = "{" + before[:-1] + "}"
    return "/".join(parts)
