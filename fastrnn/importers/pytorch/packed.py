"""pack_padded_sequence and pad_packed_sequence: rows of different lengths, which ONNX gives a recurrent layer as
sequence_lens. Registered as in `functions.py`.

A row's steps after its last are 0, as torch pads them. torch also cuts the result to the longest row; the model keeps
all steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .emit import Emitter, Packed, Size, Unknown, V
from .functions import does


@does("pack_padded_sequence")
def _pack(b: Emitter, out, input, lengths, batch_first=False, enforce_sorted=True) -> Packed:
    if not isinstance(input, V) or not isinstance(lengths, V):
        raise Unknown("a packed sequence whose lengths are not an input")
    b.lengths[lengths.name] = input.value.shape[1 if batch_first else 0]
    return Packed(input, lengths, batch_first, out)


@does("pad_packed_sequence")
def _pad(b: Emitter, out, sequence, batch_first=False, padding_value=0.0, total_length=None) -> tuple:
    if not isinstance(sequence, Packed) or padding_value != 0:
        raise Unknown("pad_packed_sequence with a padding other than 0")
    steps = sequence.steps
    if total_length is not None:
        axis = 1 if sequence.batch_first else 0
        if not isinstance(total_length, Size) or total_length.value != steps.value.shape[axis]:
            raise Unknown("pad_packed_sequence to a total_length other than the size of its input")
    name = steps.name
    if batch_first != sequence.batch_first:
        name = b.transpose(name, 1, 0, *range(2, steps.value.ndim))
    return V(name, out[0]), V(sequence.lengths.name, out[1])


def lengths_among(b: Emitter, inputs: Sequence[str]) -> dict[str, int]:
    """Those inputs that are lengths, or are cast to lengths."""
    casts = {node.output[0]: node.input[0] for node in b.nodes if node.op_type == "Cast"}
    found = {}
    for name, steps in b.lengths.items():
        while name in casts:
            name = casts[name]
        if name in inputs:
            found[name] = steps
    return found


def padded(sequence: Packed) -> torch.Tensor:
    """A packed sequence's values on the example, in the layout and of the length of its input."""
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(
        sequence.value, sequence.batch_first, total_length=sequence.steps.value.shape[1 if sequence.batch_first else 0]
    )
    return y
