"""Exported PyTorch programs at lengths and batches other than the exported ones: a right answer or a FastRNNError.

tests/data/programs.tar.xz holds the files and digests of the answers; tools/make_program_fixtures.py makes it from tests/programs.
EXPECTATIONS, tests/data/programs.json, says what each file gives: `right` (at every size), `refused` (right at its own size, refused at all others),
`never` (refused everywhere), or the sizes at which it is refused, or, for files that no reader can tell from another program's, `twin`.
An answer that is better than its expectation passes: write the list anew with `--expectations`.
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
EXPECTATIONS = json.loads((DATA / "programs.json").read_text()) if (DATA / "programs.json").exists() else {}


@functools.lru_cache(maxsize=1)
def archive() -> dict[str, bytes]:
    with tarfile.open(DATA / "programs.tar.xz") as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}


PROGRAMS = json.loads(archive()["programs.json"])
FILES = [tuple(f.removesuffix(".onnx").split(".", 1)) for f in archive() if f.endswith(".onnx")]


@functools.lru_cache(maxsize=None)
def verdicts(name: str, kind: str) -> dict[str, str]:
    """size -> right, refused or wrong; an error that is no FastRNNError is raised."""
    program = PROGRAMS[name]
    sizes = program["answers"]
    try:
        model = fastrnn.load(archive()[f"{name}.{kind}.onnx"], threads=1)
    except fastrnn.FastRNNError:
        return dict.fromkeys(sizes, "refused")
    return {size: verdict(program, kind, model, name, size) for size in sizes}


def verdict(program, kind, model, name, size) -> str:
    T, B = map(int, size.split(","))
    arrays = draw_inputs(parse_inputs(program["inputs"]), name, T, B)
    try:
        outputs = model.run(**{i.name: arrays[i.name] for i in model.inputs})
    except fastrnn.FastRNNError:
        return "refused"
    got = [digest(np.asarray(y)) for y in outputs]
    wanted = [
        *program["answers"][size],
        *([program["meant"][kind][size]] if size in program["meant"].get(kind, {}) else []),
    ]
    return "right" if any(alike(got, want, program["tolerance"]) for want in wanted) else "wrong"


def own(name: str) -> str:
    return PROGRAMS[name]["own"]
