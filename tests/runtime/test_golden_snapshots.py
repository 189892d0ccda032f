"""Snapshots that earlier releases wrote are readable for ever: tests/data/snapshots, by tools/make_golden_snapshots.py.

A failure here means that live sessions of a service would be refused after an update, or go on wrongly. Don't write the
files again: make the code read them.
"""

import importlib.util
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn.runtime import snapshots

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "data" / "snapshots"
NAMES = {folder: sorted(p.stem for p in (FOLDER / folder).glob("*.npz")) for folder in ("format1", "format2")}
CASES = [(folder, name) for folder, names in NAMES.items() for name in names]


def tool():
    spec = importlib.util.spec_from_file_location("golden", ROOT / "tools" / "make_golden_snapshots.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = tool()
SOURCES = TOOL.models()


def close(found, wanted):
    """Equal but for the rounding of another instruction set."""
    return np.allclose(TOOL.first(found), wanted, rtol=1e-4, atol=1e-5)


def rows_of(blob):
    """The states of a snapshot, bit for bit: key -> bytes."""
    taken = snapshots.read(blob)
    return {s.key: np.ascontiguousarray(taken.rows[:, s.at : s.at + s.floats]).tobytes() for s in taken.states}


@pytest.mark.parametrize("source", ["fastrnn file", "source"])
@pytest.mark.parametrize(("folder", "name"), CASES)
def test_they_go_on(folder, name, source):
    at, arrays = FOLDER / folder, dict(np.load(FOLDER / folder / f"{name}.npz"))
    options, migrate = SOURCES[name][1], {"migrate": True} if folder == "format1" else {}
    model = fastrnn.load(at / f"{name}.fastrnn") if source == "fastrnn file" else SOURCES[name][0]
    with warnings.catch_warnings():
        if folder == "format1":
            warnings.simplefilter("ignore", fastrnn.FastRNNWarning)
        stream, rows, pool = model.stream(**options), model.stream(3, **options), model.pool(8, **options)
        stream.restore(at / f"{name}.stream", **migrate)
        rows.restore(at / f"{name}.rows", **migrate)
        slots = list(pool.restore_all(at / f"{name}.pool", **migrate).values())
        lone = model.stream(**options)
        lone.restore(pool.snapshot(slots[2]))
    assert (stream.steps_done, rows.steps_done) == (7, 7)
    assert [pool.steps_done(slot) for slot in slots] == [3, 4, 5, 6]
    if folder == "format2":
        assert rows_of(stream.snapshot()) == rows_of(at / f"{name}.stream")
        assert rows_of(rows.snapshot()) == rows_of(at / f"{name}.rows")
    x = arrays["x"]
    assert close(stream.push(x), arrays["y_stream"])
    assert close(rows.push(np.stack([x] * 3)), arrays["y_rows"])
    for slot, want in zip(slots, arrays["y_pool"], strict=True):
        (got,) = pool.push([slot], [x])
        assert close(got, want)
    assert TOOL.first(lone.push(x)).tobytes() == TOOL.first(pool_again(model, options, at, name, migrate, x)).tobytes()


def pool_again(model, options, at, name, migrate, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastrnn.FastRNNWarning)
        pool = model.pool(8, **options)
        slots = list(pool.restore_all(at / f"{name}.pool", **migrate).values())
    return pool.push([slots[2]], [x])[0]


def test_there_are_files():
    assert NAMES["format1"] == NAMES["format2"] == sorted(SOURCES)


@pytest.mark.parametrize("name", NAMES["format1"])
def test_format_1_is_refused_unless_it_is_asked_for(name):
    model = fastrnn.load(FOLDER / "format1" / f"{name}.fastrnn")
    stream = model.stream(**SOURCES[name][1])
    with pytest.raises(fastrnn.StateError, match=r"format 1, which names files, not models: restore.*migrate=True"):
        stream.restore(FOLDER / "format1" / f"{name}.stream")
    with pytest.raises(fastrnn.StateError, match="migrate=True"):
        model.pool(8, **SOURCES[name][1]).restore_all(FOLDER / "format1" / f"{name}.pool")


def test_format_1_of_the_very_file_needs_no_warning(recwarn):
    model = fastrnn.load(FOLDER / "format1" / "gru.fastrnn")
    model.stream().restore(FOLDER / "format1" / "gru.stream", migrate=True)
    assert not recwarn.list
    other = fastrnn.load(FOLDER / "format1" / "gru.fastrnn")
    (cell,) = [n for n in other.graph.nodes if n.op == "cell"]
    weights = {**other.graph.constants, cell.inputs[1]: other.graph.constants[cell.inputs[1]] + np.float32(1)}
    stream = fastrnn.model.Model(other.graph.replace(constants=weights)).stream()
    with pytest.warns(fastrnn.FastRNNWarning, match="format 1, which does not say whether the weights are the same"):
        stream.restore(FOLDER / "format1" / "gru.stream", migrate=True)


def test_what_the_files_say():
    """The texts of a snapshot, as documented: what other programs may read."""
    blob = (FOLDER / "format2" / "gru.stream").read_bytes()
    metadata = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
    assert set(metadata) == {"format", "models", "name", "sizes", "states", "layers", "bound", "checksum"}
    assert metadata["format"] == "fastrnn snapshot 2"
    (state,) = json.loads(metadata["states"])
    assert state[2:] == ["gru h", state[3], "float32", [6], 0, 6]
    assert json.loads(metadata["models"])[0] == SOURCES["gru"][0].fingerprint
