"""Small Keras models, one for each layer and option that the importer knows: name -> function that builds it.

Made live by whatever Keras is installed; `build(name)` gives the model with drawn weights, `data(model, steps)` inputs.
"""

from __future__ import annotations

import numpy as np

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


def _recurrent_cases():
    for kind in ("LSTM", "GRU", "SimpleRNN"):

        def plain(L, kind=kind, **more):
            return getattr(L, kind)(4, **more)

        def with_options(kind=kind, **more):
            return lambda L: getattr(L, kind)(4, **more)

        sequential(f"{kind}", with_options())
        sequential(f"{kind} sequences", with_options(return_sequences=True))
        sequential(f"{kind} backwards", with_options(go_backwards=True))
        sequential(f"{kind} backwards sequences", with_options(go_backwards=True, return_sequences=True))
        sequential(f"{kind} without bias", with_options(use_bias=False, return_sequences=True))
        sequential(f"{kind} unrolled", with_options(unroll=True, return_sequences=True), shape=(6, 3))
        sequential(f"{kind} dropout", with_options(dropout=0.2, recurrent_dropout=0.2))
        sequential(f"{kind} stateful", with_options(stateful=True, return_sequences=True), batch=3)
        for where, mask in (("Masking", lambda L: L.Masking(-1.0)),):
            for back in (False, True):
                for sequences in (False, True):
                    for zero in (False, True):
                        name = f"{where} {kind}{' backwards' * back}{' sequences' * sequences}{' zeros' * zero}"
                        more = {"go_backwards": back, "return_sequences": sequences, "zero_output_for_mask": zero}
                        sequential(name, mask, with_options(**more), masked=-1.0)
        for merge in ("concat", "sum", "mul", "ave", None):
            for sequences in (False, True):
                make = lambda L, kind=kind, merge=merge, sequences=sequences: L.Bidirectional(  # noqa: E731
                    getattr(L, kind)(4, return_sequences=sequences), merge_mode=merge
                )
                if merge is not None:
                    sequential(f"Bidirectional {kind} {merge}{' sequences' * sequences}", make)
                    if merge in ("concat", "mul"):
                        mask = lambda L: L.Masking(-1.0)  # noqa: E731
                        sequential(
                            f"Masking Bidirectional {kind} {merge}{' sequences' * sequences}", mask, make, masked=-1.0
                        )

        @case(f"{kind} states out")
        def states_out(keras, L, kind=kind):
            x = keras.Input((None, 3))
            return keras.Model(x, getattr(L, kind)(4, return_sequences=True, return_state=True)(x))

        @case(f"Bidirectional {kind} states out, apart")
        def both_states_out(keras, L, kind=kind):
            x = keras.Input((None, 3))
            inner = getattr(L, kind)(4, return_sequences=True, return_state=True)
            return keras.Model(x, L.Bidirectional(inner, merge_mode=None)(x))

        @case(f"{kind} initial state")
        def initial_state(keras, L, kind=kind):
            x, start = keras.Input((None, 3)), keras.Input((4,))
            states = [L.Dense(4)(start)] * (2 if kind == "LSTM" else 1)
            return keras.Model([x, start], getattr(L, kind)(4, return_sequences=True)(x, initial_state=states))

        for sequences in (False, True):

            @case(f"Masking {kind} initial state{' sequences' * sequences}", masked=-1.0)
            def masked_initial_state(keras, L, kind=kind, sequences=sequences):
                x, start = keras.Input((None, 3)), keras.Input((4,))
                states = [L.Dense(4)(start)] * (2 if kind == "LSTM" else 1)
                y = getattr(L, kind)(4, return_sequences=sequences)(L.Masking(-1.0)(x), initial_state=states)
                return keras.Model([x, start], y)

        @case(f"Bidirectional {kind} initial state")
        def both_initial(keras, L, kind=kind):
            x, start = keras.Input((None, 3)), keras.Input((4,))
            states = [L.Dense(4)(start) for _ in range(4 if kind == "LSTM" else 2)]
            return keras.Model([x, start], L.Bidirectional(getattr(L, kind)(4))(x, initial_state=states))

        sequential(
            f"RNN of a {kind}Cell", lambda L, kind=kind: L.RNN(getattr(L, f"{kind}Cell")(4), return_sequences=True)
        )
    for before in (True, False):
        sequential(f"GRU reset_after={before}", lambda L, b=before: L.GRU(4, reset_after=b, return_sequences=True))
        sequential(f"GRU reset_after={before}, no bias", lambda L, b=before: L.GRU(4, reset_after=b, use_bias=False))
    stack = lambda L, **more: L.RNN([L.LSTMCell(4), L.GRUCell(5), L.SimpleRNNCell(3)], **more)  # noqa: E731
    sequential("RNN of a stack", lambda L: stack(L, return_sequences=True))
    sequential("RNN of a stack, backwards", lambda L: stack(L, return_sequences=True, go_backwards=True))
    sequential(
        "Masking, RNN of a stack", lambda L: L.Masking(-1.0), lambda L: stack(L, return_sequences=True), masked=-1.0
    )
    sequential("Bidirectional RNN of a stack", lambda L: L.Bidirectional(stack(L)))

    @case("RNN of a stack, states out")
    def stack_states(keras, L):
        x = keras.Input((None, 3))
        outputs = stack(L, return_state=True)(x)
        flat = [t for o in outputs for t in (o if isinstance(o, list | tuple) else [o])]
        return keras.Model(x, flat)

    @case("encoder and decoder")
    def encoder_decoder(keras, L):
        a, b = keras.Input((None, 3)), keras.Input((None, 2))
        _, h, c = L.LSTM(4, return_state=True)(a)
        return keras.Model([a, b], L.Dense(2)(L.LSTM(4, return_sequences=True)(b, initial_state=[h, c])))

    @case("Bidirectional of two layers")
    def two_layers(keras, L):
        x = keras.Input((None, 3))
        both = L.Bidirectional(
            L.LSTM(4, return_sequences=True), backward_layer=L.GRU(5, go_backwards=True, return_sequences=True)
        )
        return keras.Model(x, both(x))

    for name in (
        "relu sigmoid linear elu selu softplus softsign gelu silu exponential hard_sigmoid leaky_relu relu6 mish "
        "hard_silu hard_tanh celu sparse_sigmoid"
    ).split():
        sequential(f"LSTM activation {name}", lambda L, n=name: L.LSTM(4, activation=n, return_sequences=True), T=4)
    for kind in ("LSTM", "GRU"):
        sequential(
            f"{kind} gates hard_sigmoid", lambda L, k=kind: getattr(L, k)(4, recurrent_activation="hard_sigmoid")
        )


