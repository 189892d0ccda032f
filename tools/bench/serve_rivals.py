"""The servers that tools/bench/serve.py puts beside `fastrnn serve`, each a process of its own.

    python tools/bench/serve_rivals.py KIND [MODEL] [--reply BYTES]

KIND:
    echo_http echo_websocket echo_grpc    take the same messages, look at nothing, and answer as many bytes: what the
                                          library itself can do
    today_http today_websocket today_grpc what people write today: an onnxruntime session, a dict of states, and a
                                          handler that runs a step. Starlette is what FastAPI is made of, without what
                                          FastAPI adds to each call; gRPC is grpc.aio with Triton's messages

Prints {"port": ...} when it listens. It ends at SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket

import numpy as np

SERVICE = "inference.GRPCInferenceService"


class States:
    """An onnxruntime session and the state of each sequence."""

    def __init__(self, path: str):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [i.name for i in self.session.get_inputs()]
        self.given = {"sr": np.array(16000, np.int64)} if "sr" in names else {}
        self.x, self.h = [n for n in names if n not in self.given]
        self.initial = np.zeros((2, 1, 128), np.float32)
        self.states: dict[int, np.ndarray] = {}

    def step(self, id: int, frame: bytes, start: bool) -> bytes:
        """The output of a step."""
        state = self.initial if start else self.states[id]
        x = np.frombuffer(frame, np.float32).reshape(1, -1)
        y, self.states[id] = self.session.run(None, {self.x: x, self.h: state, **self.given})
        return y.tobytes()


def asgi(kind: str, states: States | None, reply: int):
    """A Starlette application."""
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocketDisconnect

    answer = bytes(reply)

    async def infer(request):
        body = await request.body()
        if states is None:
            return Response(answer, media_type="application/octet-stream")
        size = int(request.headers["inference-header-content-length"])
        given = json.loads(body[:size])["parameters"]
        y = states.step(given["sequence_id"], body[size:], given["sequence_start"])
        if given["sequence_end"]:
            del states.states[given["sequence_id"]]
        return Response(y, media_type="application/octet-stream")

    async def stream(websocket):
        await websocket.accept()
        id, start = int(websocket.query_params["id"]), True
        try:
            while True:
                frame = await websocket.receive_bytes()
                await websocket.send_bytes(answer if states is None else states.step(id, frame, start))
                start = False
        except WebSocketDisconnect:
            if states is not None:
                states.states.pop(id, None)

    return Starlette(
        routes=[
            Route("/v2/models/{model}/infer", infer, methods=["POST"]),
            WebSocketRoute("/v2/models/{model}/stream", stream),
        ]
    )


async def serve_asgi(app, end: asyncio.Event) -> None:
    """Run an application of uvicorn."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.ensure_future(server._serve([listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    await end.wait()
    server.should_exit = server.force_exit = True
    await task


def grpc_methods(states: States | None, reply: int):
    """The two methods of gRPC: bytes in, bytes out for the echo."""
    import grpc

    from fastrnn.serving.server.messages import message

    answer = bytes([18, 0]) + bytes(reply - 2) if reply >= 2 else b""  # an empty infer_response comes first

    async def infer(request, context):
        return answer

    async def stream(requests, context):
        async for _ in requests:
            yield answer

    async def step(requests, context):
        async for request in requests:
            given = request.parameters
            id = given["sequence_id"].int64_param
            y = states.step(id, request.raw_input_contents[0], given["sequence_start"].bool_param)
            if given["sequence_end"].bool_param:
                del states.states[id]
            response = message("ModelStreamInferResponse")()
            response.infer_response.model_name = request.model_name
            response.infer_response.outputs.add(name="output", datatype="FP32", shape=[1, 1])
            response.infer_response.raw_output_contents.append(y)
            yield response

    plain = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    if states is None:
        plain["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(stream)
    else:
        plain["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            step,
            request_deserializer=message("ModelInferRequest").FromString,
            response_serializer=lambda item: item.SerializeToString(),
        )
    return grpc.method_handlers_generic_handler(SERVICE, plain)


async def serve_grpc(methods, end: asyncio.Event) -> None:
    """Run a grpc.aio server."""
    import grpc

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((methods,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"port": port}), flush=True)
    await end.wait()
    await server.stop(0.2)


async def serve(kind: str, states: States | None, reply: int) -> None:
    """Until SIGTERM."""
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    if kind.endswith("grpc"):
        await serve_grpc(grpc_methods(states, reply), end)
    else:
        await serve_asgi(asgi(kind, states, reply), end)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--reply", type=int, default=64)
    parser.add_argument("--uvloop", action="store_true")
    args = parser.parse_args()
    states = States(args.model) if args.kind.startswith("today") else None
    work = serve(args.kind, states, args.reply)
    if args.uvloop:
        import uvloop

        uvloop.run(work)
    else:
        asyncio.run(work)


if __name__ == "__main__":
    main()
