"""Exported PyTorch programs at lengths and batches other than the exported ones: a right answer or a FastRNNError.

tests/data/programs.tar.xz holds the files and digests of their answers; tools/make_program_fixtures.py makes it from
the programs of tests/programs. tests/data/programs.json says what each file is expected to give:

    right       at every size
    refused     at every size but its own, where it is right
    never       refused at its own size too
    T,B T,B     right but at these sizes, where it is refused

An answer that is better than expected passes; write the list anew with `--expectations` and review its diff.
"""

import functools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from programs.digests import alike, digest
from programs.inputs import draw_inputs, parse_inputs

import fastrnn

DATA = Path(__file__).resolve().parent / "data"


# Programs of which no file says what another size would need; each is right at its own size.
UNKNOWABLE = {
    "decay_by_the_length": "0.9 ** 12 is a number like any other",
    "one_row_divided_by_the_batch": "a batch of one: the division is by 1",
    "divided_by_the_batch": "2 is in every file",
    "padded_to_the_stride": "12 steps need no pad, and the file has none",
    "square_of_steps": "16 steps are the square of 4: the exporter leaves the slice out",
}
# Recurrences in parallel form, which overflow in float32 as they are written: if their length is free,
# they are taken step by step; else a note says so.
OVERFLOWS = {"min_gru_by_cumsum_at_150"}


@functools.cache
def archive() -> dict[str, bytes]:
    with tarfile.open(DATA / "programs.tar.xz") as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}


PROGRAMS = json.loads(archive()["programs.json"])
FILES = [tuple(f.removesuffix(".onnx").split(".", 1)) for f in archive() if f.endswith(".onnx")]


@functools.cache
def expectations() -> dict[str, dict[str, str]]:
    return json.loads((DATA / "programs.json").read_text())


@functools.cache
def verdicts(name: str, kind: str) -> dict[str, str]:
    """size -> right, refused or wrong, the file's own size first. What is not a FastRNNError is raised."""
    sizes = PROGRAMS[name]["answers"]
    try:
        model = fastrnn.load(archive()[f"{name}.{kind}.onnx"], threads=1)
    except fastrnn.FastRNNError:
        return dict.fromkeys(sizes, "refused")
    return {size: verdict(name, kind, model, size) for size in sizes}


def verdict(name: str, kind: str, model, size: str) -> str:
    program = PROGRAMS[name]
    arrays = draw_inputs(parse_inputs(program["inputs"]), name, *map(int, size.split(",")))
    try:
        got = [digest(y) for y in model.run(**{i.name: arrays[i.name] for i in model.inputs})]
    except fastrnn.FastRNNError:
        return "refused"
    wanted = [*program["answers"][size], *program["others"].get(kind, {}).get(size, [])]
    return "right" if any(alike(got, want, program["tolerance"]) for want in wanted) else "wrong"


def summary(found: dict[str, str]) -> str:
    """The verdicts of a file as one word, or the sizes at which it is refused."""
    own, *others = found.values()
    if own != "right":
        return "never"
    if set(others) <= {"right"}:
        return "right"
    return "refused" if set(others) == {"refused"} else " ".join(s for s, v in found.items() if v == "refused")


@pytest.mark.parametrize("name", PROGRAMS)
def test_right_or_refused(name):
    """Nothing is wrong, and what is expected to be right is."""
    for kind in (k for n, k in FILES if n == name):
        found, expected = verdicts(name, kind), expectations()[name][kind]
        own = next(iter(found))
        if name in OVERFLOWS:
            model = fastrnn.load(archive()[f"{name}.{kind}.onnx"])
            taken = any("in parallel form step by step" in note for note in model.notes)
            assert taken != any("running sum" in note for note in model.notes)
            assert taken == (
                model.graph.values["x"].dims[1] != 150
            )  # a file that keeps its length keeps its arithmetic
            arrays = draw_inputs(parse_inputs(PROGRAMS[name]["inputs"]), name, 150, 1)
            assert all(np.isfinite(y).all() == taken for y in model.run(**arrays))
            continue
        assert found[own] != "wrong", kind
        assert name in UNKNOWABLE or "wrong" not in found.values(), kind
        for size, got in found.items() if name not in UNKNOWABLE else ():
            may = {"right": (), "refused": [s for s in found if s != own], "never": found}.get(
                expected, expected.split()
            )
            assert got == "right" or size in may, f"{kind} at T,B = {size}"


@pytest.mark.any_isa
def test_files_are_right_at_their_own_sizes():
    """At least 95 %, the rest is refused; and at least 150 programs."""
    count = [next(iter(verdicts(*file).values())) for file in FILES]
    assert count.count("right") >= 0.95 * len(count)
    assert len(PROGRAMS) >= 150
    assert {n: set(k) for n, k in expectations().items()} == {n: {k for m, k in FILES if m == n} for n in PROGRAMS}