def _layer_cases():
    for name in (
        "linear relu sigmoid tanh softmax log_softmax elu selu softplus softsign gelu silu exponential hard_sigmoid "
        "leaky_relu relu6 mish hard_silu hard_tanh celu log_sigmoid hard_shrink soft_shrink tanh_shrink squareplus "
        "sparse_plus sparse_sigmoid"
    ).split():
        sequential(f"Dense {name}", lambda L, n=name: L.Dense(4, activation=n))
    one = {
        "Activation": lambda L: L.Activation("tanh"),
        "LeakyReLU": lambda L: L.LeakyReLU(negative_slope=0.1),
        "ELU": lambda L: L.ELU(alpha=0.7),
        "ReLU": lambda L: L.ReLU(),
        "ReLU in full": lambda L: L.ReLU(max_value=1.5, negative_slope=0.2, threshold=0.3),
        "PReLU": lambda L: L.PReLU(shared_axes=[1]),
        "Softmax": lambda L: L.Softmax(),
        "Dense without bias": lambda L: L.Dense(4, use_bias=False),
        "Dropout": lambda L: L.Dropout(0.5),
        "SpatialDropout1D": lambda L: L.SpatialDropout1D(0.5),
        "GaussianNoise": lambda L: L.GaussianNoise(0.5),
        "GaussianDropout": lambda L: L.GaussianDropout(0.5),
        "AlphaDropout": lambda L: L.AlphaDropout(0.5),
        "ActivityRegularization": lambda L: L.ActivityRegularization(l2=0.1),
        "BatchNormalization": lambda L: L.BatchNormalization(),
        "BatchNormalization plain": lambda L: L.BatchNormalization(scale=False, center=False, epsilon=0.1),
        "LayerNormalization": lambda L: L.LayerNormalization(),
        "LayerNormalization plain": lambda L: L.LayerNormalization(scale=False, center=False, epsilon=0.1),
        "UnitNormalization": lambda L: L.UnitNormalization(),
        "RMSNormalization": lambda L: L.RMSNormalization(),
        "Rescaling": lambda L: L.Rescaling(2.0, offset=0.5),
        "Normalization": lambda L: L.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 0.5]),
        "Normalization inverted": lambda L: L.Normalization(mean=0.5, variance=2.0, invert=True),
        "Normalization with weights": lambda L: L.Normalization(),
        "Normalization of all alike": lambda L: L.Normalization(axis=None, mean=0.3, variance=2.0),
        "Normalization of all alike, with weights": lambda L: L.Normalization(axis=None),
        "Conv1D strided same": lambda L: L.Conv1D(4, 4, strides=2, padding="same"),
        "MaxPooling1D same": lambda L: L.MaxPooling1D(2, padding="same"),
        "AveragePooling1D same, wide": lambda L: L.AveragePooling1D(2, strides=5, padding="same"),
        "GlobalAveragePooling1D": lambda L: L.GlobalAveragePooling1D(),
        "GlobalAveragePooling1D kept": lambda L: L.GlobalAveragePooling1D(keepdims=True),
        "GlobalMaxPooling1D": lambda L: L.GlobalMaxPooling1D(),
        "ZeroPadding1D": lambda L: L.ZeroPadding1D((2, 1)),
        "Cropping1D": lambda L: L.Cropping1D((1, 2)),
        "UpSampling1D": lambda L: L.UpSampling1D(3),
        "MaxPooling1D": lambda L: L.MaxPooling1D(2),
        "AveragePooling1D": lambda L: L.AveragePooling1D(3, strides=2),
        "TimeDistributed Dense": lambda L: L.TimeDistributed(L.Dense(4, activation="relu")),
        "Permute": lambda L: L.Permute((2, 1)),
    }
    for name, make in one.items():
        sequential(name, make)
    for axis in ([1, 2],):
        sequential(f"LayerNormalization over {axis}", lambda L, a=axis: L.LayerNormalization(axis=a), shape=(5, 3), T=5)
    sequential("GroupNormalization", lambda L: L.GroupNormalization(2), shape=(5, 4), T=5)
    sequential(
        "Flatten",
        lambda L: L.LSTM(4, return_sequences=True),
        lambda L: L.Flatten(),
        lambda L: L.Dense(2),
        shape=(5, 3),
        T=5,
    )
    sequential("Reshape", lambda L: L.Reshape((5, 6)), lambda L: L.GRU(3), shape=(5, 3, 2), T=5)
    sequential("Reshape with -1", lambda L: L.Reshape((-1, 6)), lambda L: L.GRU(3), shape=(None, 3, 2))
    sequential("Reshape across steps", lambda L: L.Reshape((2, 9)), lambda L: L.GRU(3), shape=(6, 3), T=6)
    sequential(
        "RepeatVector", lambda L: L.LSTM(4), lambda L: L.RepeatVector(5), lambda L: L.LSTM(3, return_sequences=True)
    )
    sequential(
        "autoencoder",
        lambda L: L.LSTM(4),
        lambda L: L.RepeatVector(6),
        lambda L: L.LSTM(4, return_sequences=True),
        lambda L: L.TimeDistributed(L.Dense(3)),
        shape=(6, 3),
    )
    sequential("PReLU of each step", lambda L: L.PReLU(), shape=(5, 3), T=5)
    sequential("TimeDistributed LSTM", lambda L: L.TimeDistributed(L.LSTM(4)), lambda L: L.GRU(3), shape=(None, 4, 3))
    sequential(
        "TimeDistributed Conv1D",
        lambda L: L.TimeDistributed(L.Conv1D(4, 2)),
        lambda L: L.TimeDistributed(L.Flatten()),
        lambda L: L.LSTM(3),
        shape=(None, 5, 3),
    )
    for padding in ("valid", "same", "causal"):
        for more in ({}, {"dilation_rate": 2}, {"use_bias": False, "activation": "relu"}):
            shown = " ".join(map(str, more.items()))
            sequential(
                f"Conv1D {padding} {shown}", lambda L, p=padding, m=more: L.Conv1D(4, 3, padding=p, **m), least=5
            )
    for padding in ("valid", "causal"):
        sequential(f"Conv1D strided {padding}", lambda L, p=padding: L.Conv1D(4, 3, strides=2, padding=p), least=3)
    for T in (5, 6):
        sequential(f"Conv1D strided same {T}", lambda L: L.Conv1D(4, 3, strides=2, padding="same"), shape=(T, 3), T=T)
        sequential(f"MaxPooling1D same {T}", lambda L: L.MaxPooling1D(2, padding="same"), shape=(T, 3), T=T)
    # At a length of 6 Keras on PyTorch counts the padding as steps like the last one; TensorFlow and JAX leave it out.
    sequential("AveragePooling1D same", lambda L: L.AveragePooling1D(3, strides=2, padding="same"), shape=(5, 3), T=5)
    sequential("MaxPooling1D same, stride 1", lambda L: L.MaxPooling1D(3, strides=1, padding="same"))
    sequential("Conv1D grouped", lambda L: L.Conv1D(6, 3, groups=2), shape=(None, 4), least=3)
    sequential("DepthwiseConv1D", lambda L: L.DepthwiseConv1D(3, depth_multiplier=2, padding="same", activation="tanh"))
    sequential("SeparableConv1D", lambda L: L.SeparableConv1D(5, 3, depth_multiplier=2, padding="same"))
    sequential(
        "Conv2D",
        lambda L: L.Conv2D(4, (1, 3), padding="same"),
        lambda L: L.MaxPooling2D((1, 2)),
        lambda L: L.Reshape((-1, 8)),
        lambda L: L.LSTM(3),
        shape=(None, 4, 2),
    )
    sequential(
        "Conv2D of an image",
        lambda L: L.Conv2D(4, 3, strides=2, padding="same"),
        lambda L: L.AveragePooling2D(2),
        lambda L: L.Flatten(),
        lambda L: L.Dense(2),
        shape=(8, 8, 2),
        T=8,
    )
    sequential("Embedding", lambda L: L.Embedding(7, 4), lambda L: L.LSTM(3), shape=(None,), ids=True)
    sequential(
        "Embedding mask_zero",
        lambda L: L.Embedding(7, 4, mask_zero=True),
        lambda L: L.LSTM(3, return_sequences=True),
        shape=(None,),
        ids=True,
    )
    sequential(
        "Embedding of a fixed length",
        lambda L: L.Embedding(7, 4, mask_zero=True),
        lambda L: L.GRU(3),
        shape=(6,),
        ids=True,
    )
    sequential("Dense alone", lambda L: L.Dense(4, activation="relu"), lambda L: L.Dense(2), shape=(3,), flat=True)


