"""Model files that are measured, published ones and the committed example: their inputs, states and sizes."""

from __future__ import annotations

from pathlib import Path

from ..records import dataclass


@dataclass(frozen=True)
class PublishedModel:
    """A model file and how one frame of it is run.

    shape : of one call's input at batch 1.
    state_batch_axis : the axis of the states that counts rows; None if the file has a single row.

    states : input -> output that the caller feeds back; bind : inputs that stay constant.
    """

    file: str
    input: str
    output: str
    shape: tuple[int, ...]
    states: tuple[tuple[str, str, tuple[int, ...]], ...]
    state_batch_axis: int | None = None
    bind: tuple[tuple[str, int], ...] = ()


PUBLISHED = {
    "silero_vad_v5": PublishedModel(
        "silero_vad_v5.onnx",
        "input",
        "output",
        (1, 576),
        (("state", "stateN", (2, 1, 128)),),
        state_batch_axis=1,
        bind=(("sr", 16000),),
    ),
    "dtln_1": PublishedModel(
        "dtln_1.onnx",
        "input_2",
        "activation_2",
        (1, 1, 257),
        (("input_3", "tf_op_layer_stack_2", (1, 2, 128, 2)),),
    ),
    "dtln_2": PublishedModel(
        "dtln_2.onnx",
        "input_4",
        "conv1d_3",
        (1, 1, 512),
        (("input_5", "tf_op_layer_stack_5", (1, 2, 128, 2)),),
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
    ),
}
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
