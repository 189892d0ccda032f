"""Files of PyTorch weights beside .pt: TorchScript, tar archives, pickles of NumPy arrays; .npz and dicts of arrays."""

import collections
import io
import os
import pickle
import struct
import tarfile
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fastrnn
from fastrnn.errors import ModelFormatError, UnsupportedError

pytestmark = pytest.mark.any_isa
LAYERS = ["gru:rnn", "linear:out"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(8)
        self.rnn, self.out = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


NET = Net().eval()
STATE = {name: tensor.numpy() for name, tensor in NET.state_dict().items()}


def agrees(model):
    for batch, time in ((1, 1), (3, 7)):
        x = torch.randn(batch, time, 4)
        with torch.no_grad():
            np.testing.assert_allclose(model(x.numpy()), NET(x).numpy(), rtol=1e-5, atol=1e-5)
    stream = model.stream(batch_size=3)
    got = np.stack([stream.step(x.numpy()[:, t]) for t in range(7)], 1)
    np.testing.assert_array_equal(got, model(x.numpy()))


def saved(thing, **options) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file, **options)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".tar", ".pth.tar"])
@pytest.mark.parametrize("form", [True, False])
def test_checkpoints_that_are_named_tar(tmp_path, suffix, form):
    path = tmp_path / f"model_best{suffix}"
    path.write_bytes(saved({"epoch": 3, "state_dict": NET.state_dict()}, _use_new_zipfile_serialization=form))
    agrees(fastrnn.load(path, layers=LAYERS))


def tarred(**changes) -> bytes:
    """As PyTorch 0.1 wrote it."""
    names = list(STATE)
    parts = {"storages": [pickle.dumps(len(names), 2)], "tensors": [pickle.dumps(len(names), 2)], "pickle": []}
    for k, name in enumerate(names):
        array = np.ascontiguousarray(STATE[name])
        parts["storages"] += [pickle.dumps((100 + k, "cpu", torch.FloatStorage), 2), struct.pack("<q", array.size)]
        parts["storages"].append(array.tobytes())
        strides = [s // 4 for s in array.strides]
        parts["tensors"] += [pickle.dumps((k, 100 + k, torch.FloatTensor), 2), struct.pack("<q", array.ndim)]
        parts["tensors"].append(struct.pack(f"<{2 * array.ndim + 1}q", *array.shape, *strides, 0))
    parts["storages"].append(pickle.dumps([], 2))
    places = {id(key): key for key in range(len(names))}

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return str(places[id(thing)]) if isinstance(thing, Place) else None

    class Place:
        pass

    held = [Place() for _ in names]
    places = {id(place): k for k, place in enumerate(held)}
    file = io.BytesIO()
    Pickler(file, 2).dump(collections.OrderedDict(zip(names, held, strict=True)))
    parts["pickle"].append(file.getvalue())
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, pieces in {**parts, **changes}.items():
            info = tarfile.TarInfo(name)
            info.size = len(b"".join(pieces))
            archive.addfile(info, io.BytesIO(b"".join(pieces)))
    return out.getvalue()


def test_tar_archives_of_the_first_pytorch(tmp_path):
    blob = tarred()
    (tmp_path / "m.tar").write_bytes(blob)
    theirs = torch.load(tmp_path / "m.tar", weights_only=False)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in NET.state_dict().items())
    agrees(fastrnn.load(tmp_path / "m.tar", layers=LAYERS))
    agrees(fastrnn.load(blob, layers=LAYERS))


def test_tar_archives_that_are_damaged_or_of_others():
    with pytest.raises(ModelFormatError, match=r"cut off|before a tensor"):
        fastrnn.load(tarred(tensors=[pickle.dumps(3, 2), pickle.dumps((0, 100, torch.FloatTensor), 2), b"\1"]))
    with pytest.raises(ModelFormatError, match="a tar archive of 10000000 tensors"):
        fastrnn.load(tarred(tensors=[pickle.dumps(10_000_000, 2)]))
    with pytest.raises(UnsupportedError, match=r"asks for '(posix|nt)\.system'"):
        fastrnn.load(tarred(pickle=[pickle.dumps(os.system, 2)]))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:") as archive:
        archive.addfile(tarfile.TarInfo("model/config.json"))
    with pytest.raises(ModelFormatError, match=r"of model/config\.json, which torch.save did not write: unpack it"):
        fastrnn.load(out.getvalue())


