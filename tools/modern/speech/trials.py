"""What is tried of an encoder's file: whether it loads, equals onnxruntime, streams, with the same bits in a pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np

import fastrnn

from .files import Encoder

TOLERANCE = 2e-5  # of the largest value, at least of 1
LEAST, MOST = 2, 9  # chunks of a sequence

Arrays = Mapping[str, np.ndarray]


def session(content: bytes):
    """onnxruntime with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def by_onnxruntime(content: bytes) -> Callable[[Arrays], Arrays]:
    """A call of the file by onnxruntime."""
    run = session(content)
    names = [o.name for o in run.get_outputs()]
    return lambda feeds: dict(zip(names, run.run(None, dict(feeds)), strict=True))


def by_fastrnn(model) -> Callable[[Arrays], Arrays]:
    """The same by `model.run`."""
    names = [o.name for o in model.outputs]
    return lambda feeds: dict(zip(names, as_tuple(model.run(**feeds)), strict=True))


def as_tuple(found) -> tuple:
    return found if isinstance(found, tuple) else (found,)


def sequences(encoder: Encoder, count: int, most: int = MOST) -> list[list[dict[str, np.ndarray]]]:
    """For each caller its steps, of different numbers. A step is input -> array of one row."""
    rng = np.random.default_rng(19)
    return [[_step(encoder, rng, call) for call in range(rng.integers(LEAST, most + 1))] for _ in range(count)]


def _step(encoder: Encoder, rng, call: int) -> dict[str, np.ndarray]:
    frames = encoder.data[0]
    shape, axis = list(encoder.inputs[frames].shape), encoder.batch_of(frames)
    if axis is not None:
        del shape[axis]
    own = {name: np.asarray(value) for name, value in encoder.others(call).items()}
    return {frames: rng.standard_normal(shape).astype(np.float32), **own}


def by_hand(encoder: Encoder, run: Callable[[Arrays], Arrays], steps: list) -> list[dict[str, np.ndarray]]:
    """The results of every call for one row, without its batch axis. The states are handed on."""
    states = {}
    for name in encoder.states:
        value, axis = encoder.inputs[name].numpy(), encoder.batch_of(name)
        states[name] = value if axis is None else value.take([0], axis)
    found = []
    for step in steps:
        axes = {name: encoder.batch_of(name) for name in step}
        given = {n: a if axes[n] is None else np.expand_dims(a, axes[n]) for n, a in step.items()}
        outputs = run(given | states)
        states = {old: outputs[new] for old, new in encoder.states.items()}
        axes = {name: encoder.batch_of(name) for name in encoder.results}
        found.append({n: outputs[n] if axes[n] is None else outputs[n].take(0, axes[n]) for n in encoder.results})
    return found


def fed(encoder: Encoder, steps: list[Arrays]):
    """What a stream (of one step) or a pool (of several) takes."""
    asked = encoder.data
    values = tuple(np.stack([step[name] for step in steps]) for name in asked)
    return values if len(values) > 1 else values[0]


def alone(encoder: Encoder, model, steps: list) -> list[dict[str, np.ndarray]]:
    """The results of a lone stream."""
    stream, found = model.stream(), []
    for step in steps:
        given = tuple(step[name] for name in encoder.data)
        made = as_tuple(stream.step(given if len(given) > 1 else given[0]))
        found.append(dict(zip(encoder.results, made, strict=True)))
    return found


def together(encoder: Encoder, model, calls: list, seed: int = 7) -> list[list[dict[str, np.ndarray]]]:
    """The results of all calls in one pool. In each tick some of those that have steps left take one, in any order."""
    rng, pool = np.random.default_rng(seed), model.pool(capacity=len(calls))
    slots = [pool.open() for _ in calls]
    found: list[list] = [[] for _ in calls]
    while True:
        left = [k for k, steps in enumerate(calls) if len(found[k]) < len(steps)]
        if not left:
            return found
        chosen = rng.permutation([k for k in left if rng.random() < 0.7] or left)
        steps = [calls[k][len(found[k])] for k in chosen]
        made = as_tuple(pool.step([slots[k] for k in chosen], fed(encoder, steps)))
        for i, k in enumerate(chosen):
            found[k].append({name: array[i] for name, array in zip(encoder.results, made, strict=True)})


