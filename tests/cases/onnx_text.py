"""Small models in ONNX's text form, for tests of the importer."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import fastrnn
from fastrnn.graph import reference
from fastrnn.importers.onnx import import_onnx

END = 2**63 - 1  # "to the end", as exporters write it
RNN = "y, h = RNN <hidden_size = 2> ({x}, W, R)"


def model(signature, body, *, opset=17, **constants):
    """A model in ONNX's text form; W [1,2,F] and R [1,2,2] are there, further constants by name."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g {signature} {{ {body} }}'
    made = onnx.parser.parse_model(text)
    features = constants.pop("F", 3)
    rng = np.random.default_rng(3)
    arrays = {"W": rng.standard_normal((1, 2, features)), "R": rng.standard_normal((1, 2, 2))}
    arrays = {k: v.astype(np.float32) for k, v in arrays.items()} | {k: np.asarray(v) for k, v in constants.items()}
    used = {i for n in made.graph.node for i in n.input}
    made.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in arrays.items() if k in used)
    return made


def dims(graph, name):
    return [d if isinstance(d, int) else str(d) for d in graph.values[name].dims]


def agrees_with_onnxruntime(made, **feeds):
    """At the file's own sizes the graph is what onnxruntime makes of the file."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    want = ort.InferenceSession(made.SerializeToString(), options).run(None, feeds)
    for a, b in zip(reference.run(import_onnx(made), feeds), want, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def noise(*shape):
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def runs_as_onnxruntime(made, *calls, rtol=1e-4, atol=1e-5, **options):
    """The loaded model gives onnxruntime's answers for each call's feeds, dtypes included; returns the model."""
    ort = pytest.importorskip("onnxruntime")
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    session = ort.InferenceSession(made.SerializeToString(), settings)
    model = fastrnn.from_onnx(made, **options)
    names = [info.name for info in model.inputs]
    for feeds in calls:
        for a, b in zip(model.run(*(feeds[name] for name in names)), session.run(None, feeds), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
    return model


def streams_as_it_runs(model, x, axis=1, **options):
    """A stream over x, step by step and in chunks, gives the bits of one run over all of it."""
    (whole,) = model.run(x)
    for chunk in (1, 2, x.shape[axis]):
        stream = model.stream(batch_size=whole.shape[0], **options)
        parts = []
        for start in range(0, x.shape[axis], chunk):
            parts.append(stream.push(np.take(x, range(start, min(start + chunk, x.shape[axis])), axis)))
        np.testing.assert_array_equal(np.concatenate(parts, axis), whole)
