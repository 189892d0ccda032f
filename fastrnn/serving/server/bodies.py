"""Bodies of HTTP: the JSON of an inference request with its binary tensors, and of its answer."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from . import tensors
from .faults import Fault, brief, invalid
from .hosted import Reply, Request
from .sequence import number_of

LENGTH = "inference-header-content-length"
NO_SHARED_MEMORY = "this server reads and writes no shared memory: send the tensor itself"
MOST_JSON_BYTES = 4 << 20  # a JSON number takes 100 times as long to read as a raw one, and others wait meanwhile
ENCODINGS = {"gzip": 31, "deflate": 15}  # name -> the window bits of zlib


def inflated(body: bytes, encoding: str, most: int) -> bytes:
    """A body without its compression. Fault: it is damaged, or holds more than `most` bytes."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ENCODINGS:
        raise invalid(f"content-encoding must be gzip, deflate or identity, got {brief(encoding)}")
    stream = zlib.decompressobj(ENCODINGS[encoding])
    try:
        data = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise invalid(f"the body is not {encoding}: {error}") from None
    if len(data) > most:
        raise too_large(most)
    if stream.unused_data:
        raise invalid(f"{len(stream.unused_data)} bytes follow the {encoding} data of the body: send it as one piece")
    if not stream.eof:
        raise invalid(f"the body ends in the middle of its {encoding} data")
    return data


def too_large(most: int) -> Fault:
    """A request with too many bytes."""
    text = f"a request may have {most} bytes: send fewer steps at once, or start the server with --max-message-bytes"
    return Fault("RESOURCE_EXHAUSTED", "message_size", text, status=413)


def request_of(body: bytes, length: str | None, model: str, version: str, client: str) -> tuple[Request, Any]:
    """(the request of a body, the function that makes the body of its answer).

    length : of the JSON before the binary tensors, as text; None: the body is JSON alone.
    """
    cut = len(body)
    if length is not None:
        given = number_of(length)
        if given is None or given > len(body):
            raise invalid(f"{LENGTH} must be a number of bytes up to {len(body)}, got {brief(length)}")
        cut = given
    head = _object(_json(body[:cut]), "the request")
    parameters = _object(head.get("parameters", {}), "parameters")
    data = memoryview(body)[cut:]
    inputs: dict[str, np.ndarray] = {}
    for item in _list(head.get("inputs"), "inputs"):
        name, array, used = _input(_object(item, "an input"), data)
        if name in inputs:
            raise invalid(f"input {brief(name)} is given twice")
        inputs[name], data = array, data[used:]
    if len(data):
        raise invalid(f"{len(data)} bytes follow the binary data of the inputs")
    wanted = [_object(item, "an output") for item in _list(head.get("outputs", []), "outputs")]
    names = tuple(_text(item, "name", "an output") for item in wanted)
    id = head.get("id", "")
    if not isinstance(id, str):
        raise invalid(f"the id of a request must be a text, got {brief(id)}")
    request = Request(model, version, id, parameters, inputs, names, client)
    every = _switch(parameters, "binary_data_output", False)
    raw = {name: _raw(name, item, every) for name, item in zip(names, wanted, strict=True)}
    return request, lambda reply: body_of(request, reply, lambda name: raw.get(name, every))


def _raw(name: str, item: dict, every: bool) -> bool:
    """Whether an output that a request names is wanted as binary data."""
    given = _object(item.get("parameters", {}), "parameters")
    check_output(name, given)
    return _switch(given, "binary_data", every)


def check_output(name: str, parameters: dict[str, Any]) -> None:
    """Refuse what Triton does with outputs and this server does not. Fault: a parameter asks for it."""
    if parameters.get("classification"):
        raise invalid(
            f"output {brief(name)}: this server has no classification extension: ask for the values", "output"
        )
    if "shared_memory_region" in parameters:
        raise invalid(f"output {brief(name)}: {NO_SHARED_MEMORY}", "output")


def check_input(name: str, parameters: dict[str, Any]) -> None:
    """Refuse inputs in shared memory."""
    if "shared_memory_region" in parameters:
        raise invalid(f"input {brief(name)}: {NO_SHARED_MEMORY}")


