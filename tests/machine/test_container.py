"""The safetensors container: the library reads what fastrnn writes, and the reverse; damaged files are refused."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from fastrnn.machine import container

pytestmark = pytest.mark.any_isa
TYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]


def arrays(seed, types=TYPES):
    rng = np.random.default_rng(seed)
    shapes = [(), (0,), (1,), (3, 5), (2, 0, 4), (7, 1, 2)]
    return {
        f"{code} {i} é": np.array(rng.random(shapes[i % len(shapes)]) * 100).astype(code)
        for i, code in enumerate(rng.permutation(types * 2))
    }


def equal(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(got[name], array)


def blob_of(tensors, metadata=()):
    return b"".join(container.chunks(tensors, dict(metadata)))


@pytest.mark.parametrize("seed", range(5))
def test_the_library_reads_what_we_write(seed, tmp_path):
    want, metadata = arrays(seed), {"a": 'text "quoted" é', "b": ""}
    blob = blob_of(want, metadata)
    equal(safetensors.numpy.load(blob), want)
    (tmp_path / "file").write_bytes(blob)
    with safetensors.safe_open(tmp_path / "file", framework="numpy") as file:
        assert file.metadata() == metadata
    found = container.map_file(tmp_path / "file")
    equal(found.tensors, want)
    assert found.metadata == metadata
    assert all(a.flags.aligned and not a.flags.writeable for a in found.tensors.values() if a.size)


@pytest.mark.parametrize("seed", range(5))
def test_we_read_what_the_library_writes(seed, tmp_path):
    want = arrays(seed)
    safetensors.numpy.save_file(want, tmp_path / "file", metadata={"k": "v"})
    found = container.map_file(tmp_path / "file")
    equal(found.tensors, want)
    assert found.metadata == {"k": "v"}


def test_bits_of_bfloat16():
    bits = np.array([0x3F80, 0xC000], np.uint16)
    blob = with_header(bits.tobytes(), x=entry("BF16", (2,), (0, 4)))
    found = container.parse(blob)
    assert found.types == {"x": "BF16"}
    assert found.tensors["x"].tolist() == bits.tolist()


def with_header(data, **entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), span=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


@pytest.mark.parametrize(
    ("blob", "text"),
    [
        (b"", "longer than the file"),
        (b"\xff" * 8 + b"{}", "longer than the file"),
        ((3).to_bytes(8, "little") + b"{}", "longer than the file"),
        ((2).to_bytes(8, "little") + b"{]", "not valid JSON"),
        ((2).to_bytes(8, "little") + b"\xff\xff", "not valid JSON"),
        ((2).to_bytes(8, "little") + b"[]", "not an object"),
        ((15).to_bytes(8, "little") + b'{"a":1,"a":1}  ', "twice"),
        (with_header(b"", __metadata__={"a": 1}), "not strings"),
        (with_header(b"", __metadata__=[]), "not strings"),
        (with_header(bytes(8), a=1), "expected"),
        (with_header(bytes(8), a={"dtype": "F32"}), "expected"),
        (with_header(bytes(8), a=entry(span=(0,))), "expected"),
        (with_header(bytes(8), a=entry("F8_E4M3", (8,))), "does not read"),
        (with_header(bytes(8), a=entry(["F32"])), "does not read"),
        (with_header(bytes(8), a=entry(shape=(3,))), "does not fit"),
        (with_header(bytes(8), a=entry(shape=(-2,), span=(8, 0))), "does not fit"),
        (with_header(bytes(8), a=entry(shape=(2.0,))), "does not fit"),
        (with_header(bytes(8), a=entry(shape=(True,) * 2, span=(0, 4))), "does not fit"),
        (with_header(bytes(8), a=entry(shape=(1 << 61, 8), span=(0, 8))), "does not fit"),
        (with_header(bytes(8), a=entry(shape=(1,) * 40 + (2,))), "does not fit"),
        (with_header(bytes(4), a=entry()), "does not fit"),
        (with_header(bytes(12), a=entry()), "12 bytes of tensors, its header describes 8"),
        (with_header(bytes(12), a=entry(span=(4, 12))), "gap"),
        (with_header(bytes(8), a=entry(), b=entry()), "overlap"),
    ],
)
def test_damaged_files(blob, text, tmp_path):
    with pytest.raises(container.ContainerError, match=text):
        container.parse(blob)
    (tmp_path / "file").write_bytes(blob)
    with pytest.raises(container.ContainerError, match=text if blob else "empty"):
        container.map_file(tmp_path / "file")


@given(st.integers(0, 3), st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_never_crashes(seed, at, value):
    blob = bytearray(blob_of(arrays(seed)))
    blob[at % len(blob)] = value
    try:
        found = container.parse(bytes(blob))
    except container.ContainerError:
        return
    assert all(np.asarray(a).tobytes() is not None for a in found.tensors.values())


def test_types_that_the_format_lacks():
    with pytest.raises(container.ContainerError, match="complex64"):
        blob_of({"x": np.zeros(2, np.complex64)})


def test_other_byte_orders_are_swapped():
    want = np.arange(4, dtype=">f4")
    assert container.parse(blob_of({"x": want})).tensors["x"].tolist() == want.tolist()
