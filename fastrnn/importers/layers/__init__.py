"""Named weights and a list of layers -> Graph, for files that hold tensors but no architecture.

    layers=["embedding:emb", "lstm:rnn", "linear:out", "softmax"]

An entry is `word`, or `word:prefix` if the layer has tensors. `prefix` is how their names begin, as in the module or
Keras layer that they come from; it is left out if the file holds only that layer. `(option=value, ...)` adds what the
tensors can't show. `WORDS` lists the words and their options. The number of layers, directions, projection, channels
and groups are read from the tensors. Values between layers are [batch, time, features]; after `last`, `final`, `mean`
or `max` they are [batch, features].

A file whose tensors all belong to one recurrent stack needs no list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...errors import FastRNNError, ModelFormatError
from ...graph import Graph
from ..shared import stacks
from ..shared.builder import GraphWriter
from ..shared.weights import NamedWeights, Tensors
from .entries import Entry, split_list
from .words import WORDS, Stage, apply

_ENTRY = re.compile(r"\s*(?P<word>[a-z_0-9]+)\s*(?::(?P<prefix>[^()]*))?(?:\((?P<options>.*)\))?\s*", re.S)
MAX_LAYERS = 1000


def build(weights: NamedWeights, layers: Sequence[str] | str | None = None, name: str = "layers") -> Graph:
    """The graph of a list of layers with the weights of a file.

    Parameters
    ----------
    weights : named arrays. layers : the list (see above), or the list as one string; None: inferred if all tensors
        belong to one recurrent stack
    name : of the graph

    Returns
    -------
    Graph, validated: input `x` [batch, time, features], or `ids` int64 [batch, time] if it begins with an embedding;
    output `y`. float64 and float16 weights compute in float32, and `notes` say so.

    Raises
    ------
    ModelFormatError : a list is needed but missing (the text lists what the file holds); an unknown word or option; a
    tensor that is missing, unused, or not of the shape that the list implies.
    """
    tensors, guessed = Tensors(weights), []
    if layers is None:
        layers = [stacks.alone(tensors)]
        if layers[0].partition(":")[0] == "rnn":
            other = layers[0].replace("rnn", "rnn_relu", 1)
            guessed = [
                f"an rnn's tensors don't show whether it uses tanh or relu: taken as tanh; for relu: layers=[{other!r}]"
            ]
    entries = parse(layers, weights.where)
    writer = GraphWriter(name)
    stage = Stage(writer, tensors)
    for k, entry in enumerate(entries):
        where = f"{weights.where}: layers[{k}] ({entry.text!r})"
        stage.next_word = entries[k + 1].word if k + 1 < len(entries) else ""
        try:
            apply(stage, entry)
        except FastRNNError as error:
            raise ModelFormatError(f"{where}: {error}") from None
    writer.notes += [*weights.notes, *guessed, *_told(weights, entries, tensors)]
    return writer.done(writer.rename(stage.x, "y"))


def _told(weights: NamedWeights, entries: list[Entry], tensors: Tensors) -> list[str]:
    """Notes on how the file was read. Raises ModelFormatError if tensors are left over."""
    left = tensors.left()
    text = ", ".join(e.text for e in entries)
    lines = [f"layers: {text}", f"weights are {weights.precision()}"]
    if weights.precision() not in ("float32", "no floating point"):
        lines[-1] += " and compute in float32"
    if left and not weights.parts:
        shown = ", ".join(left[:12]) + (f" and {len(left) - 12} more" if len(left) > 12 else "")
        raise ModelFormatError(
            f"{weights.where}: no layer uses {shown}; add their layers to the list ({text}), or leave them out by "
            "'skip:prefix'"
        )
    owners = sorted({name.partition("/")[0] for name in left})
    used = sorted(set(owners) & tensors.used_layers())
    if used:
        raise ModelFormatError(
            f"{weights.where}: no layer uses {', '.join(n for n in left if n.split('/')[0] in used)}"
        )
    return [*lines, f"left out: {', '.join(owners)}"] if owners else lines


def parse(layers, where: str) -> list[Entry]:
    """The entries of a list of layers. Raises ModelFormatError for anything else; options are not checked."""
    if isinstance(layers, str):
        layers = split_list(layers)
    if not isinstance(layers, list | tuple) or not layers or not all(isinstance(t, str) for t in layers):
        raise ModelFormatError(f'{where}: layers must be a list such as ["lstm:rnn", "linear:out"], got {layers!r:.80}')
    if len(layers) > MAX_LAYERS:
        raise ModelFormatError(f"{where}: {len(layers)} layers; at most {MAX_LAYERS}")
    entries = []
    for k, text in enumerate(layers):
        match = _ENTRY.fullmatch(text)
        if match is None or match["word"] not in WORDS:
            known = " ".join(sorted(WORDS))
            raise ModelFormatError(f"{where}: layers[{k}] is {text!r:.80}; it begins with one of: {known}")
        options = {}
        for part in split_list(match["options"] or ""):
            name, sign, value = part.partition("=")
            if not sign or name in options:
                raise ModelFormatError(f"{where}: layers[{k}] ({text!r}): an option is name=value, got {part!r}")
            options[name.strip()] = value.strip()
        prefix = match["prefix"]
        entries.append(Entry(text.strip(), match["word"], prefix.strip() if prefix is not None else None, options))
    return entries
