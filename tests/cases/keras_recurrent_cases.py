"""Recurrent layers of Keras: every kind and option, both ways, masked, with states in and out, stacks of cells."""

from keras_case import case, sequential

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

    sequential(f"RNN of a {kind}Cell", lambda L, kind=kind: L.RNN(getattr(L, f"{kind}Cell")(4), return_sequences=True))
for before in (True, False):
    sequential(f"GRU reset_after={before}", lambda L, b=before: L.GRU(4, reset_after=b, return_sequences=True))
    sequential(f"GRU reset_after={before}, no bias", lambda L, b=before: L.GRU(4, reset_after=b, use_bias=False))
stack = lambda L, **more: L.RNN([L.LSTMCell(4), L.GRUCell(5), L.SimpleRNNCell(3)], **more)  # noqa: E731
sequential("RNN of a stack", lambda L: stack(L, return_sequences=True))
sequential("RNN of a stack, backwards", lambda L: stack(L, return_sequences=True, go_backwards=True))
sequential("Masking, RNN of a stack", lambda L: L.Masking(-1.0), lambda L: stack(L, return_sequences=True), masked=-1.0)
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
    sequential(f"{kind} gates hard_sigmoid", lambda L, k=kind: getattr(L, k)(4, recurrent_activation="hard_sigmoid"))
