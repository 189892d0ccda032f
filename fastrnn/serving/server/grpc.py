"""The Open Inference Protocol over gRPC: inference.GRPCInferenceService, and grpc's health service."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np

from . import health, tensors
from .bodies import check_input, check_output
from .engine import Engine
from .faults import Fault, brief, invalid
from .grpc_guard import TokenInterceptor, client_of
from .guard import OPEN_CALLS, Guard, retry_headers
from .hosted import Reply, Request
from .messages import SERVICE, message
from .streaming import Stream
from .tls import Certificates
from .watched import WatchedGrpc
from .wire import Malformed, parser

STREAM_SECONDS, CALL_SECONDS = 1.0, 5.0  # that streams and calls may go on when the server stops
MOST_OPEN = 1024  # answers of a stream that are not read yet
MOST_CALLS = 4096  # at once on a connection; a client's library lets further ones wait
MOST_METADATA_BYTES = 64 << 10
HANDSHAKE_MS = 10_000
IDLE_MS = 3_600_000  # without a call, after which a connection is closed; clients connect again by themselves
PING_MS, PONG_MS = 60_000, 20_000
WANTS_FINAL = "triton_enable_empty_final_response"  # of clients that read until a response says that it is the last
STATUS = {code.value[0]: code for code in grpc.StatusCode}
PIECES = {  # datatype -> the field of InferTensorContents that holds it
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class GrpcServer:
    """A gRPC server over an Engine.

    Parameters
    ----------
    engine : Engine
    guard : Guard
    certificates : Certificates; None: it speaks no TLS
    """

    def __init__(self, engine: Engine, guard: Guard, certificates: Certificates | None = None):
        self.engine, self.certificates = engine, certificates
        most = engine.limits.message_bytes
        options = [
            ("grpc.max_receive_message_length", most),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(engine.peers is not None)),
            ("grpc.max_allowed_incoming_connections", engine.limits.connections),
            ("grpc.max_concurrent_streams", MOST_CALLS),
            ("grpc.max_metadata_size", MOST_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", MOST_METADATA_BYTES),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            ("grpc.max_connection_idle_ms", IDLE_MS),
            # A client that is gone without a word holds its calls until it misses the answer to a ping.
            ("grpc.keepalive_time_ms", PING_MS),
            ("grpc.keepalive_timeout_ms", PONG_MS),
        ]
        interceptors: list[Any] = [] if engine.watch is None else [WatchedGrpc(engine.watch)]
        if guard.tokens is not None:
            interceptors.append(TokenInterceptor(guard))
        self._watches: Counter[str] = Counter()
        self._server = grpc.aio.server(options=options, interceptors=interceptors)
        service = grpc.method_handlers_generic_handler(SERVICE, methods_of(engine))
        self._server.add_generic_rpc_handlers((service, health.handler(engine, self._watches)))

    async def start(self, host: str, port: int) -> int:
        """Listen; the port."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self.certificates is None:
                found = self._server.add_insecure_port(address)
            else:
                found = self._server.add_secure_port(address, self.certificates.credentials())
        except RuntimeError as error:
            raise OSError(f"{address} can't be listened on: {_why_not(host, port) or error}") from None
        await self._server.start()
        return found

    async def stop(self) -> None:
        """Finish the calls that run, for at most CALL_SECONDS; or STREAM_SECONDS if a stream is open, which may go on
        for ever."""
        ended = asyncio.ensure_future(self._server.stop(CALL_SECONDS))
        await asyncio.wait([ended], timeout=STREAM_SECONDS)
        if self.engine.clients.streams or self._watches:
            await self._server.stop(None)
        await ended


