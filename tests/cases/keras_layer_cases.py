"""One layer of each kind that the Keras importer knows, and those that change axes."""

from keras_case import sequential

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
sequential("RepeatVector", lambda L: L.LSTM(4), lambda L: L.RepeatVector(5), lambda L: L.LSTM(3, return_sequences=True))
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
        sequential(f"Conv1D {padding} {shown}", lambda L, p=padding, m=more: L.Conv1D(4, 3, padding=p, **m), least=5)
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

for padding, stride in (("valid", 2), ("same", 2)):  # Keras on torch differs from TensorFlow in other forms
    sequential(
        f"Conv1DTranspose {padding}",
        lambda L, padding=padding, stride=stride: L.Conv1DTranspose(4, 4, strides=stride, padding=padding),
        lambda L: L.LSTM(3, return_sequences=True),
    )
