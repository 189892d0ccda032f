"""Resolves how the config of a Functional model refers to tensors: by layer, call and position."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import ModelFormatError
from .calls import MaskedTensor
from .config import MODELS, Layer


def output_names(model: Layer) -> list[tuple[str, int]]:
    """(layer name, number of earlier outputs of that layer) per output."""
    if model.kind == "Sequential":
        last = model.layers[-1] if model.layers else model
        if last.kind in MODELS:
            return output_names(last)
        return [(last.name, 0)]
    counts: dict[str, int] = {}
    names = []
    for name, _, _ in references(model.config.get("output_layers")):
        names.append((name, counts.get(name, 0)))
        counts[name] = counts.get(name, 0) + 1
    return names


def references(data) -> list[tuple[str, int, int]]:
    """All [layer, node, tensor] in a structure, in order (dicts by sorted key, as in Keras)."""
    found: list[tuple[str, int, int]] = []
    stack = [data]
    while stack:
        item = stack.pop()
        ref = _reference(item)
        if ref is not None:
            found.append(ref)
            if isinstance(item, list) and len(item) == 4:
                stack.append(item[3])
        elif isinstance(item, dict):
            stack += [item[key] for key in sorted(item, key=str, reverse=True)]
        elif isinstance(item, list | tuple):
            stack += list(item)[::-1]
    return found


def _reference(item) -> tuple[str, int, int] | None:
    """(layer, node, tensor) if an item is a reference, in the form of Keras 3 or earlier; else None."""
    if isinstance(item, dict) and item.get("class_name") == "__keras_tensor__":
        config = item.get("config")
        item = config.get("keras_history") if isinstance(config, dict) else None
    if isinstance(item, list) and len(item) in (3, 4) and isinstance(item[0], str) and item[0] != "_CONSTANT_VALUE":
        if type(item[1]) is int and type(item[2]) is int and (len(item) == 3 or isinstance(item[3], dict)):
            return item[0], item[1], item[2]
    return None


def offsets_of(model: Layer, byname: dict[str, Layer]) -> tuple[dict[str, int], dict[str, int]]:
    """The offset to subtract from node numbers in references, by layer: within the model, and for its outputs.

    In Keras a model's own construction can be its node 0, which makes its first call node 1. In Keras 2 this is always
    so. In Keras 3 it applies only to Functional models, and only to references in the outputs of the enclosing model.
    """
    models = {name: member for name, member in byname.items() if member.kind in MODELS}
    if any(isinstance(call, dict) for member in model.layers for call in member.calls):
        return {}, {name: 1 for name, member in models.items() if member.kind == "Functional"}
    highest: dict[str, int] = {}
    everything = [member.calls for member in model.layers] + [model.config.get("output_layers")]
    for name, node, _ in references(everything):
        highest[name] = max(highest.get(name, 0), node)
    older = {name: 1 for name, member in models.items() if highest.get(name, 0) == len(member.calls) > 0}
    return older, older


def shifted(ref: tuple[str, int, int], offsets: dict[str, int]) -> tuple[str, int, int]:
    return ref[0], ref[1] - offsets.get(ref[0], 0), ref[2]


def call_order(model: Layer, byname: dict, within: dict, outputs: list, known: dict) -> list[tuple[str, int]]:
    """(layer, call) of everything the outputs need, in dependency order. Raises for a cycle."""
    order: list[tuple[str, int]] = []
    state: dict[tuple[str, int], int] = dict.fromkeys(known, 2)

    def reads(key: tuple[str, int]) -> Iterator[tuple[str, int]]:
        name, k = key
        member = byname.get(name)
        if member is None or not 0 <= k < len(member.calls):
            raise ModelFormatError(f"{model.path}: it refers to call {k} of a layer {name!r}, which it doesn't have")
        return iter([shifted(ref, within)[:2] for ref in references(member.calls[k])])

    for name, k, _ in outputs:
        if (name, k) in state:
            continue
        state[name, k] = 1
        stack = [((name, k), reads((name, k)))]
        while stack:
            key, needs = stack[-1]
            for need in needs:
                if state.get(need) == 1:
                    raise ModelFormatError(f"{model.path}: its layers form a cycle through {need[0]!r}")
                if need not in state:
                    state[need] = 1
                    stack.append((need, reads(need)))
                    break
            else:
                state[key] = 2
                order.append(key)
                stack.pop()
    return order


def pick(known: dict, ref: tuple[str, int, int], model: Layer) -> MaskedTensor:
    name, node, index = ref
    outputs = known.get((name, node))
    if outputs is None or not 0 <= index < len(outputs):
        raise ModelFormatError(f"{model.path}: there is no output {index} of call {node} of {name!r}")
    return outputs[index]


def arguments(raw, byname: dict, known: dict, member: Layer, within: dict) -> tuple[list, dict]:
    """The arguments of a call, with references replaced by tensors."""

    def resolve(item):
        ref = _reference(item)
        if ref is not None and ref[0] in byname:
            return pick(known, shifted(ref, within), member)
        if isinstance(item, list | tuple):
            if len(item) == 4 and item[0] == "_CONSTANT_VALUE":
                return item[2]
            return [resolve(i) for i in item]
        if isinstance(item, dict) and "class_name" not in item:
            return {key: resolve(value) for key, value in item.items()}
        return item

    if isinstance(raw, dict):  # Keras 3
        args, kwargs = raw.get("args", []), raw.get("kwargs", {})
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise ModelFormatError(f"layer {member.path}: it is called with {raw!r:.80}")
        return [resolve(a) for a in args], {key: resolve(value) for key, value in kwargs.items()}
    entries = [raw] if isinstance(raw, list) and raw and isinstance(raw[0], str) else raw
    if not isinstance(entries, list) or not entries:
        raise ModelFormatError(f"layer {member.path}: it is called with {raw!r:.80}")
    kwargs, args = {}, []
    for entry in entries:
        if not isinstance(entry, list) or len(entry) not in (3, 4):
            raise ModelFormatError(f"layer {member.path}: it is called with {entry!r:.80}")
        args.append(resolve(entry[:3] if entry[0] != "_CONSTANT_VALUE" else entry))
        if len(entry) == 4 and isinstance(entry[3], dict):
            kwargs |= {key: resolve(value) for key, value in entry[3].items()}
    return [args[0] if len(args) == 1 else args], kwargs