def _why_not(host: str, port: int) -> str:
    """Why a port can't be listened on, which gRPC writes to stderr alone; "" if it can by now."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, port))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def methods_of(engine: Engine) -> dict[str, grpc.RpcMethodHandler]:
    """The methods of the service, by name."""
    calls: dict[str, Callable[[Any], Any]] = {
        "ServerLive": lambda r: {"live": engine.live()},
        "ServerReady": lambda r: {"ready": engine.ready()},
        "ServerMetadata": lambda r: engine.metadata(),
        "ModelReady": lambda r: {"ready": engine.hosted(r.name).version(r.version) > 0 and engine.ready()},
        "ModelMetadata": lambda r: engine.hosted(r.name).metadata(r.version),
        "ModelConfig": lambda r: {"config": _numbered(engine.hosted(r.name).config(r.version))},
        "RepositoryIndex": lambda r: {"models": _index(engine, r.ready)},
        "ModelStatistics": lambda r: _statistics(engine, r),
    }
    methods = {}
    for name, call in calls.items():
        limited = f"/{SERVICE}/{name}" not in OPEN_CALLS  # probes have no rate
        methods[name] = _unary(name, _described(engine, message(f"{name}Response"), call, limited))
    methods["ModelInfer"] = _unary("ModelInfer", _inferring(engine))
    methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        _streaming(engine),
        request_deserializer=parser("ModelInferRequest"),
        response_serializer=_serialized,
    )
    return methods


def _index(engine: Engine, ready: bool) -> list[dict[str, str]]:
    """The models; ready: those alone that are ready."""
    return engine.index() if engine.ready() or not ready else []


def _unary(name: str, function: Any) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(
        function,
        request_deserializer=parser(f"{name}Request"),
        response_serializer=_serialized,
    )


def _serialized(item: Any) -> bytes:
    return item.SerializeToString()


async def _statistics(engine: Engine, request: Any) -> dict[str, Any]:
    return {"model_stats": await engine.all_statistics(request.name, request.version)}


def _described(engine: Engine, response: Any, call: Callable[[Any], Any], limited: bool) -> Any:
    """A method that describes something. limited: it counts as one of the client's requests."""

    async def method(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            if limited:
                engine.clients.take(client_of(context))
            if isinstance(request, Malformed):
                raise request.fault
            found = call(request)
            return response(**(await found if isinstance(found, Awaitable) else found))
        except Fault as fault:
            engine.refused(fault, getattr(request, "name", ""))
            if fault.retry_after is not None:
                context.set_trailing_metadata(tuple(retry_headers(fault).items()))
            return await context.abort(STATUS[fault.number], str(fault))

    return method


def _inferring(engine: Engine) -> Any:
    """ModelInfer."""

    async def method(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            client = client_of(context)
            engine.clients.take(client)
            return response_of(request, await engine.infer(request_of(request, client)))
        except Fault as fault:
            engine.refused(fault, request.model_name)
            if fault.retry_after is not None:
                context.set_trailing_metadata(tuple(retry_headers(fault).items()))
            return await context.abort(STATUS[fault.number], str(fault))

    return method


def _streaming(engine: Engine) -> Any:
    """ModelStreamInfer: requests run as they come; their answers go back in the order of the requests. While a
    sequence's queue is full, nothing more is read."""

    async def method(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        client = client_of(context)
        try:
            with engine.clients.stream(client):
                stream = Stream(engine, lambda item: request_of(item, client), MOST_OPEN)
                async with aclosing(stream.answers(requests)) as answers:
                    async for item, result in answers:
                        yield _streamed(engine, item, result)
        except Fault as fault:
            engine.refused(fault)
            await context.abort(STATUS[fault.number], str(fault))

    return method


def _streamed(engine: Engine, item: Any, result: Reply | Fault) -> Any:
    """The answer on a stream: an error is a text there, and the stream goes on."""
    if isinstance(result, Fault):
        engine.refused(result, item.model_name)
        return _failed(item, result)
    response = message("ModelStreamInferResponse")()
    fill(response.infer_response, item, result)
    return response


def _failed(item: Any, fault: Fault) -> Any:
    text = f"{fault.code}: request {item.id}: {fault}" if item.id else f"{fault.code}: {fault}"
    response = message("ModelStreamInferResponse")(error_message=text)
    response.infer_response.id = item.id
    response.infer_response.model_name = item.model_name
    return response


# -- messages --
def request_of(request: Any, client: str) -> Request:
    """A ModelInferRequest as the engine takes it."""
    if isinstance(request, Malformed):
        raise request.fault
    for item in request.inputs:
        check_input(item.name, item.parameters)
    for item in request.outputs:
        check_output(item.name, {name: _value(p) for name, p in item.parameters.items()})
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise invalid(f"raw_input_contents has {len(raw)} items for {len(request.inputs)} inputs")
    inputs: dict[str, np.ndarray] = {}
    for i, item in enumerate(request.inputs):
        if item.name in inputs:
            raise invalid(f"input {brief(item.name)} is given twice")
        shape = tensors.shape_of(item.name, list(item.shape))
        if raw:
            if item.HasField("contents"):
                text = "has contents and raw_input_contents: send its elements once"
                raise invalid(f"input {brief(item.name)} {text}")
            inputs[item.name] = tensors.from_bytes(item.name, item.datatype, shape, raw[i])
        else:
            field = PIECES.get(item.datatype)
            values = [] if field is None else getattr(item.contents, field)
            inputs[item.name] = tensors.from_values(item.name, item.datatype, shape, values)
    parameters = {name: _value(p) for name, p in request.parameters.items()}
    wanted = tuple(o.name for o in request.outputs)
    return Request(request.model_name, request.model_version, request.id, parameters, inputs, wanted, client)


def response_of(request: Any, reply: Reply) -> Any:
    """A ModelInferResponse."""
    response = message("ModelInferResponse")()
    fill(response, request, reply)
    return response


def fill(response: Any, request: Any, reply: Reply) -> None:
    """Write a reply into a ModelInferResponse."""
    response.model_name, response.model_version, response.id = request.model_name, reply.version, request.id
    for name, value in reply.parameters.items():
        parameter = response.parameters[name]
        if isinstance(value, str):
            parameter.string_param = value
        elif value < 1 << 63:
            parameter.int64_param = value
        else:
            parameter.uint64_param = value
    if WANTS_FINAL in request.parameters and request.parameters[WANTS_FINAL].bool_param:
        response.parameters["triton_final_response"].bool_param = True
    for name, array in reply.outputs.items():
        response.outputs.add(name=name, datatype=tensors.name_of(array.dtype), shape=array.shape)
        response.raw_output_contents.append(tensors.to_bytes(array))


def _value(parameter: Any) -> Any:
    kind = parameter.WhichOneof("kind")
    return None if kind is None else getattr(parameter, kind)


def _numbered(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the numbers of dtypes, as its message has them."""
    change = lambda items: [{**item, "data_type": tensors.CONFIG[item["data_type"][5:]]} for item in items]  # noqa: E731
    return {**config, "input": change(config["input"]), "output": change(config["output"])}
