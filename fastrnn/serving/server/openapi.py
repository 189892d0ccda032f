"""The description of the HTTP interface, OpenAPI 3.1, at /openapi.json.

Requests have exact schemas; of answers, what clients may rely on. WebSockets and gRPC have no place in OpenAPI.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .engine import Engine
from .sequence import MOST_ID_BYTES
from .tensors import DTYPES, MOST_AXES, MOST_SIZE

PATH = "/openapi.json"
JSON = "application/json"


def route(engine: Engine) -> Route:
    """The endpoint."""
    data = json.dumps(description(engine)).encode()

    async def answer(request: Request) -> Response:
        return Response(data, media_type=JSON)

    return Route(PATH, answer, methods=["GET"])


def description(engine: Engine) -> dict[str, Any]:
    """The whole document, JSON-able."""
    about = engine.metadata()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fastrnn serve",
            "version": about["version"],
            "description": "The Open Inference Protocol v2 with Triton's sequences.",
        },
        "paths": _paths(),
        "components": {"schemas": _schemas(), "responses": _responses(), "securitySchemes": {"token": _bearer()}},
        "security": [{}, {"token": []}],
    }


def _bearer() -> dict[str, Any]:
    return {"type": "http", "scheme": "bearer", "description": "if the server was started with --token-file"}


def _paths() -> dict[str, Any]:
    name, version = _in_path("model"), _in_path("version")
    found = {
        "/v2": {"get": _operation("the server", "ServerMetadata")},
        "/v2/health/live": {"get": _operation("whether its threads answer", "Health", busy=True, open=True)},
        "/v2/health/ready": {"get": _operation("whether sequences may start", "Health", busy=True, open=True)},
        "/v2/repository/index": {"post": _operation("the models", "Index")},
        "/v2/models/stats": {"get": _operation("what all models have done", "Statistics")},
        "/metrics": {"get": _operation("metrics, as Prometheus reads them", None, kind="text/plain")},
        "/live": {"get": _operation("the numbers of the page", "Anything")},
        "/": {"get": _operation("the page", None, kind="text/html", open=True)},
        PATH: {"get": _operation("this description", "Anything", open=True)},
    }
    for base, where in (("/v2/models/{model}", [name]), ("/v2/models/{model}/versions/{version}", [name, version])):
        found[base] = {"get": _operation("a model", "ModelMetadata", where)}
        found[f"{base}/ready"] = {"get": _operation("whether it is ready", "Health", where, busy=True)}
        found[f"{base}/config"] = {"get": _operation("its configuration", "Anything", where)}
        found[f"{base}/stats"] = {"get": _operation("what it has done", "Statistics", where)}
        found[f"{base}/infer"] = {"post": _infer(where)}
    kind = {"name": "type", "in": "query", "schema": {"enum": ["int"]}, "description": "the id is an integer"}
    moved = _operation("give a sequence to the store", "Moved", [name, _in_path("id"), kind], busy=True)
    moved["responses"]["409"] = _refused()
    found["/v2/models/{model}/sequences/{id}/move"] = {"post": moved}
    return found


def _infer(where: list[dict[str, Any]]) -> dict[str, Any]:
    length = {
        "name": "inference-header-content-length",
        "in": "header",
        "schema": {"type": "integer", "minimum": 0},
        "description": "bytes of the JSON, if binary tensors follow it",
    }
    operation = _operation("steps of a sequence, or whole sequences", "InferResponse", [*where, length], busy=True)
    operation["responses"]["200"]["content"]["application/octet-stream"] = {}
    for status in ("408", "409", "413", "500", "504"):
        operation["responses"][status] = _refused()
    content = {JSON: {"schema": _ref("InferRequest")}, "application/octet-stream": {}}
    operation["requestBody"] = {"required": True, "content": content}
    return operation


def _operation(
    summary: str,
    schema: str | None,
    parameters: list[dict[str, Any]] | None = None,
    *,
    kind: str = JSON,
    busy: bool = False,
    open: bool = False,
) -> dict[str, Any]:
    """One operation. busy: it may be refused at a bad time; open: it needs no token."""
    good = {"description": summary, "content": {kind: {} if schema is None else {"schema": _ref(schema)}}}
    responses: dict[str, Any] = {"200": good, "400": _refused(), "403": _refused(), "431": _refused()}
    if parameters:
        responses["404"] = _refused()
    if not open:
        responses |= {"401": _refused(), "429": _refused()}
    if busy:
        answer = {"oneOf": [_ref("Error"), _ref("Health")]} if schema == "Health" else _ref("Error")
        responses["503"] = {"description": "not now", "content": {JSON: {"schema": answer}}}
    found: dict[str, Any] = {"summary": summary, "responses": responses}
    if parameters:
        found["parameters"] = parameters
    if open:
        found["security"] = []
    return found


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _refused() -> dict[str, str]:
    return {"$ref": "#/components/responses/Refused"}


def _responses() -> dict[str, Any]:
    retry = {"schema": {"type": "integer", "minimum": 1}, "description": "seconds, if it may be sent again"}
    refused = {"description": "refused, with the reason", "headers": {"retry-after": retry}}
    return {"Refused": {**refused, "content": {JSON: {"schema": _ref("Error")}}}}


def _object(properties: dict[str, Any], required: str = "", **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split(), **more}


def _list(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def _request() -> dict[str, Any]:
    """The body of an inference request."""
    text, whole = {"type": "string"}, {"type": "integer", "minimum": 0}
    shape = _list({"type": "integer", "minimum": 0, "maximum": MOST_SIZE - 1}, maxItems=MOST_AXES)
    datatype = {"enum": [*DTYPES, "BYTES"]}
    id = {"oneOf": [{"type": "string", "maxLength": MOST_ID_BYTES // 4}, {**whole, "maximum": (1 << 64) - 1}]}
    flag = {"type": "boolean", "default": False}
    parameters = _object(
        {
            "sequence_id": {**id, "description": 'of a sequence; 0 and "" mean none'},
            "sequence_start": flag,
            "sequence_end": flag,
            "step_index": {**whole, "description": "of the first step: each is taken once"},
            "timeout": {**whole, "description": "microseconds in which the steps must begin; 0: any time"},
            "binary_data_output": flag,
        }
    )
    asked = _object({"name": text, "parameters": _object({"binary_data": flag})}, "name")
    given = _object(
        {
            "name": text,
            "shape": shape,
            "datatype": datatype,
            "data": {"type": "array", "description": "flat or nested; without it binary data follows the JSON"},
            "parameters": _object({"binary_data_size": whole}),
        },
        "name shape datatype",
    )
    return _object({"id": text, "parameters": parameters, "inputs": _list(given), "outputs": _list(asked)}, "inputs")


def _schemas() -> dict[str, Any]:
    text, whole, any_object = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object"}
    answered = _object({"name": text, "shape": _list(whole), "datatype": text, "data": {"type": "array"}}, "name shape")
    tensor = _object({"name": text, "datatype": text, "shape": _list({"type": "integer"})}, "name datatype shape")
    entry = _object({"name": text, "version": text, "state": text, "reason": text}, "name version state")
    return {
        "Anything": any_object,
        "Error": _object({"error": text}, "error"),
        "Health": _object({"live": {"type": "boolean"}, "ready": {"type": "boolean"}}),
        "ServerMetadata": _object(
            {"name": text, "version": text, "extensions": _list(text)}, "name version extensions"
        ),
        "Index": _list(entry),
        "ModelMetadata": _object(
            {
                "name": text,
                "versions": _list(text),
                "platform": text,
                "inputs": _list(tensor),
                "outputs": _list(tensor),
            },
            "name versions platform inputs outputs",
        ),
        "Statistics": _object({"model_stats": _list(any_object)}, "model_stats"),
        "Moved": _object({"steps_done": whole, "epoch": whole}, "steps_done epoch"),
        "InferRequest": _request(),
        "InferResponse": _object(
            {
                "model_name": text,
                "model_version": text,
                "id": text,
                "outputs": _list(answered),
                "parameters": _object({"step_index": whole, "steps_done": whole}),
            },
            "model_name outputs",
        ),
    }
