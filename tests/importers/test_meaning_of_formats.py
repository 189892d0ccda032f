"""One set of weights in every format that holds it: sessions move between them with the same bits."""

import numpy as np
import pytest

import fastrnn

pytestmark = pytest.mark.any_isa


def same_bits(models, chunks):
    """Whether a session of each model goes on in each other one with its own bits."""
    before, after = chunks
    for old in models:
        stream = old.stream()
        stream.push(before)
        blob, want = stream.snapshot(), first(stream.push(after))
        for new in models:
            other = new.stream()
            other.restore(blob)
            if first(other.push(after)).tobytes() != want.tobytes():
                return False
    return True


def first(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name", ["lstm", "gru_no_bias", "square", "last", "mean", "residual", "conv_grouped", "prelu"])
def test_pytorch(name, tmp_path):
    torch = pytest.importorskip("torch")
    import torch_nets
    from safetensors.torch import save_file

    module, x = torch_nets.made(name), torch_nets.feed(name)
    layers, weights = torch_nets.NETS[name][1], module.state_dict()
    torch.save(weights, tmp_path / "model.pt")
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / "model.safetensors")
    live = fastrnn.from_torch(module, x)
    live.save(tmp_path / "model.fastrnn")
    models = [live, *(fastrnn.load(tmp_path / f"model.{end}", layers=layers) for end in ("pt", "safetensors"))]
    models.append(fastrnn.load(tmp_path / "model.fastrnn"))
    assert len({m.fingerprint for m in models}) == 1
    rows = x.numpy()
    assert same_bits(models, (rows[0], rows[1]))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras on PyTorch
def test_keras(tmp_path):
    keras = pytest.importorskip("keras")
    layers = keras.layers
    stack = [layers.Conv1D(6, 3, padding="causal"), layers.BatchNormalization(), layers.LSTM(5, return_sequences=True)]
    stack += [layers.GRU(4, return_sequences=True, reset_after=False), layers.LayerNormalization(), layers.Dense(2)]
    model, rng = keras.Sequential([keras.Input((None, 4)), *stack]), np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.1, 0.5, weight.shape).astype(np.float32))
    model.save(tmp_path / "model.keras")
    model.save(tmp_path / "model.h5")
    model.save_weights(tmp_path / "model.weights.h5")
    models = [fastrnn.load(tmp_path / name) for name in ("model.keras", "model.h5")]
    models.append(fastrnn.load(tmp_path / "model.weights.h5", config=model.to_json()))
    models.append(fastrnn.from_keras(model))
    models[0].save(tmp_path / "model.fastrnn")
    models.append(fastrnn.load(tmp_path / "model.fastrnn"))
    assert len({m.fingerprint for m in models}) == 1
    chunk = rng.standard_normal((2, 9, 4)).astype(np.float32)
    assert same_bits(models, chunk)
