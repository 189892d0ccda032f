"""A fuzz target: whatever bytes a client sends, they end in a Reply or in a Fault.

    python tests/fuzz/fuzz_requests.py -max_total_time=20

The first byte of an input chooses what reads the rest: a ModelInferRequest of gRPC, the JSON and binary tensors of HTTP
(behind two bytes, the length of the JSON), a compressed body, or the record of a sequence in a store. A request that
can be read is run on a small model. atheris (in the extra `test`, where it has wheels) makes the bytes; `one_input` is
the target, and test_fuzz_requests.py feeds it damaged copies of `seeds()` without atheris.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import tempfile
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

MOST = 1 << 20  # bytes of a request
SECONDS = 10.0  # in which it is answered


@lru_cache(1)
def served():
    """(event loop, Engine) of a small model, with few sequences."""
    import fastrnn
    from fastrnn.serving.server.engine import Engine
    from fastrnn.serving.server.limits import Limits
    from fastrnn.serving.server.options import Options

    rng = np.random.default_rng(1)
    W, R = (rng.normal(size=(6, n)).astype(np.float32) for n in (2, 2))
    model = fastrnn.from_arrays("gru", W=W, R=R, order="zrh", threads=1)
    loop = asyncio.new_event_loop()

    async def made() -> Engine:
        engine = Engine({"m": {1: model}}, Options(max_delay=0.0, max_sequences=8), Limits(message_bytes=MOST))
        await engine.start()
        return engine

    return loop, loop.run_until_complete(made())


def one_input(data: bytes) -> bool:
    """Read and run a request; whether it was answered. Raises whatever must not leave the server."""
    from fastrnn.serving.server.faults import Fault
    from fastrnn.serving.store import StoreError

    readers = (grpc_request, http_request, compressed_request, record)
    if not data:
        return False
    try:
        return readers[data[0] % len(readers)](data[1:])
    except (Fault, StoreError) as error:
        str(error).encode()  # every protocol can write it
        return False


def grpc_request(data: bytes) -> bool:
    from fastrnn.serving.server.grpc import parser, request_of, response_of

    message = parser("ModelInferRequest")(data)
    request = request_of(message, "fuzz")
    return bool(response_of(message, run(request)).SerializeToString())


def http_request(data: bytes) -> bool:
    from fastrnn.serving.server import bodies

    length = int.from_bytes(data[:2], "little")
    given = None if length == 0xFFFF else str(length)
    request, answer = bodies.request_of(data[2:], given, "m", "", "fuzz")
    body, length = answer(run(request))
    json.loads(body[:length])
    return True


def compressed_request(data: bytes) -> bool:
    from fastrnn.serving.server import bodies

    return len(bodies.inflated(data, "gzip" if data[:1] == b"\x1f" else "deflate", MOST)) <= MOST


def record(data: bytes) -> bool:
    from fastrnn.serving.store import Record

    return Record.from_bytes(data + hashlib.blake2b(data, digest_size=16).digest()).steps >= 0


def run(request):
    """The Reply to a request."""
    loop, engine = served()
    return loop.run_until_complete(asyncio.wait_for(engine.infer(request), SECONDS))


def seeds() -> list[bytes]:
    """Requests that are answered, of every kind."""
    from fastrnn.serving.server.messages import message
    from fastrnn.serving.store import Record

    x = np.arange(6, dtype=np.float32)
    found = []
    for shape, count in (((1, 2), 2), ((1, 3, 2), 6), ((1, 3, 2), 6)):
        request = message("ModelInferRequest")(model_name="m", id="r")
        request.inputs.add(name="x", datatype="FP32", shape=shape)
        request.raw_input_contents.append(x[:count].tobytes())
        if len(found) < 2:
            request.parameters["sequence_id"].int64_param = 7
            request.parameters["sequence_start"].bool_param = True
            request.parameters["step_index"].int64_param = 0
        request.outputs.add(name="y")
        found.append(b"\0" + request.SerializeToString())
    many = message("ModelInferRequest")(model_name="m")
    many.inputs.add(name="x", datatype="FP32", shape=(2, 2)).contents.fp32_contents.extend([1, 2, 3, 4])
    many.inputs.add(name="SEQUENCE_IDS", datatype="BYTES", shape=(2,)).contents.bytes_contents.extend([b"a", b"b"])
    many.inputs.add(name="SEQUENCE_START", datatype="BOOL", shape=(2,)).contents.bool_contents.extend([True, True])
    many.inputs.add(name="SEQUENCE_END", datatype="BOOL", shape=(2,)).contents.bool_contents.extend([True, True])
    found.append(b"\0" + many.SerializeToString())
    plain = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1, 2], "data": [[[1.5, -2]]]}]}
    found.append(b"\1\xff\xff" + json.dumps(plain).encode())
    given = {"sequence_id": "s", "sequence_start": True, "sequence_end": True, "binary_data_output": True}
    ids = b"".join(len(i).to_bytes(4, "little") + i for i in (b"a", b"bc"))
    tensors = [("x", "FP32", [2, 2], x[:4].tobytes()), ("SEQUENCE_IDS", "BYTES", [2], ids)]
    tensors.append(("SEQUENCE_START", "BOOL", [2], b"\1\1"))
    for parameters, chosen in ((given, [("x", "FP32", [1, 2], x[:2].tobytes())]), ({}, tensors)):
        inputs = [
            {"name": n, "datatype": d, "shape": s, "parameters": {"binary_data_size": len(b)}} for n, d, s, b in chosen
        ]
        head = json.dumps({"id": "r", "parameters": parameters, "inputs": inputs, "outputs": [{"name": "y"}]}).encode()
        found.append(b"\1" + len(head).to_bytes(2, "little") + head + b"".join(b for *_, b in chosen))
    for bits in (15, 31):
        packed = zlib.compressobj(wbits=bits)
        found.append(b"\2" + packed.compress(bytes(1000)) + packed.flush())
    last = (3, 1, [x.reshape(2, 3)])
    found.append(b"\3" + Record("m", 7, 1, ("name",), 4, b"state", "live", 1.5, last=last).to_bytes()[:-16])
    return found


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["fastrnn.serving"]):
        import fastrnn.serving.server.grpc
        import fastrnn.serving.store  # noqa: F401  (instrumented here, so that their branches guide the bytes)
    with tempfile.TemporaryDirectory() as folder:
        for i, data in enumerate(seeds()):
            Path(folder, str(i)).write_bytes(data)
        atheris.Setup([*sys.argv, folder], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