def differs(got: list, want: list) -> str:
    """Where answers differ by more than the tolerance; "" if they don't."""
    for call, (mine, other) in enumerate(zip(got, want, strict=True)):
        for name, value in other.items():
            if mine[name].shape != value.shape:
                return f"{name} is {list(mine[name].shape)} at call {call}, not {list(value.shape)}"
            wide = value.astype(np.float64)
            if not np.abs(mine[name] - wide).max(initial=0.0) <= TOLERANCE * max(1.0, np.abs(wide).max(initial=0.0)):
                return f"{name} differs by {np.abs(mine[name] - wide).max():.2g} at call {call}"
    return ""


def same_bits(got: list, want: list) -> bool:
    return all(
        mine[name].tobytes() == value.tobytes()
        for mine, other in zip(got, want, strict=True)
        for name, value in other.items()
    )


def tried(encoder: Encoder, content: bytes, exporter: str = "script", calls: int = 100, checked: int = 3) -> dict:
    """trial -> why it failed; {} if all succeed. checked: calls that are compared with onnxruntime."""
    failed: dict[str, str] = {}
    try:
        model = fastrnn.load(content, threads=1, sizes=dict(encoder.sizes) if exporter == "script" else None)
        if dict(model.graph.states) != dict(encoder.states):
            failed["states"] = f"{dict(model.graph.states)}, not {dict(encoder.states)}"
        if dict(model.metadata) != dict(encoder.metadata):
            failed["metadata"] = f"{dict(model.metadata)}"
        steps = sequences(encoder, calls)
        lone = [alone(encoder, model, own) for own in steps]
        for own, got in zip(steps[:checked], lone, strict=False):
            if why := differs(got, by_hand(encoder, by_onnxruntime(content), own)):
                failed["equal"] = why
            if not same_bits(got, by_hand(encoder, by_fastrnn(model), own)):
                failed["run"] = "a stream and calls of run differ"
        if not all(map(same_bits, together(encoder, model, steps), lone)):
            failed["pool"] = "a pool and lone streams differ"
    except fastrnn.FastRNNError as error:
        failed[type(error).__name__] = str(error)
    return failed


def tried_in_chunks(encoder: Encoder, content: bytes, calls: int = 100, checked: int = 3) -> dict[str, str]:
    """As `tried`, for an encoder that takes chunks of any length: random chunks, step by step, and a pool."""
    failed, rng = {}, np.random.default_rng(19)
    frames, results = encoder.data[0], encoder.results[0]
    try:
        model = fastrnn.load(content, threads=1)
        if dict(model.graph.states) != dict(encoder.states):
            failed["states"] = f"{dict(model.graph.states)}, not {dict(encoder.states)}"
        width = encoder.inputs[frames].shape[-1]
        xs = [rng.standard_normal((rng.integers(1, 60), width)).astype(np.float32) for _ in range(calls)]
        lone = []
        for x in xs:
            stream = model.stream()
            lone.append(np.stack([stream.step(row) for row in x]))
        for x, want in zip(xs[:checked], lone, strict=False):
            cuts = np.unique([0, *rng.integers(0, len(x), 4), len(x)])
            parts = [x[a:b] for a, b in pairwise(cuts)]
            steps = [{frames: part[None]} for part in parts]
            stream = model.stream()
            pushed = [stream.push(np.ascontiguousarray(part)) for part in parts]
            if np.concatenate(pushed).tobytes() != want.tobytes():
                failed["chunks"] = "chunks and steps differ"
            got = [{results: part[None]} for part in pushed]
            if why := differs(got, by_hand(encoder, by_onnxruntime(content), steps)):
                failed["equal"] = why
            if not same_bits(got, by_hand(encoder, by_fastrnn(model), steps)):
                failed["run"] = "a stream and calls of run differ"
        pool = model.pool(capacity=calls)
        pushed = pool.push([pool.open() for _ in xs], xs)
        if any(a.tobytes() != b.tobytes() for a, b in zip(pushed, lone, strict=True)):
            failed["pool"] = "a pool and lone streams differ"
    except fastrnn.FastRNNError as error:
        failed[type(error).__name__] = str(error)
    return failed
