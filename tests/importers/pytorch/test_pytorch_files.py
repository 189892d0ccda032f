"""Files of PyTorch's weights, in all three forms, against torch itself; loaded where torch can't be imported."""

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_nets
from safetensors.torch import save_file
from torch import nn

import fastrnn
from fastrnn.errors import ModelFormatError

pytestmark = pytest.mark.any_isa  # how files are read; the kernels have tests of their own
ROOT = Path(__file__).resolve().parents[3]
FORMS = ("zip.pt", "legacy.pth", "safetensors")

# Loads every file that it is told of, saves what each answers. torch, keras and onnx can't be imported in it.
PROGRAM = """
import json, sys
sys.modules.update(dict.fromkeys(["torch", "onnx", "keras", "tensorflow", "h5py"]))
import numpy as np, fastrnn
folder, answers, FORMS = sys.argv[1], {}, sys.argv[2:]
feeds = np.load(folder + "/feeds.npz")
for name, layers in json.load(sys.stdin).items():
    for form in FORMS:
        model = fastrnn.load(f"{folder}/{name}.{form}", layers=layers)
        model.save(folder + "/again.fastrnn")
        y = answers[f"{name}.{form}"] = model(feeds[name])
        assert fastrnn.load(folder + "/again.fastrnn")(feeds[name]).tobytes() == y.tobytes()
np.savez(folder + "/answers.npz", **answers)
"""


def write(path: Path, state: dict) -> None:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(path))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=path.name.endswith("zip.pt"))


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """name.form -> what fastrnn answers, and name -> what torch does."""
    folder = tmp_path_factory.mktemp("weights")
    feeds, expected = {}, {}
    for name in torch_nets.NETS:
        module, x = torch_nets.made(name), torch_nets.feed(name)
        for form in FORMS:
            write(folder / f"{name}.{form}", module.state_dict())
        feeds[name], expected[name] = x.numpy(), torch_nets.answer(module, x).numpy()
    np.savez(folder / "feeds.npz", **feeds)
    lists = {name: layers for name, (_, layers, _) in torch_nets.NETS.items()}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), *FORMS],
        input=json.dumps(lists),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "answers.npz") as found:
        return {**found, **expected}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", torch_nets.NETS)
def test_answers_as_torch(answers, name, form):
    np.testing.assert_allclose(answers[f"{name}.{form}"], answers[name], rtol=1e-5, atol=1e-5)


def test_streams_give_the_bits_of_the_run(tmp_path):
    for name in ("lstm_projected", "residual", "last"):
        torch.save(torch_nets.made(name).state_dict(), tmp_path / "m.pt")
        model, x = fastrnn.load(tmp_path / "m.pt", layers=torch_nets.NETS[name][1]), torch_nets.feed(name).numpy()
        stream = model.stream(batch_size=len(x))
        steps = [stream.step(x[:, t]) for t in range(x.shape[1])]
        got = steps[-1] if name == "last" else np.stack(steps, 1)
        assert got.tobytes() == model(x).tobytes(), name


def saved(state, **how) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **how)
    return file.getvalue()


class TestPrecision:
    """Weights of other precisions compute in float32, exactly as torch does with them converted."""

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("new", [True, False])
    def test_of_pt(self, dtype, new):
        module = torch_nets.made("lstm_both_ways").to(dtype)
        model = fastrnn.load(saved(module.state_dict(), _use_new_zipfile_serialization=new))
        x = torch_nets.feed("lstm_both_ways")
        want = fastrnn.load(saved(module.float().state_dict()))(x.numpy())
        assert model(x.numpy()).tobytes() == want.tobytes()
        name = str(dtype).removeprefix("torch.")
        assert any(name in note and "compute" in note for note in model.graph.notes)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_of_safetensors(self, tmp_path, dtype):
        state = torch_nets.made("gru").to(dtype).state_dict()
        write(tmp_path / "m.safetensors", state)
        x = torch_nets.feed("gru").numpy()
        want = fastrnn.load(saved({name: t.float() for name, t in state.items()}))(x)
        assert fastrnn.load(tmp_path / "m.safetensors")(x).tobytes() == want.tobytes()
        assert fastrnn.load((tmp_path / "m.safetensors").read_bytes())(x).tobytes() == want.tobytes()

    def test_integers_are_no_weights(self):
        state = {name: t.to(torch.int8) for name, t in torch_nets.made("gru").state_dict().items()}
        with pytest.raises(ModelFormatError, match=r"weight_hh_l0 is int8, expected floating point"):
            fastrnn.load(saved(state))