def _mask_cases():
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


def _graph_cases():
    @case("nested and shared")
    def nested(keras, L):
        x = keras.Input((None, 3), name="signal")
        inner = keras.Sequential(
            [L.Input((None, 4)), L.Dense(4), L.BatchNormalization(), L.GRU(4, return_sequences=True)]
        )
        shared = L.Dense(4)
        i = keras.Input((None, 4))
        deep = keras.Model(i, [L.BatchNormalization()(inner(i)), L.LSTM(4)(i)])
        b, c = deep(shared(L.Dense(4)(x)))
        again = deep(b)[0]
        return keras.Model(x, [shared(b), c, shared(again)])

    @case("frozen parts")
    def frozen(keras, L):
        x = keras.Input((None, 3))
        inner = keras.Sequential(
            [L.Input((None, 3)), L.BatchNormalization(), L.Dense(3), L.BatchNormalization(), L.Dense(4)]
        )
        inner.layers[1].trainable = False
        whole = keras.Sequential([L.Input((None, 4)), L.BatchNormalization(), L.GRU(4)])
        whole.trainable = False
        return keras.Model(x, whole(inner(x)))

    @case("several inputs and outputs")
    def several(keras, L):
        a, b = keras.Input((None, 3), name="a"), keras.Input((2,), name="b")
        h = L.LSTM(4)(a)
        out = L.Concatenate()([h, L.Dense(3, activation="relu")(b)])
        return keras.Model([b, a], [L.Dense(2, name="second")(out), L.Dense(1, name="first")(out)])

    @case("an input is an output")
    def passes(keras, L):
        x = keras.Input((None, 3))
        y = L.Dense(2)(x)
        return keras.Model(x, [y, x, y])

    @case("layers as activations")
    def as_activations(keras, L):
        x = keras.Input((None, 3))
        y = L.Dense(4, activation=L.LeakyReLU(negative_slope=0.3))(x)
        y = L.Dense(4, activation=L.ReLU(max_value=1.0, negative_slope=0.1))(y)
        y = L.LSTM(3, activation=L.ReLU(max_value=2.0), return_sequences=True)(y)
        y = L.GRU(3, activation=L.ReLU(), return_sequences=True)(y)
        return keras.Model(x, L.Dense(4, activation=L.Softmax())(y))

    @case("attention by hand", h5=False)
    def by_hand(keras, L):
        x = keras.Input((None, 3))
        h = L.LSTM(5, return_sequences=True)(x)
        scores = L.Dense(1, activation="tanh")(h)
        pooled = L.Dot(axes=1)([L.Activation("softmax")(L.Flatten()(scores)), h])
        return keras.Model(x, [pooled, keras.ops.softmax(h, axis=1)])

    @case("a memory of fixed length", attends=False)
    def memory(keras, L):
        a, b = keras.Input((None, 4)), keras.Input((5, 4))
        return keras.Model([a, b], L.LSTM(3)(L.MultiHeadAttention(2, 3)(a, b, b)))

    @case("two axes of the same fixed length", T=5)
    def square(keras, L):
        x, start, mask = keras.Input((5, 4)), keras.Input((3,)), keras.Input((5, 5), dtype="bool")
        y = L.Concatenate()([x, L.RepeatVector(5)(start)])
        return keras.Model([x, start, mask], L.MultiHeadAttention(2, 3)(y, y, attention_mask=mask))

    for dropout in (0.0, 0.1):
        for causal in (False, True):

            @case(f"queries that see no key{' causal' * causal} dropout {dropout}", T=5)
            def hidden(keras, L, causal=causal, dropout=dropout):
                x, start, mask = keras.Input((5, 4)), keras.Input((3,)), keras.Input((5, 5), dtype="bool")
                y = L.Concatenate()([x, L.RepeatVector(5)(start)])
                some = keras.ops.logical_and(mask, keras.ops.expand_dims(x[:, :, 0] > 0, 2))  # few keys, or none
                y = L.MultiHeadAttention(2, 3, dropout=dropout)(y, y, attention_mask=some, use_causal_mask=causal)
                return keras.Model([x, start, mask], y)

    for kind in ("MultiHeadAttention", "Attention"):

        @case(f"{kind} causal over masked keys", masked=-1.0)
        def over_masked(keras, L, kind=kind):
            a, b = keras.Input((None, 4)), keras.Input((None, 4))
            layer = L.Attention() if kind == "Attention" else L.MultiHeadAttention(2, 3)
            inputs = (a, L.Masking(-1.0)(b))
            y = layer([*inputs], use_causal_mask=True) if kind == "Attention" else layer(*inputs, use_causal_mask=True)
            return keras.Model([a, b], y)

    @case("layers beside operations in a legacy config")
    def beside(keras, L):
        x = keras.Input((None, 3))
        return keras.Model(x, keras.ops.tanh(L.SpatialDropout1D(0.2)(x)))

    @case("operators", h5=False)
    def operators(keras, L):
        x = keras.Input((None, 3))
        y = L.LSTM(3, return_sequences=True)(x)
        z = (y * 2.0 + x) / 3.0 - 0.5
        return keras.Model(x, keras.ops.mean(keras.ops.tanh(-z), axis=-1))

    for name, pick in {
        "last step": lambda y: y[:, -1],
        "features": lambda y: y[..., 1:3],
        "one feature": lambda y: y[:, :, 0],
        "without the first step": lambda y: y[:, 1:, :],
    }.items():

        @case(f"index: {name}", h5=False)
        def index(keras, L, pick=pick):
            x = keras.Input((None, 3))
            return keras.Model(x, pick(L.GRU(4, return_sequences=True)(x)))

    for normalize in (False, True):

        @case(f"Dot of vectors{', normalised' * normalize}")
        def dot(keras, L, normalize=normalize):
            a, b = keras.Input((None, 3)), keras.Input((None, 3))
            return keras.Model([a, b], L.Dot(axes=1, normalize=normalize)([L.LSTM(4)(a), L.GRU(4)(b)]))

        @case(f"Dot along features{', normalised' * normalize}", T=5)
        def dot_features(keras, L, normalize=normalize):
            a, b = keras.Input((5, 3)), keras.Input((4, 3))
            return keras.Model([a, b], L.Dot(axes=2, normalize=normalize)([a, b]))

    for causal in (False, True):
        for masked in (False, True):

            @case(
                f"MultiHeadAttention{' causal' * causal}{' masked' * masked}",
                masked=-1.0 if masked else None,
                rows=masked,
            )
            def multi_head(keras, L, causal=causal, masked=masked):
                x = keras.Input((None, 4))
                h = L.Masking(-1.0)(x) if masked else x
                y = L.MultiHeadAttention(2, 3, value_dim=5, output_shape=6)(h, h, use_causal_mask=causal)
                return keras.Model(x, y if masked else L.LSTM(3)(y))

            @case(f"Attention{' causal' * causal}{' masked' * masked}", masked=-1.0 if masked else None)
            def dot_attention(keras, L, causal=causal, masked=masked):
                a, b = keras.Input((None, 4)), keras.Input((None, 4))
                p, q = (L.Masking(-1.0)(v) if masked else v for v in (a, b))
                return keras.Model([a, b], L.Attention(use_scale=True)([p, q], use_causal_mask=causal))

    for kind, more in (
        ("AdditiveAttention", {}),
        ("AdditiveAttention", {"use_scale": False}),
        ("Attention", {"score_mode": "concat"}),
    ):

        @case(f"{kind} {more}", T=5)
        def additive(keras, L, kind=kind, more=more):
            a, b = keras.Input((5, 4)), keras.Input((5, 4))
            return keras.Model([a, b], getattr(L, kind)(**more)([a, b]))

    @case("attention over an LSTM's steps")
    def pooled(keras, L):
        x = keras.Input((None, 3))
        h = L.Bidirectional(L.LSTM(4, return_sequences=True))(x)
        y = L.MultiHeadAttention(2, 4)(h, h)
        return keras.Model(x, L.GlobalAveragePooling1D()(L.LayerNormalization()(L.Add()([h, y]))))


_recurrent_cases()
_layer_cases()
_mask_cases()
_graph_cases()


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
