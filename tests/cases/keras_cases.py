"""Small Keras models, one for each layer and option that the importer knows: name -> function that builds it.

Made live by whatever Keras is installed; `build(name)` gives the model with drawn weights, `data(model, steps)` inputs.
"""

from __future__ import annotations

import keras_graph_cases  # noqa: F401  (each registers its cases)
import keras_layer_cases  # noqa: F401
import keras_mask_cases  # noqa: F401
import keras_recurrent_cases  # noqa: F401
import numpy as np
from keras_case import CASES


def build(keras, name: str, seed: int = 0):
    """The model of a case, its weights drawn."""
    function, options = CASES[name]
    rng = np.random.default_rng([seed, len(name)])
    model = function(keras, keras.layers)
    for v in model.weights:
        array = rng.normal(size=v.shape) * 0.4
        if "variance" in v.name:
            array = np.abs(array) + 0.5
        if "state" in v.name:
            array = array * 0
        if v.name.startswith("count"):
            continue
        v.assign(array.astype(str(v.dtype).rpartition(".")[2]))
    return model, options


def data(model, options: dict, steps: int, rows: int = 3, seed: int = 0) -> list[np.ndarray]:
    """Inputs of a case, `steps` long where that is free; some steps are masked where the case says so."""
    rng = np.random.default_rng([seed, steps])
    inputs = []
    for x in model.inputs:
        shape = [rows if a == 0 else d for a, d in enumerate(x.shape)]
        known = "T" in options or options.get("attends") is False
        if not options.get("flat") and len(shape) > (1 if options.get("ids") else 2) and not known:
            shape[1] = steps
        shape = [steps if d is None else d for d in shape]
        if options.get("ids"):
            inputs.append(rng.integers(0, 7, shape))
            continue
        if "bool" in str(x.dtype):
            inputs.append(rng.random(shape) < 0.6)
            continue
        array = rng.normal(size=shape).astype(np.float32)
        if options.get("masked") is not None and len(shape) == 3:
            there = rng.random(shape[:2]) < 0.6
            there[0] = True
            there[-1] = False  # a row of which no step counts
            there[1, 0] = False
            if options.get("rows"):
                there[:, 0] = True
            array[~there] = options["masked"]
        inputs.append(array)
    return inputs
