"""How a case of Keras is registered: a function of (keras, keras.layers) that builds a small model."""

from __future__ import annotations

CASES: dict[str, tuple] = {}  # name -> (function of (keras, layers), options)


def case(name: str, **options):
    """options: T (the number of steps is fixed by the model), refused (text of the error), masked (draw masked steps),
    ids (inputs are whole numbers below 7), rows (compare only steps that count), tolerance, h5 (False: Keras itself
    can't save it so), attends (False: its attention is over no sequence)."""

    def register(function):
        assert name not in CASES
        CASES[name] = (function, options)
        return function

    return register


def sequential(name: str, *layers, shape=(None, 3), batch=None, **options):
    """A case of one input and layers one after the other; `layers` are functions of keras.layers."""

    @case(name, **options)
    def model(keras, L):
        return keras.Sequential([L.Input(shape, batch_size=batch), *(make(L) for make in layers)])
