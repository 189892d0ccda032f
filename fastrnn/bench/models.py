"""What the engines are given: model files and inputs of a case, and the answer that all of them must give.

Each engine gets the model in the form that suits it best; the weights are the same in all of them. A step is a file
with the states as inputs and outputs (`stepped.onnx`) for engines that keep none, and a file without them
(`sequence.onnx`, any batch and length) for fastrnn, whose streams keep them.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

from . import modern, quantized
from .cases import Case
from .cells import STATES, cell_answer, cell_weights, step_shape, write_cell, write_several
from .published import recording

ROW_SHIFT = 7  # calls of a recording between one row of a batch and the next


def prepare(case: Case, folder: Path) -> dict:
    """Write the files of a case into `folder` and return the job that its workers get.

    The job: what to load (`file` with static shapes and states as inputs; `free_file` and `weights` for a cell),
    `input`, `output`, `shape` of one call's input, `step_shape` of what a stream takes, `states` as (input, output,
    shape), `bind`, and paths of `x` (float32 [calls, *shape]) and, for a cell or a recorded model, `expected` (as many
    numbers as all calls answer).
    """
    seed = zlib.crc32(case.id.encode())
    if case.quantized:
        job = quantized.job(case, folder, seed)
    else:
        job = _model_job(case, folder, seed) if case.model is not None else _cell_job(case, folder, seed)
    (folder / "job.json").write_text(json.dumps(job))
    return job


def _cell_job(case: Case, folder: Path, seed: int) -> dict:
    weights = cell_weights(case.kind, case.I, case.H, seed)
    np.savez(folder / "weights.npz", **weights)
    steps = case.T if case.sequence else case.check_steps
    x = np.random.default_rng(seed + 1).standard_normal((steps, case.batch, case.I)).astype(np.float32)
    expected = cell_answer(case.kind, weights, x)
    if case.inputs > 1:
        expected = np.concatenate([expected, np.maximum(expected, 0)], axis=-1)
    shape = (case.T, case.batch, case.I) if case.sequence else (1, case.batch, case.I)
    np.save(folder / "x.npy", x.reshape(-1, *shape))
    np.save(folder / "expected.npy", expected)
    if case.inputs > 1:
        write_several(folder / "free.onnx", case, weights)
    else:
        write_cell(folder / "free.onnx", case.kind, weights, None, None, stepped=False)
    fixed = "sequence.onnx" if case.sequence else "stepped.onnx"
    write_cell(folder / fixed, case.kind, weights, case.T, case.batch, stepped=not case.sequence)
    lone = fixed
    if case.slots:  # for an engine that has one session per stream
        lone = "lone.onnx"
        write_cell(folder / lone, case.kind, weights, 1, 1, stepped=True)
    states = [] if case.sequence else [(s, f"Y_{s}", (1, case.batch, case.H)) for s in STATES[case.kind]]
    return {
        **case.as_dict(),
        "file": str(folder / fixed),
        "free_file": str(folder / "free.onnx"),
        "lone_file": str(folder / lone),
        "weights": str(folder / "weights.npz"),
        "input": "X",
        "output": "Y" if case.sequence else "Y_h",
        "shape": shape,
        "step_shape": step_shape(case),
        "states": states,
        "bind": [],
        "x": str(folder / "x.npy"),
        "expected": str(folder / "expected.npy"),
    }


def _model_job(case: Case, folder: Path, seed: int) -> dict:
    model = case.model
    assert model is not None
    source = Path(case.folder or folder) / model.file
    if not case.folder:
        modern.write(source.stem, case.T, source)
    shape = (case.batch, *model.shape[1:]) if case.batch > 1 else model.shape
    known = recording(model, Path(case.folder)) if case.recorded else None
    expected = {}
    if known is None:
        calls = 1 if case.sequence else case.check_steps
        # A tenth of full scale: what speech looks like, and far from saturating anything.
        x = 0.1 * np.random.default_rng(seed).standard_normal((calls, *shape))
    else:
        # Rows are the same recording, each begun a few calls later.
        rows = [np.roll(known[0], -ROW_SHIFT * row, axis=0) for row in range(case.batch)]
        x = np.stack(rows, axis=1).reshape(-1, *shape)
        if case.batch == 1:
            np.save(folder / "expected.npy", known[1])
            expected = {"expected": str(folder / "expected.npy"), "judge": "published answer"}
    np.save(folder / "x.npy", x.astype(np.float32))
    states = []
    for name, output, dims in model.states:
        axis = model.state_batch_axis
        states.append((name, output, dims if axis is None else (*dims[:axis], case.batch, *dims[axis + 1 :])))
    return {
        **case.as_dict(),
        "file": str(without_stated_shapes(source, folder) if case.sequence else source),
        "lone_file": str(source),
        "input": model.input,
        "output": model.output,
        "shape": shape,
        "step_shape": shape,
        "states": states,
        "bind": model.bind,
        "x": str(folder / "x.npy"),
        **expected,
    }


def without_stated_shapes(source: Path, folder: Path) -> Path:
    """A copy of the file that states no shapes but its inputs': exporters write the example's length into the others,
    and onnxruntime then refuses to write a buffer of the true length."""
    import onnx

    model = onnx.load(source)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    onnx.save(model, folder / source.name)
    return folder / source.name
