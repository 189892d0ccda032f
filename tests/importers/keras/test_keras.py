"""Keras models, from files and live, against the Keras that is installed: every layer and option of `keras_cases`."""

from __future__ import annotations

import keras_cases as cases
import numpy as np
import pytest

import fastrnn

keras = pytest.importorskip("keras", reason="the installed Keras decides what its layers mean")
TOLERANCE = 1e-5


# Keras warns of masks that are dropped and of the .h5 format: both are what is tested. NumPy 2 of how torch copies.
pytestmark = [
    pytest.mark.any_isa,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]


def answers(model, inputs) -> list[np.ndarray]:
    """What Keras says, all outputs in order."""
    for layer in model.layers:
        if getattr(layer, "stateful", False):
            layer.reset_state()
    given = inputs[0] if len(inputs) == 1 else inputs
    y = model(given, training=False)
    return [np.asarray(keras.ops.convert_to_numpy(t)) for t in keras.tree.flatten(y)]


def loaded(model, options, folder) -> dict[str, fastrnn.Model]:
    """The model by each way that leads here."""
    model.save(folder / "m.keras")
    ways = {"keras": fastrnn.load(folder / "m.keras"), "live": fastrnn.from_keras(model)}
    if options.get("h5", True):
        model.save(folder / "m.h5")
        ways["h5"] = fastrnn.load(folder / "m.h5")
    return ways


def close(got, want, options, inputs) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        if options.get("rows"):  # steps that don't count have no meaning of their own
            there = np.any(inputs[0] != options["masked"], axis=-1)
            a, b = a[there], b[there]
        np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


@pytest.mark.parametrize("name", cases.CASES)
def test_each_case_is_what_keras_says(name, tmp_path):
    model, options = cases.build(keras, name)
    ways = loaded(model, options, tmp_path)
    first = ways["keras"]
    lengths = (options["T"],) if "T" in options else (7, 6) if options.get("least", 0) < 4 else (7, 5)
    for steps in lengths:
        inputs = cases.data(model, options, steps)
        try:
            want = answers(model, inputs)
        except (ValueError, RuntimeError):
            if steps == lengths[0]:
                raise
            continue  # a length that the model has fixed: Keras refuses another
        whole = first.run(*inputs)
        close(whole, want, options, inputs)
        for other in ways.values():
            for a, b in zip(other.run(*inputs), whole, strict=True):
                np.testing.assert_array_equal(a, b)
    first.save(tmp_path / "m.fastrnn")
    for a, b in zip(fastrnn.load(tmp_path / "m.fastrnn").run(*inputs), whole, strict=True):
        np.testing.assert_array_equal(a, b)
    if first.streamable:
        streamed(first, inputs, whole, options)


def streamed(model, inputs, whole, options) -> None:
    """Chunks give the bits of the whole run."""
    timed = ["time" in i.dims for i in model.inputs]
    if not any(timed) or any("time" in str(i.dims) and i.dims[1] != "time" for i in model.outputs):
        return
    steps = next(a.shape[1] for a, t in zip(inputs, timed, strict=True) if t)
    attends = options.get("attends", any(n.op == "attention" for n in model.graph.nodes))
    bound = {"context": steps} if attends and all(timed) else {}
    stream, at, parts = model.stream(batch_size=len(inputs[0]), **bound), 0, []
    for size in (1, 3, steps - 4):
        chunk = [a[:, at : at + size] if t else a for a, t in zip(inputs, timed, strict=True)]
        made = stream.push(chunk[0] if len(chunk) == 1 else tuple(chunk))
        parts.append(made if isinstance(made, tuple) else (made,))
        at += size
    if stream.delay:
        made = stream.flush()
        parts.append(made if isinstance(made, tuple) else (made,))
    for k, (info, y) in enumerate(zip(model.outputs, whole, strict=True)):
        if "time" in info.dims[1:2]:
            got = np.concatenate([p[k] for p in parts], axis=1)
            np.testing.assert_array_equal(got, y)
        elif not any("time" in str(d) for d in info.dims):
            last = parts[-1][k]
            np.testing.assert_array_equal(last[:, -1] if last.ndim > y.ndim else last, y)
