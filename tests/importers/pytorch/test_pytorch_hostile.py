"""Damaged and hostile .pt and .safetensors files: each costs a clear error, nothing runs and nothing is created."""

import builtins
import contextlib
import io
import os
import pickle
import random
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_nets

import fastrnn
from fastrnn.errors import FastRNNError, ModelFormatError, UnsupportedError
from fastrnn.importers.pytorch import files, pickles

pytestmark = pytest.mark.any_isa
SEED = 7


def saved(state, **how) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **how)
    return file.getvalue()


GRU = torch_nets.made("gru").state_dict()
BOTH = [saved(GRU), saved(GRU, _use_new_zipfile_serialization=False)]


def rewritten(change: dict, blob: bytes = BOTH[0], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file with some entries replaced (None: left out)."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(blob)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            data = change.get(name.partition("/")[2], old.read(name))
            if data is not None:
                new.writestr(name, data)
    return out.getvalue()


def with_pickle(pickled: bytes) -> bytes:
    return rewritten({"data.pkl": pickled})


class Runs:
    """An object whose pickle calls `function(*args)` when Python's own unpickler reads it."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


WITHIN = [
    saved({"model": GRU, "more": {"deep": [1, Runs(os.system, "touch trip")]}}, _use_new_zipfile_serialization=new)
    for new in (True, False)
]


@pytest.fixture
def trap(monkeypatch, tmp_path):
    """Fails the test if anything of a pickle runs; a file that it would have made is looked for."""
    monkeypatch.chdir(tmp_path)

    def fail(*args, **kwargs):
        raise AssertionError(f"it ran: {args}")

    for module in (os, sys.modules[os.name]):  # posix, or nt
        monkeypatch.setattr(module, "system", fail)
    monkeypatch.setattr(builtins, "eval", fail)
    monkeypatch.setattr(pickle, "loads", fail)
    yield
    assert list(tmp_path.iterdir()) == []


CODE = {
    "os.system": (b"cposix\nsystem\n(X\x0a\x00\x00\x00touch tripptR.", "posix.system"),
    "eval": (b"c__builtin__\neval\n(X\x04\x00\x00\x001+1 tR.", "__builtin__.eval"),
    "stack_global": (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94\x8c\x05touch\x94\x85\x94R\x94.", "os.system"),
    "getattr": (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
    "inst": (b"(X\x04\x00\x00\x001+1 ibuiltins\neval\n.", "opcode 0x69"),
    "obj": (b"(cbuiltins\neval\nX\x04\x00\x00\x001+1 o.", "builtins.eval"),
    "torch.load": (b"ctorch\nload\n.", "torch.load"),
    "a dotted name": (b"ctorch\n_utils._rebuild_tensor_v2.__globals__\n.", "__globals__"),
    "the extension registry": (b"\x82\x01.", "opcode 0x82"),
    "attributes of a constructor": (b"ctorch._utils\n_rebuild_tensor_v2\n}b.", "sets attributes"),
    "calling a word": (b"ctorch\nfloat32\n)R.", "calls torch.float32"),
    "calling text": (b"X\x01\x00\x00\x00a)R.", "calls str"),
}


@pytest.mark.parametrize("name", CODE)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code(trap, name, legacy):
    code, text = CODE[name]
    begin = pickle.dumps(files.LEGACY_MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    blob = begin + b"\x80\x02" + code if legacy else with_pickle(b"\x80\x02" + code)
    with pytest.raises(UnsupportedError, match=text) as caught:
        fastrnn.load(blob)
    assert "state_dict()" in str(caught.value)


def test_a_pickle_within_a_checkpoint(trap):
    """Beside good weights, in a list in a dict: still nothing of the file is taken."""
    for blob in WITHIN:
        with pytest.raises(UnsupportedError, match=r"asks for 'posix.system'"):
            fastrnn.load(blob)


@pytest.mark.parametrize("new", [True, False])
def test_a_pickled_module_says_how_to_save(new):
    with pytest.raises(UnsupportedError, match=r"torch.nn.modules.rnn.GRU.*torch.save\(model.state_dict\(\), path\)"):
        fastrnn.load(saved(torch_nets.made("gru"), _use_new_zipfile_serialization=new))


def test_a_plain_pickle_and_an_old_tar():
    with pytest.raises(UnsupportedError, match=r"a pickle that torch\.save did not write"):
        files.read_tree(pickle.dumps([1.0]), "m.pt")
    with pytest.raises(ModelFormatError, match="no dict of named tensors"):
        files.read_weights(pickle.dumps({"weight": [1.0]}))
    with pytest.raises(ModelFormatError, match="a damaged tar archive"):
        files.read_tree(b"x" * 257 + b"ustar" + b"\0" * 300, "m.pt")
    with pytest.raises(ModelFormatError, match="no PyTorch file"):
        files.read_tree(b"hello", "m.pt")


def test_an_entry_before_the_beginning_of_the_file(tmp_path):
    blob = bytearray(rewritten({}))
    at = blob.rindex(b"PK\x05\x06") + 16  # where the directory begins
    blob[at : at + 4] = (int.from_bytes(blob[at : at + 4], "little") + 9).to_bytes(4, "little")
    path = tmp_path / "m.pt"
    path.write_bytes(blob)
    with pytest.raises(ModelFormatError, match="damaged"):
        fastrnn.load(path)


def test_zip_bombs():
    """Compressed entries, and entries that claim more bytes than the file has."""
    bomb = rewritten({"data/0": bytes(200_000_000)}, method=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 400_000
    with pytest.raises(ModelFormatError, match="is compressed"):
        fastrnn.load(bomb)
    blob = bytearray(BOTH[0])
    entry = blob.rindex(b"archive/data.pkl") - 46  # its record in the zip's directory
    blob[entry + 20 : entry + 28] = struct.pack("<II", 1 << 31, 1 << 31)
    with pytest.raises(ModelFormatError, match="claims 2147483648 bytes"):
        fastrnn.load(bytes(blob))


def tensor(size, stride, offset=0, key="0", count=120) -> bytes:
    """The pickle {"weight": a tensor of that form over a storage of `count` floats}."""

    def ints(numbers):
        return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t"

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00%sX\x03\x00\x00\x00cpuJ%stQ" % (
        key.encode(),
        struct.pack("<i", count),
    )
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J" + struct.pack("<i", offset) + ints(size)
    return b"\x80\x02}X\x06\x00\x00\x00weight" + rebuilt + ints(stride) + b"\x89NtRs."


FORMS = [
    (tensor((24, 6), (5, 1)), "reaches beyond its storage of 120 elements"),
    (tensor((24, 5), (5, 1), offset=1), "reaches beyond"),
    (tensor((2**30, 2**30), (0, 0)), "reaches beyond"),
    (tensor((1, 1), (2**31 - 1, 2**31 - 1)), None),  # strides of one element mean nothing
    (tensor((-1, 5), (5, 1)), "size"),
    (tensor((24, 5), (-5, 1)), "stride"),
    (tensor((24, 5), (5,)), "stride"),
    (tensor((24, 5), (5, 1), offset=-3), "offset"),
    (tensor((24, 5), (5, 1), key="9"), "data/9 is missing"),
    (tensor((24, 5), (5, 1), count=119), "of 119 elements has 480 bytes"),
    (tensor((24, 5), (5, 1), count=-1), "of -1 elements"),
    (tensor((1,) * 17, (1,) * 17), "size"),
]


@pytest.mark.parametrize(("pickled", "text"), FORMS, ids=range(len(FORMS)))
def test_sizes_are_not_believed(pickled, text):
    blob = with_pickle(pickled)
    if text is None:
        assert files.read_tree(blob, "m.pt")["weight"].shape == (1, 1)
        return
    with pytest.raises(ModelFormatError, match=text):
        files.read_tree(blob, "m.pt")


def test_views_of_one_storage_over_and_over():
    one = tensor((4096, 1), (1, 1), count=4096)
    body = one[3 : one.index(b"s.")]
    many = b"\x80\x02}" + b"".join(body.replace(b"weight", b"w%05d" % k) + b"s" for k in range(300)) + b"."
    with pytest.raises(ModelFormatError, match="views of one storage"):
        files.read_tree(rewritten({"data.pkl": many, "data/0": bytes(4 * 4096)}), "m.pt")


DAMAGED = {
    "no stop": b"\x80\x02}",
    "empty": b"",
    "pops nothing": b"\x80\x020.",
    "no mark": b"\x80\x02t.",
    "mark left": b"\x80\x02(.",
    "two objects": b"\x80\x02NN.",
    "memo": b"\x80\x02h\x05.",
    "huge text": b"\x80\x02X\xff\xff\xff\xffabc.",
    "huge memo index": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "negative length": b"\x80\x02T\xff\xff\xff\xffabc.",
    "huge integer": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "append to a number": b"\x80\x02K\x01K\x02a.",
    "items of a list": b"\x80\x02]K\x01K\x02s.",
    "key of a list": b"\x80\x02}]K\x02s.",
    "odd items": b"\x80\x02}(K\x01u.",
    "bad utf-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "protocol": b"\x80\x09N.",
    "persistent number": b"\x80\x02K\x01Q.",
    "wrong arguments": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "deep key": b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"Ns.",
    "pairs of an ordered dict": b"\x80\x02ccollections\nOrderedDict\n(K\x05tR.",
    "a line without an end": b"\x80\x02c" + b"x" * 10_000,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_pickles(name):
    with pytest.raises(FastRNNError):
        fastrnn.load(with_pickle(DAMAGED[name]))


def test_a_structure_that_holds_itself():
    """Lists and dicts in themselves, and one dict hung into another views of one storage, are walked once each."""
    itself: dict = {"model": {}}
    itself["model"]["again"] = itself
    with pytest.raises(ModelFormatError, match="no dict of named tensors"):
        fastrnn.load(saved(itself))
    level: dict = {}
    for _ in range(30):
        level = {f"k{i}": level for i in range(50)}
    with pytest.raises(ModelFormatError, match="no dict of named tensors"):
        fastrnn.load(saved(level))


@pytest.mark.parametrize("form", [0, 1])
def test_cut_off_and_flipped(form):
    """Every cut is an error; a flipped byte is one, or changes numbers alone."""
    blob, rng = BOTH[form], random.Random(SEED)
    for stop in sorted(rng.sample(range(len(blob)), 60)):
        with pytest.raises(FastRNNError):
            files.read_weights(blob[:stop])
    for _ in range(300):
        flipped = bytearray(blob)
        for _ in range(rng.choice((1, 1, 4))):
            flipped[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
        with contextlib.suppress(FastRNNError):
            files.read_weights(bytes(flipped))


def test_big_endian_files():
    """As a big-endian machine writes them: numbers turned round, and said so."""
    entries = {"byteorder": b"big"}
    with zipfile.ZipFile(io.BytesIO(BOTH[0])) as archive:
        for name in archive.namelist():
            if "/data/" in name:
                entries[name.partition("/")[2]] = np.frombuffer(archive.read(name), "<f4").astype(">f4").tobytes()
    x = torch_nets.feed("gru").numpy()
    assert fastrnn.load(rewritten(entries))(x).tobytes() == fastrnn.load(BOTH[0])(x).tobytes()
    told = BOTH[1].index(b"little_endian") + len("little_endianq\0")
    assert BOTH[1][told : told + 1] == b"\x88"  # True
    legacy = BOTH[1][:told] + b"\x89" + BOTH[1][told + 1 :]  # which is written little-endian by every machine
    assert fastrnn.load(legacy)(x).tobytes() == fastrnn.load(BOTH[0])(x).tobytes()
    with pytest.raises(ModelFormatError, match="byteorder is b'middle'"):
        fastrnn.load(rewritten({"byteorder": b"middle"}))


def test_python_s_own_unpickler_is_never_asked(monkeypatch):
    monkeypatch.setattr(pickle, "Unpickler", None)
    for blob in BOTH:
        assert set(files.read_weights(blob).arrays) == set(GRU)
    assert "import pickle" not in Path(pickles.__file__).read_text(encoding="utf-8")


class TestSafetensors:
    def container(self, header: str, data: bytes = b"") -> bytes:
        return len(header).to_bytes(8, "little") + header.encode() + data

    @pytest.mark.parametrize(
        ("header", "text"),
        [
            ('{"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 8]}}', "not a safetensors file"),
            ('{"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', "not a safetensors file"),
            ('{"w": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 8]}}', "not a safetensors"),
            ('{"w": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}', "F8_E4M3"),
            ('{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', "none of its tensors belongs to a layer"),
            ("{", "not a safetensors file"),
        ],
    )
    def test_headers(self, tmp_path, header, text):
        (tmp_path / "m.safetensors").write_bytes(self.container(header, bytes(8)))
        with pytest.raises(ModelFormatError, match=text):
            fastrnn.load(tmp_path / "m.safetensors")

    def test_cut_off(self, tmp_path):
        (tmp_path / "m.safetensors").write_bytes(b"\x08\x00")
        with pytest.raises(ModelFormatError, match="not a safetensors file"):
            fastrnn.load(tmp_path / "m.safetensors")
