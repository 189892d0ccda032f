"""Requests and replies as workers of one server send them to each other: a head in JSON, then the tensors."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from . import tensors
from .faults import Fault
from .hosted import Reply, Request

HEAD = struct.Struct("<I")  # bytes of the JSON


def pack(head: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """Bytes of both."""
    parts, items = [], []
    for name, array in arrays.items():
        kind = "BYTES" if array.dtype == object else tensors.name_of(array.dtype)
        parts.append(tensors.to_bytes(array))
        items.append([name, kind, array.shape, len(parts[-1])])
    text = json.dumps({**head, "tensors": items}).encode()
    return b"".join([HEAD.pack(len(text)), text, *parts])


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(the head, the tensors). Arrays are views of the bytes."""
    (size,) = HEAD.unpack_from(data)
    head, at = json.loads(data[HEAD.size : HEAD.size + size]), HEAD.size + size
    arrays, view = {}, memoryview(data)
    for name, kind, shape, length in head.pop("tensors"):
        arrays[name] = tensors.from_bytes(name, kind, tuple(shape), view[at : at + length])
        at += length
    ids = arrays.get("SEQUENCE_IDS")
    if ids is not None and ids.dtype == object:  # JSON may have ids that are no UTF-8; other protocols are checked
        texts = [v.decode("utf-8", "surrogatepass") for v in ids.reshape(-1)]
        arrays["SEQUENCE_IDS"] = np.array(texts, object).reshape(ids.shape)
    return head, arrays


def pack_request(request: Request) -> bytes:
    """A request."""
    head = {
        "model": request.model,
        "version": request.version,
        "id": request.id,
        "parameters": request.parameters,
        "outputs": request.outputs,
        "client": request.client,
    }
    return pack(head, request.inputs)


def unpack_request(data: bytes) -> Request:
    """The request that was packed."""
    head, inputs = unpack(data)
    head["outputs"] = tuple(head["outputs"])
    return Request(inputs=inputs, **head)


def pack_reply(reply: Reply) -> bytes:
    """A reply."""
    head = {"version": reply.version, "parameters": reply.parameters, "computed": reply.computed}
    return pack(head, reply.outputs)


def unpack_reply(data: bytes) -> Reply:
    """The reply that was packed."""
    head, outputs = unpack(data)
    return Reply(outputs=outputs, **head)


def pack_fault(fault: Fault) -> bytes:
    """A refusal, with all that protocols tell of it."""
    head = [fault.code, fault.reason, str(fault), fault.retry_after, fault.status]
    return json.dumps(head).encode()


def unpack_fault(data: bytes) -> Fault:
    """The refusal that was packed."""
    code, reason, text, retry_after, status = json.loads(data)
    return Fault(code, reason, text, retry_after=retry_after, status=status)
