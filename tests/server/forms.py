"""The forms of tritonclient, each behind the same few calls, so that a test runs in all of them."""

import asyncio
import queue

import numpy as np
import pytest

http = pytest.importorskip("tritonclient.http", reason="no tritonclient: pip install 'fastrnn[test]'")
grpc = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install 'fastrnn[test]'")
import tritonclient.grpc.aio as grpc_aio  # noqa: E402
import tritonclient.http.aio as http_aio  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

KINDS = {"f": "FP32", "b": "BOOL", "O": "BYTES", "i": "INT64", "u": "UINT64"}
STATUS = {  # of HTTP, by the code of gRPC
    "INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "ALREADY_EXISTS": 409, "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip


class Form:
    """A client of HTTP or of unary gRPC."""

    def __init__(self, url, module=http, client=None):
        self.module = module
        self.client = client or module.InferenceServerClient(url)

    def do(self, name, *args, **named):
        """A call of the client."""
        return getattr(self.client, name)(*args, **named)

    def infer(self, model, inputs, outputs=None, **named):
        """(outputs by name, parameters, id) of a request."""
        wanted = outputs and [self.module.InferRequestedOutput(name) for name in outputs]
        return read(self.answer(model, self.tensors(inputs), outputs=wanted, **named))

    def answer(self, model, tensors, **named):
        return self.do("infer", model, tensors, **named)

    def tensors(self, inputs):
        found = []
        for name, array in inputs.items():
            found.append(self.module.InferInput(name, list(array.shape), KINDS[array.dtype.kind]))
            found[-1].set_data_from_numpy(array)
        return found

    def refused(self, code, *args, **named):
        """The text of the error that a request gets, which must have this code."""
        with pytest.raises(InferenceServerException) as caught:
            self.infer(*args, **named)
        self.check(caught.value, code)
        return caught.value.message()

    def check(self, error, code):
        assert error.status() == (str(STATUS[code]) if self.is_http else f"StatusCode.{code}"), error

    @property
    def is_http(self):
        return self.module in (http, http_aio)

    def close(self):
        self.client.close()


class Stream(Form):
    """The stream of gRPC, whose errors are texts alone."""

    def __init__(self, url):
        super().__init__(url, grpc)
        self.answers = queue.Queue()
        self.client.start_stream(lambda result, error: self.answers.put((result, error)))

    def answer(self, model, tensors, **named):
        self.client.async_stream_infer(model, tensors, **named)
        result, error = self.answers.get(timeout=30)
        if error is not None:
            raise error
        return result

    def check(self, error, code):
        assert error.message().startswith(f"{code}: "), error

    def close(self):
        self.client.stop_stream()
        self.client.close()


class Aio(Form):
    """A client of asyncio, called from outside its loop."""

    def __init__(self, url, module):
        self.loop = asyncio.new_event_loop()
        self.call = lambda coroutine: self.loop.run_until_complete(asyncio.wait_for(coroutine, 30))

        async def opened():
            return module.InferenceServerClient(url)

        super().__init__(url, module, self.call(opened()))

    def do(self, name, *args, **named):
        return self.call(getattr(self.client, name)(*args, **named))

    def close(self):
        self.call(self.client.close())
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.close()


class AioStream(Aio):
    """The stream of grpc.aio."""

    check = Stream.check

    def __init__(self, url):
        super().__init__(url, grpc_aio)
        self.requests = asyncio.Queue()

        async def opened():
            async def requests():
                while (request := await self.requests.get()) is not None:
                    yield request

            return self.client.stream_infer(requests())

        self.stream = self.call(opened())

    def answer(self, model, tensors, **named):
        async def one():
            self.requests.put_nowait({"model_name": model, "inputs": tensors, **named})
            return await self.stream.__anext__()

        result, error = self.call(one())
        if error is not None:
            raise error
        return result

    def close(self):
        self.requests.put_nowait(None)
        with pytest.raises(StopAsyncIteration):
            self.call(self.stream.__anext__())
        super().close()


FORMS = {
    "http": lambda s: Form(f"127.0.0.1:{s.http}"),
    "http.aio": lambda s: Aio(f"127.0.0.1:{s.http}", http_aio),
    "grpc": lambda s: Form(f"127.0.0.1:{s.grpc}", grpc),
    "grpc.aio": lambda s: Aio(f"127.0.0.1:{s.grpc}", grpc_aio),
    "grpc stream": lambda s: Stream(f"127.0.0.1:{s.grpc}"),
    "grpc.aio stream": lambda s: AioStream(f"127.0.0.1:{s.grpc}"),
}


def read(result):
    """(outputs by name, parameters, id) of an answer, in any form."""
    response = result.get_response()
    if isinstance(response, dict):
        outputs = {o["name"]: result.as_numpy(o["name"]) for o in response["outputs"]}
        return outputs, response.get("parameters", {}), response.get("id", "")
    given = {name: getattr(p, p.WhichOneof("parameter_choice")) for name, p in response.parameters.items()}
    return {o.name: result.as_numpy(o.name) for o in response.outputs}, given, response.id


def plain(item):
    """A description as HTTP has it, of either protocol: numbers are numbers, and what is empty is not there."""
    if isinstance(item, dict):
        return {k: plain(v) for k, v in item.items() if v not in ("", [], {}, None, 0, "0")}
    if isinstance(item, list):
        return [plain(v) for v in item]
    return int(item) if isinstance(item, str) and item.lstrip("-").isdigit() else item


def described(form, name, *args):
    """What a call of the client says, as `plain` has it."""
    if form.is_http:
        return plain(form.do(name, *args))
    return plain(form.do(name, *args, as_json=True))


def step(frames, t=0):
    """The input of one step."""
    return {"x": np.ascontiguousarray(frames[t : t + 1])}