class TestCheckpoints:
    def test_tensors_that_are_views(self):
        """A slice, a transpose and two views of one storage, as training code leaves them."""
        module = torch_nets.made("lstm")
        state = module.state_dict()
        whole = torch.cat([torch.randn(3, 5), state["weight_ih_l0"]])
        both = torch.stack([state["bias_ih_l0"], state["bias_hh_l0"]])
        views = {
            "weight_ih_l0": whole[3:],
            "weight_hh_l0": state["weight_hh_l0"].T.contiguous().T,
            "bias_ih_l0": both[0],
            "bias_hh_l0": nn.Parameter(both[1]),
        }
        x = torch_nets.feed("lstm").numpy()
        for new in (True, False):
            got = fastrnn.load(saved(views, _use_new_zipfile_serialization=new))(x)
            assert got.tobytes() == fastrnn.load(saved(state))(x).tobytes()

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    @pytest.mark.parametrize("new", [True, False])
    def test_a_training_checkpoint(self, new, protocol):
        """With an optimizer, numbers, text and a scheduler's lists: the one dict of tensors by name is found."""
        module = torch_nets.made("gru")
        optimizer = {  # as Adam's state_dict() is
            "state": {
                k: {"step": torch.tensor(1.0), "exp_avg": p.data * 0.1} for k, p in enumerate(module.parameters())
            },
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "amsgrad": False, "params": [0, 1, 2, 3]}],
        }
        checkpoint = {
            "epoch": 3,
            "big": 1 << 40,
            "negative": -5,
            "loss": 0.25,
            "note": "grüße",
            "done": (True, None, [1, 2, (3, 4, 5, 6)]),
            "size": torch.Size([1, 2]),
            "dtype": torch.float16,
            "raw": b"bytes",
            "optimizer": optimizer,
            "model": module.state_dict(),
        }
        blob = saved(checkpoint, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
        x = torch_nets.feed("gru").numpy()
        model = fastrnn.load(blob)
        assert model(x).tobytes() == fastrnn.load(saved(module.state_dict()))(x).tobytes()
        assert "the state dict is the checkpoint's 'model'" in model.graph.notes

    def test_several_dicts_ask_for_the_key(self):
        state = torch_nets.made("gru").state_dict()
        averaged = {name: tensor * 0.5 for name, tensor in state.items()}
        blob = saved({"model": state, "ema": {"shadow": averaged}, "step": 7})
        with pytest.raises(ModelFormatError, match=r"key=: 'model', 'ema.shadow'"):
            fastrnn.load(blob)
        x = torch_nets.feed("gru").numpy()
        assert fastrnn.load(blob, key="ema.shadow")(x).tobytes() == fastrnn.load(saved(averaged))(x).tobytes()
        with pytest.raises(ModelFormatError, match=r"under key='nothing'; there are: 'model', 'ema.shadow'"):
            fastrnn.load(blob, key="nothing")

    @pytest.mark.parametrize("new", [True, False])
    def test_tensors_beside_the_state_dict_are_no_weights(self, new):
        module = nn.GRU(5, 8, batch_first=True)
        around = {"loss": torch.tensor(0.3), "run": {"rng": torch.ones(9), "state_dict": module.state_dict()}}
        model = fastrnn.load(saved(around, _use_new_zipfile_serialization=new))
        x = torch.randn(2, 6, 5)
        np.testing.assert_allclose(model(x.numpy()), module(x)[0].detach(), atol=1e-6)
        assert "left out of the file, beside the state dict: loss, rng" in model.graph.notes

    def test_a_dict_under_two_names_is_found_by_both(self):
        state = nn.GRU(5, 8).state_dict()
        blob = saved({"model": state, "ema": state})
        assert fastrnn.load(blob, key="ema").graph.nodes == fastrnn.load(blob).graph.nodes

    def test_no_tensors(self):
        with pytest.raises(ModelFormatError, match="no dict of named tensors"):
            fastrnn.load(saved({"epoch": 3}))
        with pytest.raises(ModelFormatError, match="holds a tensor and no dict"):
            fastrnn.load(saved(torch.zeros(3)))

    def test_prefixes_of_wrappers(self):
        state = torch_nets.made("tagger").state_dict()
        wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
        model = fastrnn.load(saved(wrapped), layers=torch_nets.NETS["tagger"][1])
        assert sum("off every name" in note for note in model.graph.notes) == 2

    @pytest.mark.parametrize("new", [True, False])
    def test_weight_norms_are_multiplied_out(self, new):
        """Of a convolution and of a recurrent weight, as both of torch's functions write them."""
        module = torch_nets.made("conv")
        norm = nn.utils.parametrizations.weight_norm if new else nn.utils.weight_norm
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the older one is deprecated; its files stay
            norm(module.front)
            norm(module.rnn, "weight_ih_l0")
        with torch.no_grad():
            for name, tensor in module.named_parameters():
                if name.endswith(("original0", "_g")):
                    tensor *= 1.7
        x = torch_nets.feed("conv")
        model = fastrnn.load(saved(module.state_dict()), layers=torch_nets.NETS["conv"][1])
        np.testing.assert_allclose(model(x.numpy()), torch_nets.answer(module, x).numpy(), rtol=1e-5, atol=1e-5)
        assert "multiplied out 2 weight norms" in model.graph.notes

    def test_tied_weights_are_one_storage(self):
        emb = torch.randn(7, 5)
        rnn = nn.GRU(5, 5, batch_first=True)
        state = {"emb.weight": emb, "out.weight": emb, **{f"rnn.{n}": t for n, t in rnn.state_dict().items()}}
        model = fastrnn.load(saved(state), layers="embedding:emb gru:rnn linear:out")
        ids = torch.tensor([[1, 5, 6, 2]])
        with torch.no_grad():
            want = rnn(emb[ids])[0] @ emb.T
        np.testing.assert_allclose(model(ids.numpy()), want.numpy(), atol=1e-5)


# list, what the error must say; the file is "tagger": emb [11, 6], rnn 6 -> 8 both ways, out [4, 16]
WRONG_LISTS = [
    (None, r"layers=\[\"embedding:emb\", \"lstm:rnn\", \"linear:out\"\]"),
    ([], "layers must be a list"),
    (["embedding:emb", 3], "layers must be a list"),
    (["embeding:emb"], r"layers\[0\] is 'embeding:emb'; it begins with one of: .*embedding"),
    (["embedding:emb", "gru:rnn"], r"layers\[1\] .*weight_hh_l0 is \[32, 8\], which a lstm has, expected \[24, 8\]"),
    (["embedding:emb", "lstm:rnn", "linear:out", "linear:out"], r"out.weight is \[4, 16\], expected \[4, 4\]"),
    (["embedding:emb", "linear:out"], r"out.weight is \[4, 16\], expected \[4, 6\]"),
    (["embedding:emb", "lstm:rnn", "embedding:out"], "must be the first"),
    (["embedding:emb", "lstm:rnn"], "no layer uses out.weight, out.bias"),
    (["embedding:emb", "lstm:cell"], r"has no tensor cell.weight_ih_l0; it has emb.weight"),
    (["embedding:emb", "conv1d:out"], r"out.weight is \[4, 16\], expected \[any, any, any\]"),
    (["embedding:emb", "lstm:rnn", "linear:out", "softmax:out"], "softmax has no tensors"),
    (["embedding:emb", "lstm:rnn", "linear:out", "softmax(axis=1)"], "softmax has no option axis"),
    (["embedding:emb", "lstm:rnn", "linear:out", "residual"], "they must have one shape"),
    (["embedding:emb", "lstm:rnn", "linear:out", "residual(over=9)"], "reaches over 9"),
    (["embedding:emb", "lstm:rnn", "linear:out", "residual(over=-1)"], "expected a whole number"),
    (["embedding:emb", "lstm:rnn", "linear:out", "final"], "right after"),
    (["embedding:emb", "lstm:rnn", "last", "last"], "needs a time axis"),
    (["embedding:emb", "lstm:rnn(gates=swish)", "linear:out"], "expected one of relu"),
    (["relu"], "can't be the first"),
    (["skip:nothing", "lstm:rnn"], "no tensor whose name begins with 'nothing'"),
]


@pytest.mark.parametrize(("layers", "text"), WRONG_LISTS, ids=lambda v: str(v)[:40])
def test_a_wrong_list_says_what_does_not_fit(layers, text):
    with pytest.raises(ModelFormatError, match=text):
        fastrnn.load(saved(torch_nets.made("tagger").state_dict()), layers=layers)


def test_options_of_cells():
    """Activations, a GRU's form and the direction, which no tensor tells, against the reference of the same cell."""
    module = torch_nets.made("gru")
    state, x = module.state_dict(), torch_nets.feed("gru")
    turned = fastrnn.load(saved(state), layers=["gru(reverse=true)"])(x.numpy())
    with torch.no_grad():
        want = module(x.flip(1))[0].flip(1)
    np.testing.assert_allclose(turned, want.numpy(), atol=1e-5)
    spec = fastrnn.load(saved(state), layers=["gru(reset=before, activation=relu, gates=hard_sigmoid)"]).graph.nodes
    spec = next(node.attrs["spec"] for node in spec if node.op == "cell")
    assert not spec.linear_before_reset
    assert [a.name for a in spec.activations] == ["hard_sigmoid", "relu"]
    with pytest.raises(ModelFormatError, match="reset= applies to a gru alone"):
        fastrnn.load(saved(torch_nets.made("lstm").state_dict()), layers=["lstm(reset=before)"])


def test_layers_are_left_out_by_name():
    state = torch_nets.made("tagger").state_dict()
    model = fastrnn.load(saved(state), layers=["embedding:emb", "lstm:rnn", "skip:out"])
    assert model.outputs[0].dims == ("batch", "time", 16)


def test_other_options_are_refused():
    blob = saved(torch_nets.made("gru").state_dict())
    with pytest.raises(ModelFormatError, match="bind="):
        fastrnn.load(blob, bind={"x": 1})
