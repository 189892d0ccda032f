"""Convolutions, embeddings and products inside cycles in reduced precision: the bits of a NumPy model, on every
instruction set and however the model is run."""

import itertools
import math

import numpy as np
import pytest
import rounded_model as rounded
from graph_builder import GraphBuilder

import fastrnn
from fastrnn.compile import lowering
from fastrnn.compile import weights as weights_module
from fastrnn.errors import FastRNNWarning, ModelFormatError, ShapeError, UnsupportedError
from fastrnn.graph import artifact, reference
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.graph.precision import held_by, meant_by
from fastrnn.graph.windows import phases_of
from fastrnn.machine import _isa
from fastrnn.model import Model
from fastrnn.passes import precision_of, set_precision
from fastrnn.runtime._executor import Program

PRECISIONS = ("bfloat16", "int8", "int8-a16")
ISAS = _isa.isa_info()["available"]
FUSED = [isa for isa in ISAS if isa != "baseline"]  # baseline rounds a multiply-add twice


def real(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(graph, x, isa, shape):
    """The engine's answer on one instruction set."""
    out = np.full(shape, 77, np.float32)
    Program(lowering.lower(graph, "run", lowering.Weights(isa))).run([x], [out], x.shape[0], x.shape[-1])
    return out


def reduced(graph, precision):
    """The graph with that precision in every layer, even in one that gains nothing by it."""
    return set_precision(graph, dict.fromkeys(precision_of(graph), precision))


# ---- convolutions ----------------------------------------------------------------------------------------------------

CASES = {  # channels, maps, kernel, strides, dilations, pads, groups, sizes
    "1-d": (5, 7, (3,), (1,), (1,), (0, 0), 1, (9,)),
    "causal": (5, 7, (3,), (1,), (2,), (4, 0), 1, (9,)),
    "same": (16, 16, (5,), (1,), (1,), (2, 2), 1, (150,)),
    "pointwise": (33, 20, (1,), (1,), (1,), (0, 0), 1, (25,)),
    "strided": (4, 40, (8,), (4,), (1,), (3, 2), 1, (61,)),
    "groups": (12, 20, (3,), (2,), (1,), (1, 1), 4, (30,)),
    "2-d": (3, 18, (3, 4), (2, 1), (1, 2), (1, 3, 0, 2), 1, (7, 20)),
    "2-d groups": (8, 6, (2, 3), (1, 2), (2, 1), (2, 0, 0, 1), 2, (6, 15)),
    "wide": (70, 5, (3,), (1,), (1,), (1, 1), 1, (12,)),
}


def conv_graph(case, op="conv", bias=True):
    C, M, kernel, strides, dilations, pads, groups, L = case
    b = GraphBuilder(op)
    x = b.input("x", "float32", BATCH, C, *L[:-1], TIME)
    shape = (M, C // groups, *kernel) if op == "conv" else (C, M // groups, *kernel)
    more = {"output_padding": tuple(s - 1 for s in strides)} if op == "conv_transpose" else {}
    inputs = [b.constant("W", real(1, *shape)), *([b.constant("bias", real(2, M))] if bias else [])]
    return b.done(b.add(op, x, *inputs, strides=strides, dilations=dilations, pads=pads, groups=groups, **more))


def conv_model(case, x, W, scale, bias, precision):
    """The answer of a convolution, window by window."""
    _, M, kernel, strides, dilations, pads, groups, _ = case
    n = len(kernel)
    counts = [
        (x.shape[2 + i] + pads[i] + pads[n + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1
        for i in range(n)
    ]
    seen = rounded.windows(x, kernel, strides, dilations, pads[:n], counts)
    taps = np.moveaxis(W.reshape(groups, M // groups, *W.shape[1:]), 2, -1)
    return joined(*by_column(seen, taps, kernel, strides, dilations), scale, bias, precision)


def by_column(seen, W, kernel, strides, dilations):
    """Both with the order of taps in which two axes are summed: by column, then by row, if patches overlap."""
    if len(kernel) < 2 or kernel[0] == 1 or dilations[1] != 1 or strides[1] >= kernel[1]:
        return seen, W
    return seen.swapaxes(-2, -3), W.swapaxes(-2, -3)


def joined(seen, W, scale, bias, precision):
    """Windows [B, positions.., taps.., C] by W [groups, maps, taps.., C/groups]: [B, all maps, positions..]."""
    groups, maps, taps, C = W.shape[0], W.shape[1], W.shape[2:-1], W.shape[-1]
    positions, parts = seen.shape[: -len(taps) - 1], []
    for g in range(groups):
        rows = seen[..., g * C : (g + 1) * C].reshape(math.prod(positions), -1)
        own = slice(g * maps, (g + 1) * maps)
        columns = W[g].reshape(maps, -1).T
        part = (None if a is None else a[own] for a in (scale, bias))
        parts.append(rounded.product(rows, columns, *part, precision).reshape(*positions, maps))
    return np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)


def transposed_model(case, x, W, scale, bias, precision, shape):
    """The answer of a transposed convolution: for each remainder of the position, a convolution with some taps."""
    C, M, kernel, strides, dilations, pads, groups, _ = case
    parts = np.moveaxis(W.reshape(groups, C // groups, M // groups, *kernel), 1, -1)
    y = np.full(shape, np.nan, np.float32)
    for chosen in itertools.product(*(phases_of(k, strides[i], dilations[i], pads[i]) for i, k in enumerate(kernel))):
        where = tuple(slice(first, None, strides[i]) for i, (first, _, _) in enumerate(chosen))
        part = parts
        for i, (_, _, taps) in enumerate(chosen):
            part = np.take(part, taps, axis=2 + i)
        counts = y[(0, 0, *where)].shape
        axes = [axis for _, axis, _ in chosen]
        one, apart = [1] * len(axes), [a.dilation for a in axes]
        seen = rounded.windows(x, [a.taps for a in axes], one, apart, [a.pad for a in axes], counts)
        ordered = by_column(seen, part, [a.taps for a in axes], one, apart)
        y[(slice(None), slice(None), *where)] = joined(*ordered, scale, bias, precision)
    return y


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
@pytest.mark.parametrize("name", CASES)
def test_convolutions_have_the_bits_of_the_model(name, op, precision):
    case = CASES[name]
    graph = reduced(conv_graph(case, op, bias=name != "wide"), precision)
    x = real(3, 2, case[0], *case[-1])
    x[1] *= 1e-3  # a batch row of another size
    (exact,) = reference.run(graph, {"x": x})
    W = graph.constants[graph.nodes[0].inputs[1]]
    scale = graph.constants.get(f"{graph.nodes[0].inputs[1].split('.')[0]}.scale")
    bias = graph.constants.get("bias")
    if op == "conv":
        want = conv_model(case, x, W, scale, bias, precision)
    else:
        want = transposed_model(case, x, W, scale, bias, precision, exact.shape)
    for isa in FUSED:
        got = run(graph, x, isa, exact.shape)
        np.testing.assert_array_equal(got, want, err_msg=isa)
        for row in (0, 1):
            assert run(graph, x[row : row + 1], isa, (1, *exact.shape[1:])).tobytes() == got[row].tobytes()
    limit = {"bfloat16": 2e-2, "int8": 4e-2, "int8-a16": 1e-3}[precision] * np.sqrt(W.size / case[1])
    for row in (0, 1):
        assert np.abs(want[row] - exact[row]).max() < limit * max(np.abs(x[row]).max(), 1e-3)
    if "baseline" in ISAS:
        np.testing.assert_allclose(run(graph, x, "baseline", exact.shape), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_its_windows_nan_and_no_other(bad, precision, isa):
    graph = reduced(conv_graph(CASES["groups"]), precision)
    x = real(3, 2, 12, 30)
    good = run(graph, x, isa, (2, 20, 15))
    x[1, 4, 12] = bad  # group 1, in the windows of positions 6 (11 to 13)
    got = run(graph, x, isa, (2, 20, 15))
    assert np.isnan(got[1, 5:10, 6]).all()
    got[1, 5:10, 6] = good[1, 5:10, 6]
    assert got.tobytes() == good.tobytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_convolutions_stream_with_the_bits_of_a_whole_run(precision):
    b = GraphBuilder("stack")
    x = b.input("x", "float32", BATCH, 6, TIME)
    how = {"groups": 1, "dilations": (1,)}
    W = b.constant("W1", real(1, 24, 6, 3) / 4), b.constant("b1", real(2, 24))
    y = b.add("conv", x, *W, strides=(1,), pads=(2, 0), **how)
    y = b.add("unary", y, fn="tanh", alpha=0.0, beta=0.0)
    y = b.add("conv", y, b.constant("W2", real(3, 16, 24, 4) / 10), strides=(2,), pads=(2, 0), **how)
    up = b.constant("W3", real(4, 16, 5, 4) / 8)
    y = b.add("conv_transpose", y, up, strides=(2,), pads=(0, 2), output_padding=(0,), **how)
    model = Model(reduced(b.done(y), precision))
    assert model.precision == precision
    x = real(7, 3, 6, 40)
    whole = model(x)
    for cuts in ((0, 40), (0, 1, 2, 3, 10, 27, 40), tuple(range(41))):
        stream = model.stream(3)
        steps = np.ascontiguousarray(np.moveaxis(x, 2, 1))
        parts = [stream.push(np.ascontiguousarray(steps[:, a:b])) for a, b in itertools.pairwise(cuts)]
        got = np.moveaxis(np.concatenate([p for p in parts if p.size], axis=1), 1, 2)
        assert got.tobytes() == whole[:, :, : got.shape[2]].tobytes()
        assert got.shape[2] >= 36
    for row in range(3):
        assert model(x[row : row + 1]).tobytes() == whole[row : row + 1].tobytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_ragged_pools_and_snapshots_of_convolutions(precision):
    """Streams that begin and pause at any time, and go on in another pool, have the bits of their own whole runs."""
    b = GraphBuilder("causal")
    x = b.input("x", "float32", BATCH, 6, TIME)
    W = b.constant("W1", real(1, 40, 6, 3) / 4), b.constant("b1", real(2, 40))
    y = b.add("conv", x, *W, strides=(1,), dilations=(2,), pads=(4, 0), groups=1)
    y = b.add("conv", y, b.constant("W2", real(3, 16, 20, 2) / 10), strides=(1,), dilations=(1,), pads=(1, 0), groups=2)
    model = Model(reduced(b.done(y), precision))
    x = real(7, 4, 30, 6) * np.float32([[[1]], [[1e-4]], [[300]], [[1]]])
    want = [np.moveaxis(model(np.ascontiguousarray(np.moveaxis(x[row : row + 1], 1, 2))), 2, 1)[0] for row in range(4)]
    pool = model.pool(6)
    slots, done = [pool.open() for _ in range(4)], [0] * 4
    rng = np.random.default_rng(0)
    while min(done) < 30:
        rows = [row for row in range(4) if done[row] < 30 and (rng.random() < 0.6 or min(done) == done[row])]
        got = pool.step([slots[row] for row in rows], np.stack([x[row, done[row]] for row in rows]))
        for row, answer in zip(rows, got, strict=True):
            assert answer.tobytes() == want[row][done[row]].tobytes()
            done[row] += 1
        if sum(done) % 5 == 0:
            row = int(rng.integers(4))
            blob = pool.snapshot(slots[row])
            pool.close(slots[row])
            slots[row] = pool.restore(blob)


def test_a_depthwise_convolution_stays_float32():
    graph = conv_graph((48, 48, (5,), (1,), (1,), (2, 2), 48, (20,)))
    (name,) = precision_of(graph)
    with pytest.warns(FastRNNWarning, match="changes no layer"):
        kept = set_precision(graph, "int8")
    assert any("stays float32: each of its sums has the taps of one channel" in note for note in kept.notes)
    with pytest.raises(UnsupportedError, match=r"taps of one channel.*leave it float32"):
        set_precision(graph, {name: "int8"})


def test_scales_of_a_transposed_convolution_are_those_of_its_maps():
    W = real(0, 6, 4, 3)
    q, scale = held_by("conv_transpose", W, "int8", groups=2)
    assert q.shape == W.shape
    assert scale.shape == (8,)
    np.testing.assert_array_equal(scale, np.abs(W.reshape(2, 3, 4, 3)).max(axis=(1, 3)).reshape(-1) / np.float32(127))
    back = meant_by("conv_transpose", q, "int8", scale, groups=2)
    assert np.abs(back - W).max() <= scale.max() * 0.501


# ---- embeddings ------------------------------------------------------------------------------------------------------


def embedding(rows=50, size=37, from_zero=False, dtype="int64"):
    b = GraphBuilder("embedding")
    index = b.input("i", dtype, BATCH, TIME)
    y = b.add("gather", b.constant("table", real(1, rows, size)), index, axis=0, from_zero=from_zero)
    return b.done(y)


@pytest.mark.parametrize("dtype", ["int64", "int32"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_embeddings_are_widened(precision, dtype):
    graph = reduced(embedding(dtype=dtype), precision)
    table = graph.constants[graph.nodes[0].inputs[0]]
    assert table.itemsize == (2 if precision == "bfloat16" else 1)
    scale = graph.constants.get("table.scale")
    wide = meant_by("gather", table, precision, scale)
    index = np.random.default_rng(0).integers(-50, 50, (3, 20)).astype(dtype)
    for isa in ISAS:
        got = run(graph, index, isa, (3, 20, 37))
        assert got.tobytes() == wide[index].tobytes()
    np.testing.assert_allclose(reference.run(graph, {"i": index})[0], wide[index], rtol=1e-6)
    assert np.abs(wide - real(1, 50, 37)).max() < 0.02
    model = Model(graph)
    stream = model.stream(3)
    assert np.stack([stream.step(index[:, t]) for t in range(20)], axis=1).tobytes() == wide[index].tobytes()
    with pytest.raises(fastrnn.FastRNNError, match="index 50 is outside"):
        model(np.full((1, 1), 50, dtype))


def test_only_rows_of_constant_tables_are_layers():
    b = GraphBuilder("g")
    x, i = b.input("x", "float32", 8, 4), b.input("i", "int64", BATCH)
    live = b.add("gather", x, i, axis=0)
    ints = b.add("gather", b.constant("ints", np.arange(8).reshape(4, 2)), i, axis=0)
    line = b.add("gather", b.constant("line", real(0, 8)), i, axis=0)
    across = b.add("gather", b.constant("across", real(1, 3, 8)), i, axis=1, name="picked")
    graph = b.done(live, ints, line, across)
    assert list(precision_of(graph)) == ["node_picked"]
    with pytest.raises(UnsupportedError, match="it picks columns of its table, not rows"):
        set_precision(graph, {"node_picked": "int8"})


@pytest.mark.parametrize(("axis", "dims"), [(1, (4, 5)), (0, (4,))])
def test_other_gathers_in_reduced_precision_are_refused(axis, dims):
    b = GraphBuilder("g")
    table = b.constant("table", np.ones(dims, np.uint16))
    with pytest.raises(ShapeError, match="only rows of a table"):
        b.add("gather", table, b.input("i", "int64", BATCH), axis=axis, precision="bfloat16")


def test_scales_of_the_wrong_size_are_refused():
    b = GraphBuilder("g")
    table, scale = b.constant("table", np.ones((4, 5), np.int8)), b.constant("scale", real(0, 5))
    with pytest.raises(ShapeError, match=r"scale must be \[4\]"):
        b.add("gather", table, b.input("i", "int64", BATCH), scale, axis=0, precision="int8")
    x, W = b.input("x", "float32", BATCH, 5, TIME), b.constant("W", np.ones((6, 5, 3), np.int8))
    how = {"strides": (1,), "dilations": (1,), "pads": (0, 0), "groups": 1, "precision": "int8"}
    with pytest.raises(ShapeError, match=r"scale must be \[6\]"):
        b.add("conv", x, W, None, scale, **how)
    with pytest.raises(ShapeError, match="need a scale for each column"):
        b.add("conv", x, W, **how)


# ---- linear layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["float32", *PRECISIONS])
def test_linear_layers_of_many_streams_share_their_weights(precision, threads):
    """A step of 150 streams reads rows that are apart by the steps of the caller's array."""
    named = {"a.weight": real(1, 70, 33) / 6, "a.bias": real(2, 70)}
    (name,) = (info.name for info in fastrnn.load(named, layers=["linear:a"]).layers)
    wanted = None if precision == "float32" else {name: precision}
    model = fastrnn.load(named, layers=["linear:a"], threads=threads, precision=wanted)
    x = real(3, 150, 9, 33)
    y = model(x)
    held = model.graph.nodes[0].inputs
    if precision != "float32" and _isa.isa_info()["active"] != "baseline":
        W, bias, scale = ([model.graph.constants.get(i or "") for i in held[1:]] + [None])[:3]
        np.testing.assert_array_equal(y.reshape(-1, 70), rounded.product(x.reshape(-1, 33), W, scale, bias, precision))
    stream = model.stream(150)
    for a, b in ((0, 1), (1, 2), (2, 5), (5, 9)):
        assert stream.push(np.ascontiguousarray(x[:, a:b])).tobytes() == np.ascontiguousarray(y[:, a:b]).tobytes()
    for row in (0, 77, 149):
        assert model(x[row : row + 1]).tobytes() == y[row : row + 1].tobytes()


@pytest.mark.parametrize(("precision", "few", "many"), [("int8", 8, 16), ("int8-a16", 64, 96)])
def test_few_columns_stay_float32(precision, few, many):
    with pytest.warns(FastRNNWarning, match="changes no layer"):
        thin = fastrnn.load({"a.weight": real(1, few, 2048)}, layers=["linear:a"], precision=precision)
    assert any(f"its {few} columns are too few" in note for note in thin.notes)
    wide = fastrnn.load({"a.weight": real(1, many, 2048)}, layers=["linear:a"], precision=precision)
    assert wide.precision == precision


# ---- files and names -------------------------------------------------------------------------------------------------


def tagger(precision=None):
    """An embedding, a convolution and a linear layer."""
    rng = np.random.default_rng(2)
    named = {"emb.weight": rng.normal(size=(300, 64)), "conv.weight": rng.normal(size=(96, 64, 3)) / 14,
             "conv.bias": rng.normal(size=96), "out.weight": rng.normal(size=(40, 96)) / 10}  # fmt: skip
    words = ["embedding:emb", "conv1d:conv(padding=causal)", "relu", "linear:out"]
    return fastrnn.load({k: v.astype(np.float32) for k, v in named.items()}, layers=words, precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_files_hold_small_convolutions_and_embeddings(precision, tmp_path):
    exact = tagger()
    model = tagger(dict.fromkeys([info.name for info in exact.layers], precision))
    assert model.precision == precision
    index = np.random.default_rng(0).integers(0, 300, (2, 30))
    y = model(index)
    assert 0 < np.abs(y - exact(index)).max() < 0.15
    model.save(tmp_path / "small.fastrnn")
    exact.save(tmp_path / "exact.fastrnn")
    sizes = [(tmp_path / f"{name}.fastrnn").stat().st_size for name in ("small", "exact")]
    assert sizes[0] < sizes[1] * (0.58 if precision == "bfloat16" else 0.4)
    loaded = fastrnn.load(tmp_path / "small.fastrnn")
    assert loaded.fingerprint == model.fingerprint != exact.fingerprint
    assert loaded(index).tobytes() == y.tobytes()
    assert model.parameters == exact.parameters
    stream, pool = loaded.stream(2), model.pool(5)
    slots = [pool.open() for _ in range(2)]
    for t in range(30):
        assert stream.step(index[:, t]).tobytes() == y[:, t].tobytes()
        assert pool.step(slots, index[:, t]).tobytes() == y[:, t].tobytes()
    blob = stream.snapshot()
    with pytest.raises(fastrnn.StateError):
        exact.stream(2).restore(blob)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_verify_knows_the_tolerance(precision):
    model = tagger(dict.fromkeys([info.name for info in tagger().layers], precision))
    assert fastrnn.verify(model, "reference", sizes=[(2, 9)]).ok


def test_mixed_precisions_by_name():
    names = [info.name for info in tagger().layers]
    model = tagger({names[0]: "int8", names[1]: "bfloat16"})
    assert model.precision == {names[0]: "int8", names[1]: "bfloat16", names[2]: "float32"}
    assert [info.text.split()[-1] for info in model.layers[:2]] == ["int8", "bfloat16"]


def test_weights_that_a_cache_has_are_not_widened(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    weights = {"W": rng.normal(size=(512, 200)) / 16, "R": rng.normal(size=(512, 128)) / 16}
    fastrnn.from_arrays("lstm", **weights, precision="int8").save(tmp_path / "small.fastrnn")
    x = real(1, 1, 5, 200)
    y = fastrnn.load(tmp_path / "small.fastrnn", cache=tmp_path / "cache")(x)
    monkeypatch.setattr(weights_module, "meant_by", None)
    assert fastrnn.load(tmp_path / "small.fastrnn", cache=tmp_path / "cache")(x).tobytes() == y.tobytes()


def test_ops_without_weights_of_their_own_are_refused_by_name():
    b = GraphBuilder("g")
    x = b.input("x", "float32", BATCH, TIME, 8)
    wide = b.add("linear", x, b.constant("W", real(0, 8, 8)), activation=None, alpha=0.0, beta=0.0)
    q = b.add("reshape", wide, dims=(BATCH, 1, TIME, 8))
    how = {"scale": 0.3, "softcap": 0.0, "causal": True, "window": 0, "offset": 0, "safe": False}
    graph = b.done(b.add("attention", q, q, q, **how))
    assert len(precision_of(graph)) == 1
    name = next(n.name for n in graph.nodes if n.op == "attention")
    with pytest.raises(UnsupportedError, match=r"\(attention\) has no precision: only cells, linear layers, conv"):
        set_precision(graph, {name: "int8"})
    with pytest.raises(ModelFormatError, match="has no layer 'nothing' with products"):
        set_precision(graph, {"nothing": "int8"})


def test_damaged_weights_of_convolutions_are_refused(tmp_path):
    graph = reduced(conv_graph(CASES["1-d"]), "int8")
    for name, value in (("W.scale", np.nan), ("W.scale", -1)):
        constants = dict(graph.constants)
        constants[name] = constants[name].copy()
        constants[name].flat[0] = value
        with pytest.raises(ModelFormatError, match="negative or not finite"):
            artifact.load(artifact.to_bytes(graph.replace(constants=constants)))
