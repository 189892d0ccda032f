"""Keras models that are more than a chain: nested, shared, several inputs, operations, attention."""

from keras_case import case


@case("nested and shared")
def nested(keras, L):
    x = keras.Input((None, 3), name="signal")
    inner = keras.Sequential([L.Input((None, 4)), L.Dense(4), L.BatchNormalization(), L.GRU(4, return_sequences=True)])
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


@case("scores of attention are outputs", h5=False)
def scores(keras, L):
    a, b = keras.Input((None, 4), name="query"), keras.Input((None, 4), name="value")
    y, first = L.MultiHeadAttention(2, 3)(a, b, return_attention_scores=True)
    z, second = L.Attention(use_scale=True)([y, b], return_attention_scores=True)
    u, third = L.AdditiveAttention()([z, b], return_attention_scores=True)
    v, fourth = L.MultiHeadAttention(2, 3)(u, u, return_attention_scores=True, use_causal_mask=True)
    return keras.Model([a, b], [v, first, second, third, fourth])


for equation, output, axes in (
    ("abc,cd->abd", (None, 5), "d"),
    ("...x,xy->...y", 5, "y"),
    ("abc,cde->abde", (None, 2, 5), "de"),
    ("abc,cde->adbe", (2, None, 5), "e"),
):

    @case(f"EinsumDense {equation}")
    def product(keras, L, equation=equation, output=output, axes=axes):
        x = keras.Input((None, 3))
        return keras.Model(x, L.EinsumDense(equation, output, bias_axes=axes, activation="relu")(x))
