"""Masks of Keras: layers that hand them on, merged ones, masks that are inputs, nested models."""

from keras_case import case, sequential

mask = lambda L: L.Masking(-1.0)  # noqa: E731
lstm = lambda L: L.LSTM(4, return_sequences=True)  # noqa: E731
through = {
    "Dense": lambda L: L.Dense(4),
    "Dropout": lambda L: L.Dropout(0.2),
    "Activation": lambda L: L.Activation("tanh"),
    "BatchNormalization": lambda L: L.BatchNormalization(),
    "LayerNormalization": lambda L: L.LayerNormalization(),
    "TimeDistributed": lambda L: L.TimeDistributed(L.Dense(4)),
    "PReLU": lambda L: L.PReLU(shared_axes=[1]),
    "UnitNormalization": lambda L: L.UnitNormalization(),
    "SpatialDropout1D": lambda L: L.SpatialDropout1D(0.2),
    "Conv1D": lambda L: L.Conv1D(4, 3, padding="causal"),
    "Permute": lambda L: L.Permute((1, 2)),
    "ReLU": lambda L: L.ReLU(),
    "Rescaling": lambda L: L.Rescaling(0.5),
    "RMSNormalization": lambda L: L.RMSNormalization(),
    "MaxPooling1D": lambda L: L.MaxPooling1D(2, strides=1, padding="same"),
    "Bidirectional": lambda L: L.Bidirectional(L.GRU(3, return_sequences=True)),
    "LSTM": lstm,
    "LSTM backwards": lambda L: L.LSTM(4, return_sequences=True, go_backwards=True),
}
for name, make in through.items():
    sequential(f"mask through {name}", mask, make, lstm, masked=-1.0)
sequential("mask and GlobalAveragePooling1D", mask, lambda L: L.GlobalAveragePooling1D(), masked=-1.0)
sequential("mask, LSTM and GlobalAveragePooling1D", mask, lstm, lambda L: L.GlobalAveragePooling1D(), masked=-1.0)
sequential("mask and GlobalMaxPooling1D", mask, lambda L: L.GlobalMaxPooling1D(), masked=-1.0)
for kind in ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"):
    for both in (0, 1, 2):

        @case(f"{kind} of {('no', 'one', 'two')[both]} masked", masked=-1.0 if both else None)
        def merge(keras, L, kind=kind, both=both):
            a, b = keras.Input((None, 3)), keras.Input((None, 3))
            left = L.Masking(-1.0)(a) if both else a
            right = L.Masking(-1.0)(b) if both == 2 else b
            return keras.Model([a, b], L.LSTM(4, return_sequences=True)(getattr(L, kind)()([left, right])))


@case("Concatenate along time", masked=-1.0)
def along_time(keras, L):
    a, b = keras.Input((None, 3)), keras.Input((None, 3))
    return keras.Model([a, b], L.LSTM(4)(L.Concatenate(axis=1)([L.Masking(-1.0)(a), L.Masking(-1.0)(b)])))


@case("a mask that is an input")
def mask_input(keras, L):
    x, m = keras.Input((None, 3)), keras.Input((None,), dtype="bool")
    return keras.Model([x, m], L.LSTM(4, return_sequences=True)(x, mask=m))


@case("nested model with a mask", masked=-1.0)
def nested_mask(keras, L):
    x = keras.Input((None, 3))
    inner = keras.Sequential([L.Input((None, 3)), L.Dense(4), L.GRU(3, return_sequences=True)])
    return keras.Model(x, L.LSTM(2)(inner(L.Masking(-1.0)(x))))
