"""A service's code, as a type checker sees it: mypy reads this file, nobody runs it."""

from pathlib import Path
from typing import assert_type

import numpy as np

import fastrnn

model = fastrnn.load(Path("model.onnx"), bind={"sr": 16000}, states={"h0": "hn"}, threads=1)
assert_type(model, fastrnn.Model)
assert_type(fastrnn.load(b"bytes"), fastrnn.Model)
assert_type(fastrnn.load("m.pt", layers=["lstm:rnn", "linear:out"], key="model"), fastrnn.Model)
assert_type(fastrnn.from_arrays("lstm", W=np.zeros((4, 1)), R=np.zeros((4, 1)), order="ifgo"), fastrnn.Model)
assert_type(fastrnn.from_torch(object(), example=np.zeros((1, 3, 4))), fastrnn.Model)
assert_type(model.inputs, tuple[fastrnn.TensorInfo, ...])
assert_type(model.states, tuple[fastrnn.TensorInfo, ...])
assert_type(model.layers, tuple[fastrnn.LayerInfo, ...])
assert_type(model.memory_bytes, int)
assert_type(model.streamable, bool)
assert_type(model.fingerprint, str)
outputs = model.run(np.zeros((1, 3, 4), np.float32), lengths=[2])
first: np.ndarray = outputs[0]

stream = model.stream(batch_size=8)
assert_type(stream, fastrnn.Stream)
stream.reset()
assert_type(stream.copy(), fastrnn.Stream)
assert_type(stream.delay, int)
state: dict[str, np.ndarray] = stream.state
y = stream.step(np.zeros((8, 4), np.float32), out=None)
ys = stream.push(np.zeros((8, 3, 4), np.float32))
model.save("model.fastrnn")

report = fastrnn.verify("model.onnx", "reference", seed=1)
assert_type(report, fastrnn.VerifyReport)
assert_type(report.ok, bool)
assert_type(report.to_json(), str)
assert_type(fastrnn.cpu_info(), fastrnn.CpuInfo)
assert_type(fastrnn.cpu_info().threads.count, int)
switched = fastrnn.load("switched.onnx")
if isinstance(switched, fastrnn.SelectedModel):
    assert_type(switched.select(sr=16000), fastrnn.Model)
    assert_type(switched.stream(bind={"sr": 16000}), fastrnn.Stream)
try:
    session = fastrnn.InferenceSession("model.onnx")
    results = session.run(["y"], {"x": first})
    options = fastrnn.onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    assert_type(fastrnn.onnxruntime.InferenceSession("model.onnx", options), fastrnn.InferenceSession)
    binding: fastrnn.onnxruntime.IOBinding = session.io_binding()
except fastrnn.FastRNNError as error:
    assert_type(error, fastrnn.FastRNNError)
