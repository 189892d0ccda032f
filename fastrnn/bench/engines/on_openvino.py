"""OpenVINO: infer requests with tensors set once, latency hint, one stream. The caller feeds states back.

In bfloat16 it gets the hint that it sets by itself where the CPU multiplies bfloat16. In int8 it gets the cell with
QuantizeLinear and DequantizeLinear around x, h and the weights, which its compiler turns into a cell of bytes.
"""

import tempfile
from pathlib import Path

import numpy as np
import openvino


def version():
    return f"OpenVINO {openvino.__version__}"


def candidates(job, engine, threads):
    """The two ways to run a request; static shapes, which is what its compiler likes best."""
    core = openvino.Core()
    if job["precision"] == "int8":
        with tempfile.TemporaryDirectory() as folder:
            model = core.read_model(quantized(job, Path(folder)))
    else:
        model = core.read_model(job["file"])
    shapes = {job["input"]: job["shape"]} | {name: shape for name, _, shape in job["states"]}
    model.reshape({name: openvino.PartialShape(list(shape)) for name, shape in shapes.items()})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        # On a CPU with bfloat16 it would compute in that by itself: twice as fast, and another answer.
        "INFERENCE_PRECISION_HINT": "bf16" if job["precision"] == "bfloat16" else "f32",
    }
    compiled = core.compile_model(model, "CPU", settings)
    if job["precision"] == "int8":
        precisions = {
            node.get_rt_info()["runtimePrecision"].astype(str) for node in compiled.get_runtime_model().get_ops()
        }
        if not precisions & {"u8", "i8"}:
            raise ValueError("the compiled model computes nothing in bytes")
    return [Requests(job, compiled, way) for way in ("infer", "start_async, wait")]


def quantized(job, folder):
    """The path of the job's cell with x, h, W and R in bytes: a scale per channel of the weights, and one for x and h,
    because a cell of oneDNN has only one. It is that of the largest x of the job, which clips nothing."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(job["file"])
    graph = model.graph
    (cell,) = graph.node
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    largest = max(1.0, float(np.abs(np.load(job["x"])).max()))
    nodes, made = [], {}

    def dequantized(name, source, scale, **attributes):
        made[f"{name}_scale"], made[f"{name}_zero"] = scale, np.zeros(scale.shape, np.int8)
        inputs = [source, f"{name}_scale", f"{name}_zero"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_near"], **attributes))
        return f"{name}_near"

    def rounded(name):
        scale = np.array(largest / 127, np.float32)
        nodes.append(helper.make_node("QuantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [f"{name}_bytes"]))
        return dequantized(name, f"{name}_bytes", scale)

    def small(name):
        weights = arrays.pop(name)
        scale = np.abs(weights).max(axis=(0, 2)) / np.float32(127)
        made[f"{name}_bytes"] = np.rint(weights / scale[None, :, None]).astype(np.int8)
        return dequantized(name, f"{name}_bytes", scale, axis=1)

    for place, form in ((0, rounded), (1, small), (2, small), (5, rounded)):
        cell.input[place] = form(cell.input[place])
    del graph.node[:], graph.initializer[:]
    graph.node.extend([*nodes, cell])
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in (arrays | made).items())
    target = folder / "bytes.onnx"
    onnx.save(model, target)
    return str(target)


def stream_bytes(job):
    """The states of one stream, which the caller holds."""
    return sum(4 * int(np.prod(shape)) for _, _, shape in job["states"]) // job["batch"]


class Requests:
    """With states two requests take turns, each reading the tensors that the other writes."""

    def __init__(self, job, compiled, name):
        self.name = name
        self.x = np.zeros(job["shape"], np.float32)
        self.output = job["output"]
        self.states = [{o: np.zeros(shape, np.float32) for _, o, shape in job["states"]} for _ in range(2)]
        self.requests = []
        for reads, writes in (self.states, self.states[::-1]):
            request = compiled.create_infer_request()
            request.set_tensor(job["input"], openvino.Tensor(self.x, shared_memory=True))
            for constant, value in job["bind"]:
                request.set_tensor(constant, openvino.Tensor(np.array(value, np.int64)))
            for state, output, _ in job["states"]:
                request.set_tensor(state, openvino.Tensor(reads[output], shared_memory=True))
                request.set_tensor(output, openvino.Tensor(writes[output], shared_memory=True))
            self.requests.append(request)
        if not job["states"]:
            self.requests[1] = self.requests[0]
        self.at = 0

    def calls(self, n):
        now, later = self.requests[self.at], self.requests[1 - self.at]
        if self.name == "infer":
            for _ in range(n):
                now.infer(share_outputs=True)
                now, later = later, now
        else:
            for _ in range(n):
                now.start_async()
                now.wait()
                now, later = later, now
        self.at = (self.at + n) % 2

    def answer(self, x):
        for states in self.states:
            for array in states.values():
                array[...] = 0
        self.at = 0
        found = []
        for row in x:
            self.x[...] = row
            done = self.requests[self.at]
            self.calls(1)
            found.append(np.array(done.get_tensor(self.output).data))
        return np.stack(found)
