"""Models that read a whole map, by the exporters of PyTorch and as the benchmark writes them: right at other sizes."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn.bench import modern
from fastrnn.compile import lowering

torch = pytest.importorskip("torch", reason="the models are PyTorch's")
pytest.importorskip("onnxscript", reason="PyTorch's exporters need it")
ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

from modern.whole.readers import CRNN, Captioned, SmallStack  # noqa: E402
from modern.whole.spotters import BCResNet  # noqa: E402
from programs.exports import quiet  # noqa: E402

MODELS = {
    "spotter": (lambda: BCResNet(1), (1, 40, 33)),
    "reader": (lambda: CRNN(SmallStack(), 256, 20), (3, 32, 44)),
    "captioned": (lambda: Captioned(SmallStack(), 256, 20), (3, 32, 44)),
}


def made(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(27)
        module = MODELS[name][0]().eval()
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 2)
    return module


def check(model, module, *shape):
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    with torch.no_grad():
        want = module.double()(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(model(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_by_the_older_exporter_at_other_sizes(name):
    module, shape, out = made(name), MODELS[name][1], io.BytesIO()
    with quiet(), torch.no_grad():
        axes = {"x": {0: "batch", 3: "time"}}
        torch.onnx.export(
            module, (torch.zeros(2, *shape),), out, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes=axes
        )
    model = fastrnn.load(out.getvalue(), threads=1)
    check(model, module, 1, *shape)
    check(model, module, 3, *shape[:2], 60)


def test_a_norm_of_bands_needs_no_copy():
    module, out = made("spotter"), io.BytesIO()
    with quiet(), torch.no_grad():
        torch.onnx.export(module, (torch.zeros(1, *MODELS["spotter"][1]),), out, dynamo=True, input_names=["x"])
    model = fastrnn.load(out.getvalue(), threads=1)
    kinds = [op.kind for op in lowering.lower(model.graph, "run", lowering.Weights()).ops]
    assert kinds.count("copy") <= 1
    assert {"conv_rows", "depthwise_rows"} <= set(kinds)
    check(model, module, 2, *MODELS["spotter"][1])


@pytest.mark.parametrize("name", modern.MAPS)
def test_the_files_of_the_benchmark_are_those_of_onnxruntime(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    steps = modern.MAPS[name][1]
    modern.write(name, steps, tmp_path / "map.onnx")
    x = np.random.default_rng(2).standard_normal(modern.described(name, steps).shape).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "map.onnx"), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x})
    np.testing.assert_allclose(fastrnn.load(tmp_path / "map.onnx", threads=1)(x), want, rtol=1e-4, atol=1e-5)
