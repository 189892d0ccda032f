"""One record for each request or connection: a line of the access log, and a span of OpenTelemetry.

Nothing here runs if the log is off and no OpenTelemetry SDK is configured. Connections that carry many requests, which
are gRPC streams and WebSockets, have one record with their counts; their messages are logged at level DEBUG.
"""

from __future__ import annotations

import datetime
import json
import logging
import time
from contextvars import ContextVar
from typing import Any

from ...errors import ShapeError
from .faults import Fault, brief
from .hosted import Hosted, Reply, Request
from .sequence import shown
from .tracing import Tracer

FORMATS = ("json", "text", "off")
logger = logging.getLogger("fastrnn.access")
# The record of the request or connection that a task serves.
RECORD: ContextVar[Record | None] = ContextVar("fastrnn.record", default=None)


class Record:
    """What is known of a request or connection.

    Parameters
    ----------
    protocol : "http", "websocket" or "grpc"
    method : such as "POST /v2/models/m/infer" or "ModelInfer"
    client : its name or address
    many : a connection that carries requests
    quiet : of a probe: logged at DEBUG, without a span
    """

    def __init__(self, protocol: str, method: str, client: str, *, many: bool = False, quiet: bool = False):
        self.protocol, self.method, self.client = protocol, method, client
        self.many, self.quiet = many, quiet
        self.at, self.began = time.time(), time.perf_counter()
        self.fields: dict[str, Any] = {}
        self.status: int | str = ""
        self.reason = ""
        self.messages = self.steps = self.refused = self.received = self.sent = 0
        self.span: Any = None

    def asked(self, request: Request) -> None:
        """An inference request was read."""
        self.messages += 1
        self.fields["model"] = request.model
        if "SEQUENCE_IDS" in request.inputs:
            self.fields["sequences"] = request.inputs["SEQUENCE_IDS"].size
        elif id := request.parameters.get("sequence_id"):
            legal = isinstance(id, str) or (type(id) is int and 0 <= id < 1 << 64)
            self.fields["sequence_id"] = id if legal else brief(id)

    def answered(self, reply: Reply, seconds: float) -> None:
        """It was answered. seconds: that the engine took."""
        fields, told = self.fields, reply.parameters
        fields["version"] = reply.version
        if "step_index" in told:
            steps = told["steps_done"] - told["step_index"]
            if not self.many:
                fields["step_index"] = told["step_index"]
        elif "sequences" in fields:
            steps = fields["sequences"]
        else:
            first = next(iter(reply.outputs.values()), None)
            steps = 0 if first is None else first.shape[0] * (first.shape[1] if first.ndim > 1 else 1)
        self.steps += steps
        if not self.many:
            fields["queued"], fields["computed"] = max(0.0, seconds - reply.computed), reply.computed

    def as_dict(self) -> dict[str, Any]:
        """What a line says. Texts of clients are shown without control characters."""
        moment = datetime.datetime.fromtimestamp(self.at, datetime.timezone.utc)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "protocol": self.protocol,
            "client": shown(self.client),
            "method": shown(self.method),
        }
        line.update((k, shown(v) if isinstance(v, str) else v) for k, v in self.fields.items())
        if self.many:
            line["messages"], line["refused"] = self.messages, self.refused
        if self.messages:
            line["steps"] = self.steps
        line["status"] = self.status
        if self.reason:
            line["reason"] = self.reason
        line["total"] = time.perf_counter() - self.began
        for name in ("queued", "computed", "total"):
            if name in line:
                line[name] = round(line[name], 6)
        return {**line, "bytes_in": self.received, "bytes_out": self.sent}


class Watch:
    """Makes, logs and traces records.

    Parameters
    ----------
    log : "json", "text" or "off"
    tracer : Tracer, or None
    """

    def __init__(self, log: str, tracer: Tracer | None):
        self.log, self.tracer = log, tracer

    def begin(self, record: Record, carrier: Any) -> Record:
        """A request or connection has come. carrier: its headers, a dict of texts."""
        if self.tracer is not None and not record.quiet:
            record.span = self.tracer.begin(record.protocol, record.method, carrier)
        RECORD.set(record)
        return record

    def end(self, record: Record) -> None:
        """It is over."""
        level = logging.DEBUG if record.quiet else logging.INFO
        logged = self.log != "off" and logger.isEnabledFor(level)
        if not logged and record.span is None:
            return
        line = record.as_dict()
        if record.span is not None:
            self.tracer.end(record.span, line)  # type: ignore[union-attr]
        if logged:
            logger.log(level, "%s", self._text(line))

    async def infer(self, hosted: Hosted, request: Request) -> Reply:
        """Run a request of the record."""
        record = RECORD.get()
        if record is None:  # of a program that calls the engine itself
            return await hosted.infer(request)
        record.asked(request)
        alone = record.many and self.log != "off" and logger.isEnabledFor(logging.DEBUG)
        message = Record(record.protocol, f"{record.method} message", record.client, quiet=True) if alone else None
        began = time.perf_counter()
        if message is not None:
            message.asked(request)
        try:
            reply = await hosted.infer(request)
        except Fault as fault:
            if message is not None:
                message.status, message.reason = fault.code, fault.reason
                self.end(message)
            raise
        seconds = time.perf_counter() - began
        record.answered(reply, seconds)
        if message is not None:
            message.answered(reply, seconds)
            message.status = "OK"
            self.end(message)
        return reply

    def refused(self, fault: Fault) -> None:
        """The record's request was refused, or failed."""
        record = RECORD.get()
        if record is not None:
            record.refused += 1
            record.reason = fault.reason

    def _text(self, line: dict[str, Any]) -> str:
        if self.log == "json":
            return json.dumps(line, separators=(",", ":"))
        time, protocol, client, method = (line.pop(name) for name in ("time", "protocol", "client", "method"))
        head = [time, protocol, _word(client), *(_word(part) for part in method.split(" ", 1))]
        return " ".join([*head, *(f"{name}={_word(value)}" for name, value in line.items())])


def _word(value: Any) -> str:
    """A value in a line of text: in quotes if a client could make it look like several fields."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=') else text


def watch(log: str, tracer: Tracer | None) -> Watch | None:
    """A Watch, or None if there is nothing to tell. ShapeError: log is not one of `FORMATS`."""
    if log not in FORMATS:
        raise ShapeError(f"access_log must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {log!r:.40}")
    return None if log == "off" and tracer is None else Watch(log, tracer)