def _input(item: dict, data: memoryview) -> tuple[str, np.ndarray, int]:
    """(name, array, bytes of `data` that it takes)."""
    name = _text(item, "name", "an input")
    shape = tensors.shape_of(name, item.get("shape"))
    given = _object(item.get("parameters", {}), "parameters")
    check_input(name, given)
    size = given.get("binary_data_size")
    if size is None:
        if "data" not in item:
            raise invalid(f"input {brief(name)} has neither data nor parameters.binary_data_size")
        return name, tensors.from_values(name, item.get("datatype"), shape, item["data"]), 0
    if type(size) is not int or not 0 <= size <= len(data):
        raise invalid(f"input {brief(name)}: binary_data_size is {brief(size)}, and {len(data)} bytes are left")
    return name, tensors.from_bytes(name, item.get("datatype"), shape, data[:size]), size


def body_of(request: Request, reply: Reply, raw: Any) -> tuple[bytes, int | None]:
    """(the body of an answer, the length of its JSON if binary tensors follow it). raw: name -> whether it is one."""
    outputs, tail = [], []
    for name, array in reply.outputs.items():
        item: dict[str, Any] = {"name": name, "datatype": tensors.name_of(array.dtype), "shape": list(array.shape)}
        if raw(name):
            tail.append(tensors.to_bytes(array))
            item["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            item["data"] = numbers(array.reshape(-1))
        outputs.append(item)
    head = {"model_name": request.model, "model_version": reply.version, "outputs": outputs}
    if request.id:
        head["id"] = request.id
    if reply.parameters:
        head["parameters"] = reply.parameters
    text = _ENCODER.encode(head).encode()
    return b"".join([text, *tail]), len(text) if tail else None


def numbers(array: np.ndarray) -> list:
    """The elements as JSON has them: it has no NaN and no infinity, which become null."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return _finite(array.tolist())
    return array.tolist()


def _finite(item: Any) -> Any:
    if isinstance(item, list):
        return [_finite(v) for v in item]
    return item if math.isfinite(item) else None


def compressed(body: bytes, accepted: Iterable[str]) -> tuple[bytes, str]:
    """(a body in an encoding that the client accepts, its name or "")."""
    for encoding in accepted:
        if encoding in ENCODINGS:
            stream = zlib.compressobj(1, zlib.DEFLATED, ENCODINGS[encoding])
            return stream.compress(body) + stream.flush(), encoding
    return body, ""


def accepted(header: str) -> list[str]:
    """The encodings of an Accept-Encoding header that the client takes; one with q=0 is refused by it."""
    found = []
    for part in header.split(","):
        name, *options = (text.strip().lower() for text in part.split(";"))
        if not any(o.replace(" ", "").rstrip("0").rstrip(".") in ("q=", "q=0") for o in options):
            found.append(name)
    return found


def _json(data: bytes) -> Any:
    if len(data) > MOST_JSON_BYTES:
        text = f"the JSON of a request may have {MOST_JSON_BYTES} bytes, got {len(data)}: send tensors as binary data"
        raise Fault("RESOURCE_EXHAUSTED", "message_size", text, status=413)
    try:
        return _DECODER.decode(data.decode(json.detect_encoding(data), "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {str(error)[:100]}") from None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Fault: it has a key twice, of which another reader, such as a proxy, may take the other value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1) if len(names) < 1000 else "a key"
        raise invalid(f"a JSON object has {brief(twice)} twice")
    return found


_DECODER, _ENCODER = json.JSONDecoder(object_pairs_hook=_pairs), json.JSONEncoder(separators=(",", ":"))


def _object(item: Any, what: str) -> dict:
    if not isinstance(item, dict):
        raise invalid(f"{what} must be a JSON object, got {brief(item)}")
    return item


def _switch(parameters: dict, name: str, usual: bool) -> bool:
    value = parameters.get(name, usual)
    if not isinstance(value, bool):
        raise invalid(f"{name} must be true or false, got {brief(value)}")
    return value


def _list(item: Any, what: str) -> list:
    if not isinstance(item, list):
        raise invalid(f"{what} must be a list, got {brief(item)}")
    return item


def _text(item: dict, key: str, what: str) -> str:
    if not isinstance(item.get(key), str):
        raise invalid(f"{what} must have a {key}, a text, got {brief(item.get(key))}")
    return item[key]
