"""Models with loops in onnx's text form, and their answers by onnxruntime."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import parser

import fastrnn

EXPORTED = Path(__file__).resolve().parents[1] / "data" / "loops"  # tools/make_loop_fixtures.py
RNG = np.random.default_rng(5)
W = RNG.normal(0, 0.6, (3, 4)).astype(np.float32)
R = RNG.normal(0, 0.5, (4, 4)).astype(np.float32)
WEIGHTS = f"float[3,4] W = {{{','.join(map(str, W.ravel()))}}}, float[4,4] R = {{{','.join(map(str, R.ravel()))}}}"


def model(signature: str, body: str, opset: int = 17) -> onnx.ModelProto:
    """signature: (inputs) => (outputs); body: nodes, in onnx's text form, with the weights W [3, 4] and R [4, 4]."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g {signature} <{WEIGHTS}> {{ {body} }}'
    made = parser.parse_model(text)
    onnx.checker.check_model(made)
    return made


def answers(proto, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def same(proto, feeds, loaded=None):
    """The model answers as onnxruntime does."""
    loaded = loaded or fastrnn.from_onnx(proto)
    for got, want in zip(loaded.run(**feeds), answers(proto, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-5)
    return loaded


def array(*shape):
    return RNG.normal(size=shape).astype(np.float32)