@pytest.mark.parametrize("way", ["script", "trace"])
def test_the_weights_of_torchscript_by_a_list_of_layers(tmp_path, way, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.script(NET) if way == "script" else torch.jit.trace(NET, torch.randn(2, 5, 4))
        torch.jit.save(made, tmp_path / "m.jit")
    monkeypatch.setattr("torch.jit.load", None)
    agrees(fastrnn.load(tmp_path / "m.jit", layers=LAYERS))
    with pytest.raises(UnsupportedError, match="holds TorchScript, a program: give layers= to read its weights alone"):
        fastrnn.load(tmp_path / "m.jit")


def test_torchscript_that_was_frozen_has_no_names(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.freeze(torch.jit.script(NET)), tmp_path / "m.jit")
    with pytest.raises(UnsupportedError, match="weights have no names, since it was frozen"):
        fastrnn.load(tmp_path / "m.jit", layers=LAYERS)


def test_the_graph_of_torchscript(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(NET), tmp_path / "m.jit")
    model = fastrnn.load(tmp_path / "m.jit", allow_torch=True, example=torch.randn(2, 5, 4))
    assert [i.name for i in model.inputs] == ["x"]
    agrees(model)


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 4, batch_first=True)
        self.register_buffer("h", torch.zeros(1, 2, 4))

    def forward(self, x):
        y, h = self.rnn(x, self.h)
        self.h = h
        return y


def test_a_state_that_torchscript_keeps_is_refused_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(Keeps().eval())
    with pytest.raises(UnsupportedError, match=r"keeps its state in self\.h; a model has no hidden state"):
        fastrnn.from_torch(script, torch.randn(2, 5, 4))


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2"])
def test_numpy_arrays_in_a_pickle(tmp_path, protocol, dtype):
    arrays = {name: np.asfortranarray(a.astype(dtype)) for name, a in STATE.items()}
    held = {"state": arrays, "loss": np.float64(0.5), "epochs": np.int64(3), "lr": np.array([0.1])}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(held, protocol))
    (tmp_path / "m.pt").write_bytes(saved(held, pickle_protocol=protocol))
    want = fastrnn.load({name: a.astype("=f4") for name, a in arrays.items()}, layers=LAYERS)
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
    for name in ("m.pkl", "m.pt"):
        np.testing.assert_array_equal(fastrnn.load(tmp_path / name, layers=LAYERS)(x), want(x))


def test_what_a_pickle_of_arrays_may_not_hold():
    class Evil:
        def __reduce__(self):
            return (eval, ("1 + 1",))

    for thing, error, text in (
        ({"w": np.array([Evil()], object)}, UnsupportedError, "asks for '__builtin__.eval'"),
        ({"w": np.array(["text"])}, UnsupportedError, "a NumPy array of 'U4'"),
        ({"w": np.array([None])}, UnsupportedError, "Python objects"),
    ):
        with pytest.raises(error, match=text):
            fastrnn.load(saved(thing))
    blob = saved({"w": np.arange(5.0)}, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelFormatError, match="a NumPy array"):
        fastrnn.load(blob.replace(b"K\x05\x85", b"K\x06\x85"))


def test_npz_and_dicts_of_arrays(tmp_path):
    np.savez(tmp_path / "m.npz", **STATE)
    np.savez_compressed(tmp_path / "n.npz", **STATE)
    agrees(fastrnn.load(tmp_path / "m.npz", layers=LAYERS))
    agrees(fastrnn.load((tmp_path / "n.npz").read_bytes(), layers=LAYERS))
    agrees(fastrnn.load(STATE, layers=LAYERS))
    agrees(fastrnn.load(NET.state_dict(), layers=LAYERS))
    alone = {name.partition(".")[2]: a for name, a in STATE.items() if name.startswith("rnn.")}
    x = torch.randn(2, 5, 4)
    with torch.no_grad():
        np.testing.assert_allclose(fastrnn.load(alone)(x.numpy()), NET.rnn(x)[0].numpy(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelFormatError, match="the dict: its weights don't say in which order the layers come"):
        fastrnn.load(STATE)


def test_arrays_that_are_none():
    for source, text in (
        ({}, "it holds no arrays"),
        ({1: np.ones(2)}, "has the key 1, expected a name"),
        ({"model": STATE}, "model is dict: take one of the dicts in it"),
        ({"rnn": "text"}, "rnn is str: expected an array of numbers"),
    ):
        with pytest.raises(ModelFormatError, match=text):
            fastrnn.load(source)
    file = io.BytesIO()
    np.savez(file, a=np.array([{}], object))
    with pytest.raises(ModelFormatError, match=r"not an \.npz file of numbers"):
        fastrnn.load(file.getvalue())
    with pytest.raises(ModelFormatError, match="damaged"):
        fastrnn.load(file.getvalue()[:-30])
    huge = io.BytesIO()
    np.savez_compressed(huge, a=np.zeros(1 << 24, np.float32))
    with pytest.raises(ModelFormatError, match="unpack to more than they can be"):
        fastrnn.load(huge.getvalue())
