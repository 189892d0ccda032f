"""Model files that are measured, published ones and the committed example: their inputs, states and sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..records import dataclass


@dataclass(frozen=True)
class PublishedModel:
    """A model file and how one frame of it is run.

    shape : of one call's input at batch 1.
    state_batch_axis : the axis of the states that counts rows; None if the file has a single row.

    recorded : of the .npz file beside it, which holds real audio and what the authors' runtime answered: the names of
    its input and output, and the axis that counts calls.
    states : input -> output that the caller feeds back; bind : inputs that stay constant.
    """

    file: str
    input: str
    output: str
    shape: tuple[int, ...]
    states: tuple[tuple[str, str, tuple[int, ...]], ...]
    state_batch_axis: int | None = None
    bind: tuple[tuple[str, int], ...] = ()
    recorded: tuple[str, str, int] | None = None


PUBLISHED = {
    "silero_vad_v5": PublishedModel(
        "silero_vad_v5.onnx",
        "input",
        "output",
        (1, 576),
        (("state", "stateN", (2, 1, 128)),),
        state_batch_axis=1,
        bind=(("sr", 16000),),
        recorded=("input", "output", 0),
    ),
    "dtln_1": PublishedModel(
        "dtln_1.onnx",
        "input_2",
        "activation_2",
        (1, 1, 257),
        (("input_3", "tf_op_layer_stack_2", (1, 2, 128, 2)),),
        recorded=("input_2", "out", 1),
    ),
    "dtln_2": PublishedModel(
        "dtln_2.onnx",
        "input_4",
        "conv1d_3",
        (1, 1, 512),
        (("input_5", "tf_op_layer_stack_5", (1, 2, 128, 2)),),
        recorded=("input_4", "out", 1),
    ),
    "gtcrn": PublishedModel(
        "gtcrn_simple.onnx",
        "mix",
        "enh",
        (1, 257, 1, 2),
        (
            ("conv_cache", "conv_cache_out", (2, 1, 16, 16, 33)),
            ("tra_cache", "tra_cache_out", (2, 3, 1, 1, 16)),
            ("inter_cache", "inter_cache_out", (2, 1, 33, 16)),
        ),
        recorded=("mix", "enh", 2),
    ),
}


def recording(model: PublishedModel, folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """What the model was given and what it answered, [calls, numbers of a call] each, or None without such a file."""
    path = (folder / model.file).with_suffix(".npz")
    if model.recorded is None or not path.is_file():
        return None
    given, answered, axis = model.recorded
    with np.load(path) as arrays:
        pair = [np.moveaxis(arrays[name], axis, 0) for name in (given, answered)]
    return pair[0].reshape(len(pair[0]), -1), pair[1].reshape(len(pair[1]), -1)


EXAMPLE_FILE = "tone_words.onnx"


def example_model(path: Path, steps: int) -> PublishedModel:
    """How the example's file is run whole: its first input at batch 1 and `steps` steps, if they are free."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    first = next(v for v in graph.input if v.name not in weights)
    free = iter((1, steps))
    shape = tuple(d.dim_value or next(free) for d in first.type.tensor_type.shape.dim)
    return PublishedModel(path.name, first.name, graph.output[0].name, shape, ())
