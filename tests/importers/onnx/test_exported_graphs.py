"""Whole recurrent models as exporters write them: right at the length they were exported at and at two others.

tests/data/graphs.tar.xz holds the files, their manifest and what the framework answers in float64;
tools/make_graph_fixtures.py says how it is made. tests/importers/onnx/test_exported.py has the single layers.
"""

import functools
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import fastrnn

ARCHIVE = Path(__file__).resolve().parents[2] / "data" / "graphs.tar.xz"
# float64 answers rounded once, against float32 arithmetic over at most some hundred terms: as in test_exported.py, with
# room for convolutions and attention.
TOLERANCE = 3e-6


@functools.lru_cache(maxsize=1)
def files() -> dict[str, bytes]:
    with tarfile.open(ARCHIVE) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive.getmembers()}


MANIFEST = json.loads(files()["manifest.json"])
NAMES = {e["golden"].removesuffix(".npz") for e in MANIFEST}


def each(entries):
    return pytest.mark.parametrize("entry", entries, ids=lambda e: Path(e["file"]).stem)


@functools.lru_cache(maxsize=4)
def model_of(file):
    return fastrnn.load(files()[file])


@functools.lru_cache(maxsize=4)
def golden_of(file):
    with np.load(io.BytesIO(files()[file])) as archive:
        return dict(archive)


def feeds_of(entry, k):
    return {n: golden_of(entry["golden"])[f"r{k}.{n}"] for n in entry["inputs"]}


def shown(dims):
    return [d if isinstance(d, int) else str(d) for d in dims]


@pytest.mark.any_isa
def test_the_archive_holds_what_its_manifest_says():
    assert set(files()) == {"manifest.json"} | {e[k] for e in MANIFEST for k in ("file", "golden")}
    assert len(NAMES) >= 24
    for content in files().values():
        assert b"site-packages" not in content
        assert b'File "' not in content


@each(MANIFEST)
@pytest.mark.any_isa
def test_batch_and_time_are_free(entry):
    model = model_of(entry["file"])
    held = entry.get("held", {})  # what a file holds fast, and rightly so
    # The memory that a decoder attends to has a length of its own: no step of a stream moves along it.
    length = "size" if entry["file"].startswith("decoder_step") else "time"
    for info in model.inputs:
        want = [length if d == "time" else d for d in entry["inputs"][info.name]]
        assert shown(info.dims) == held.get(info.name, want), info.name
    assert dict(model.graph.states) == entry["states"]


@each(MANIFEST)
def test_equals_framework(entry):
    """At the exported length and batch, at another, and at a third."""
    model = model_of(entry["file"])
    for k in range(3):
        feeds = feeds_of(entry, k)
        if "held" in entry and any(
            isinstance(d, int) and d != n
            for info in model.inputs
            for d, n in zip(info.dims, feeds[info.name].shape, strict=True)
        ):
            with pytest.raises(fastrnn.ShapeError, match="must be"):
                model.run(**feeds)
            continue
        for name, got in zip(entry["outputs"], model.run(**feeds), strict=True):
            expected = golden_of(entry["golden"])[f"r{k}.{name}"]
            scale = max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * scale, err_msg=f"r{k} {name}")


STREAMED = [e for e in MANIFEST if e["streamable"]]


def as_stream(entry, name, array, row):
    """A row as streams take and give it: [time, features...], or [features...] without time."""
    axes = [a for a in {**entry["inputs"], **entry["outputs"]}[name] if a != "batch"]
    array = np.take(array, row, {**entry["inputs"], **entry["outputs"]}[name].index("batch"))
    where = [i for i, a in enumerate(axes) if "time" in str(a)]
    return np.moveaxis(array, where[0], 0) if where else array


@each(STREAMED)
def test_chunks_and_flush_have_the_bits_of_the_run(entry):
    model, feeds = model_of(entry["file"]), feeds_of(entry, 1)
    feeds = {n: np.zeros_like(a) if n in entry["states"] else a for n, a in feeds.items()}
    whole = dict(zip(entry["outputs"], model.run(**feeds), strict=True))
    ins = [n for n in entry["inputs"] if n not in entry["states"]]
    outs = [n for n in entry["outputs"] if n not in entry["states"].values()]
    for row, cuts in enumerate(([5, 0, 1, 6], [1] * 12, [12])):
        stream, start, parts = model.stream(), 0, []
        for count in cuts:
            chunk = []
            for name in ins:
                x = as_stream(entry, name, feeds[name], row)
                timed = "time" in entry["inputs"][name]
                chunk.append(x[start : start + count] if timed else x)
            answer = stream.push(chunk[0] if len(chunk) == 1 else tuple(chunk))
            parts.append(answer if isinstance(answer, tuple) else (answer,))
            start += count
        if stream.delay:
            rest = stream.flush()
            parts.append(rest if isinstance(rest, tuple) else (rest,))
        for i, name in enumerate(outs):
            expected = as_stream(entry, name, whole[name], row)
            timed = any("time" in str(a) for a in entry["outputs"][name])
            got = np.concatenate([p[i] for p in parts]) if timed else parts[-1][i]
            assert got.shape == expected.shape
            assert got.tobytes() == expected.tobytes(), f"{name}, row {row}: {np.abs(got - expected).max()}"
