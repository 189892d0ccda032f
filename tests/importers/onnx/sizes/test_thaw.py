"""Frozen sizes read again: what thaws, what must stay frozen, and that the file's own numbers come back."""

import re

import numpy as np
import pytest
from onnx import numpy_helper
from onnx_text import END, RNN, agrees_with_onnxruntime, dims, model, noise

import fastrnn
from fastrnn.errors import ModelFormatError, ShapeError
from fastrnn.graph import reference
from fastrnn.importers.onnx import import_onnx
from fastrnn.importers.onnx.sizes.evidence import Policy

RESHAPES = [
    # (input of the RNN [T, batch, 3], what its output [T, 1, batch, 2] is reshaped to, dims that must come out)
    ((19, 4), [19, 4, 2], ["time", "batch", 2]),
    ((19, 1), [19, 1, 2], ["time", "batch", 2]),
    ((19, 4), [19, 8], ["time", "2*batch"]),
    ((19, 4), [76, 2], ["batch*time", 2]),
    ((19, 4), [-1, 2], ["batch*time", 2]),
    ((19, 4), [19, -1], ["time", "2*batch"]),
    ((19, 4), [0, 0, -1], ["time", 1, "2*batch"]),
    ((5, 5), [5, 5, 2], ["time", "batch", 2]),
    ((19, 1), [19, 2], ["batch*time", 2]),  # as a head over all steps of all rows has it
    ((19, 2), [19, 2, 2], ["time", "batch", 2]),
    ((2, 2), [2, 2, 2], ["time", "batch", 2]),
    ((19, 6), [19, 3, 2, 2], None),  # six rows made of three times two: no size of the input says so
]


@pytest.mark.parametrize(("sizes", "target", "want"), RESHAPES, ids=[f"{s}-{t}" for s, t, _ in RESHAPES])
def test_reshape(sizes, target, want):
    T, B = sizes
    made = model(
        f"(float[{T},{B},3] x) => (float[?] z)",
        "y, h = RNN <hidden_size = 2> (x, W, R)\n z = Reshape(y, s)",
        s=np.int64(target),
    )
    del made.graph.output[0].type.tensor_type.shape.dim[:]
    made.graph.output[0].type.tensor_type.ClearField("shape")
    graph = import_onnx(made)
    agrees_with_onnxruntime(made, x=noise(T, B, 3))
    if want is not None:
        assert dims(graph, "z") == want
        assert dims(graph, "x") == ["time", "batch", 3]


def test_a_split_of_the_batch_keeps_its_fixed_factor_or_stays():
    """19 x 6 rows seen as [19, 3, 2, 2]: either batch is a multiple of the fixed factor, or it is frozen."""
    made = model(
        "(float[19,6,3] x) => (float[19,3,2,2] z)",
        "y, h = RNN <hidden_size = 2> (x, W, R)\n z = Reshape(y, s)",
        s=np.int64([19, 3, 2, 2]),
    )
    graph = import_onnx(made)
    assert dims(graph, "x") == ["time", 6, 3]
    assert dims(graph, "z") == ["time", 3, 2, 2]


def test_two_ones_are_ambiguous_and_freeze():
    """[T, 1 (direction), 1 (batch), 2] to [T, 1, 1, 1, 2]: which one is the batch can't be known."""
    made = model(
        "(float[9,1,3] x) => (float[9,1,1,1,2] z)",
        "y, h = RNN <hidden_size = 2> (x, W, R)\n z = Reshape(y, s)",
        s=np.int64([9, 1, 1, 1, 2]),
    )
    graph = import_onnx(made)
    assert dims(graph, "x") == ["time", 1, 3]
    assert any("stays 1" in n for n in graph.notes)
    agrees_with_onnxruntime(made, x=noise(9, 1, 3))


def test_an_open_length_frozen_inside_thaws_behind_a_recurrent_node():
    """PyTorch's exporter: the input is open, the Reshape behind the RNN has the example's length."""
    made = model(
        "(float[t,b,3] x) => (float[19,b,2] z)",
        "y, h = RNN <hidden_size = 2> (x, W, R)\n z = Reshape(y, s)",
        s=np.int64([19, -1, 2]),
    )
    graph = import_onnx(made)
    assert dims(graph, "z") == ["time", "batch", 2]
    x = noise(4, 3, 3)
    (got,) = reference.run(graph, {"x": x})
    (want,) = reference.run(import_onnx(model("(float[t,b,3] x) => (float[t,1,b,2] y)", RNN.format(x="x"))), {"x": x})
    np.testing.assert_array_equal(got, want[:, 0])


def test_an_open_length_in_a_number_without_a_recurrent_node_is_cut_into_blocks():
    """Nothing says that 3 was the length: at nine rows the file gives [3, 15], not [9, 5]."""
    made = model("(float[t,5] x) => (float[3,m] z)", "z = Reshape(x, s)", s=np.int64([3, -1]))
    agrees_with_onnxruntime(made, x=noise(9, 5))


def test_a_true_factor_of_an_open_size_is_no_frozen_one():
    made = model("(float[t,6] x) => (float[m,3] z)", "z = Reshape(x, s)", s=np.int64([-1, 3]))
    graph = import_onnx(made)
    assert dims(graph, "z") == ["2*batch", 3]


SLICES = [
    # (starts, ends, steps, dims of the slice of [T=19, B=4, 3] along time, numpy's key)
    (0, END, 1, "time", np.s_[:]),
    (1, END, 1, "time-1", np.s_[1:]),
    (1, -1, 1, "time-2", np.s_[1:-1]),
    (-1, 2**31 - 1, 1, 1, np.s_[-1:]),
    (-3, -1, 1, 2, np.s_[-3:-1]),
    (0, -2, 1, "time-2", np.s_[:-2]),
    (-1, -(2**63), -1, "time", np.s_[::-1]),
    (0, END, 2, "(time+1)//2", np.s_[::2]),
    (18, -(2**31), -1, "time", np.s_[::-1]),
]


@pytest.mark.parametrize(("start", "end", "step", "want", "key"), SLICES)
@pytest.mark.parametrize("T", [19, 23])
def test_slice(start, end, step, want, key, T):
    made = model(
        "(float[19,4,3] x) => (float[n,1,4,2] y, float[n,4,3] z)",
        "z = Slice(x, a, b, c, d)\n y, h = RNN <hidden_size = 2> (x, W, R)",
        a=np.int64([start]),
        b=np.int64([end]),
        c=np.int64([0]),
        d=np.int64([step]),
    )
    graph = import_onnx(made)
    assert dims(graph, "z")[0] == want
    x = noise(T, 2, 3)
    np.testing.assert_array_equal(reference.run(graph, {"x": x})[1], x[key].astype(np.float64))


@pytest.mark.parametrize(("index", "key"), [(-1, -1), (0, 0), (-2, -2)])
def test_gather_of_one_step(index, key):
    made = model(
        "(float[19,4,3] x) => (float[4,3] z, float[19,1,4,2] y)",
        "z = Gather <axis = 0> (x, i)\n y, h = RNN <hidden_size = 2> (x, W, R)",
        i=np.int64(index),
    )
    x = noise(11, 2, 3)
    np.testing.assert_array_equal(reference.run(import_onnx(made), {"x": x})[0], x[key].astype(np.float64))


def test_indices_that_turn_time_around():
    made = model(
        "(float[5,4,3] x) => (float[5,1,4,2] y)",
        "z = Gather <axis = 0> (x, i)\n y, h = RNN <hidden_size = 2> (z, W, R)",
        i=np.int64([4, 3, 2, 1, 0]),
    )
    graph = import_onnx(made)
    assert dims(graph, "x") == ["time", "batch", 3]
    agrees_with_onnxruntime(made, x=noise(5, 4, 3))


def test_other_indices_hold_time_fast():
    made = model(
        "(float[5,4,3] x) => (float[3,1,4,2] y)",
        "z = Gather <axis = 0> (x, i)\n y, h = RNN <hidden_size = 2> (z, W, R)",
        i=np.int64([4, 0, 2]),
    )
    graph = import_onnx(made)
    assert dims(graph, "x") == [5, "batch", 3]
    agrees_with_onnxruntime(made, x=noise(5, 4, 3))


def test_a_table_over_time_holds_it_fast_and_a_uniform_one_does_not():
    body = "p = Add(x, table)\n y, h = RNN <hidden_size = 2> (p, W, R)"
    signature = "(float[6,4,3] x) => (float[6,1,4,2] y)"
    position = model(signature, body, table=noise(6, 1, 3))
    assert dims(import_onnx(position), "x") == [6, "batch", 3]
    agrees_with_onnxruntime(position, x=noise(6, 4, 3))
    uniform = model(signature, body, table=np.full((6, 1, 3), 0.5, np.float32))
    assert dims(import_onnx(uniform), "x") == ["time", "batch", 3]
    agrees_with_onnxruntime(uniform, x=noise(6, 4, 3))


def test_a_batch_of_one_that_is_really_broadcast_stays_one():
    made = model(
        "(float[6,1,3] x) => (float[6,1,4,2] y)",
        "p = Add(x, table)\n y, h = RNN <hidden_size = 2> (p, W, R)",
        table=noise(1, 4, 3),
    )
    assert dims(import_onnx(made), "x") == ["time", 1, 3]
    agrees_with_onnxruntime(made, x=noise(6, 1, 3))


def test_two_inputs_share_batch_and_time():
    made = model(
        "(float[6,4,3] x, float[6,4,3] u) => (float[6,1,4,2] y)",
        "p = Add(x, u)\n y, h = RNN <hidden_size = 2> (p, W, R)",
    )
    graph = import_onnx(made)
    assert dims(graph, "x") == dims(graph, "u") == ["time", "batch", 3]


def test_a_length_that_becomes_a_number_follows():
    """The file divides by the length that it asks for, as a float: by whatever the length is."""
    made = model(
        "(float[6,4,3] x) => (float[6,1,4,2] y)",
        "s = Shape(x)\n n = Gather <axis = 0> (s, i)\n f = Cast <to = 1> (n)\n p = Div(x, f)\n"
        "y, h = RNN <hidden_size = 2> (p, W, R)",
        i=np.int64(0),
    )
    graph = import_onnx(made)
    assert dims(graph, "x") == ["time", "batch", 3]
    agrees_with_onnxruntime(made, x=noise(6, 4, 3))
    x = noise(9, 4, 3)
    plain = import_onnx(model("(float[6,4,3] x) => (float[6,1,4,2] y)", RNN.format(x="x")))
    np.testing.assert_allclose(
        reference.run(graph, {"x": x})[0], reference.run(plain, {"x": x.astype(np.float64) / 9})[0], atol=1e-12
    )


def test_an_output_declared_otherwise_freezes_what_was_thawed():
    made = model("(float[6,4,3] x) => (float[7,1,4,2] y)", RNN.format(x="x"))
    assert dims(import_onnx(made), "x") == [6, "batch", 3]


def test_sizes_that_contradict_each_other():
    made = model("(float[6,4,5] x) => (float[6,1,4,2] y)", RNN.format(x="x"))
    with pytest.raises(ModelFormatError, match="features of X must fit the weights W"):
        import_onnx(made)


def test_without_recurrence_only_open_axes_are_batch_and_time():
    graph = import_onnx(model("(float[n,t,6,7] x) => (float[n,t,6,7] y)", "y = Relu(x)"))
    assert dims(graph, "x") == ["batch", "time", 6, 7]
    assert dims(import_onnx(model("(float[2,7] x) => (float[2,7] y)", "y = Relu(x)")), "x") == [2, 7]


WORDS = """
    flat = Reshape(x, words) t = Transpose <perm = [1, 0, 2]> (flat) {first}
    e = Squeeze(h, i0) u = Reshape(e, {target}) v = Transpose <perm = [1, 0, 2]> (u)
    y, g = RNN <hidden_size = 2> (v, V, R)"""


@pytest.mark.parametrize("sizes", ["2,9", "n,t", "2,t", "4,3"])
def test_the_inner_of_two_recurrences_keeps_its_length(sizes):
    """Words made of characters: the time is the words', the three characters are the file's own number."""
    n, t = (int(s) if s.isdigit() else s for s in sizes.split(","))
    constants = {"words": np.int64([-1, 3, 3]), "i0": np.int64([0]), "V": noise(1, 2, 2)}
    if isinstance(n, str) or isinstance(t, str):
        target = "Reshape(e, k)"
        body = "s = Shape(x) k0 = Slice(s, i0, i2, i0) k = Concat <axis = 0> (k0, i2)"
        constants["i2"] = np.int64([2])
        body = (body + WORDS).replace("Reshape(e, {target})", target)
    else:
        body = WORDS.format(first="{first}", target="k")
        constants["k"] = np.int64([n, t, 2])
    body = body.replace("{first}", "z, h = RNN <hidden_size = 2> (t, W, R)")
    made = model(f"(float[{n},{t},3,3] x) => (float[a,1,b,2] y)", body, **constants)
    graph = import_onnx(made)
    assert dims(graph, "x") == ["batch", "time", 3, 3]
    assert dims(graph, "y") == ["time", 1, "batch", 2]
    batch, time = (s if isinstance(s, int) else 4 for s in (n, t))
    agrees_with_onnxruntime(made, x=noise(batch, time, 3, 3))


TWO_LENGTHS = "y, h = RNN <hidden_size = 2> (x, W, R) z, g = RNN <hidden_size = 2> (u, W, R, , , h)"


def two_lengths(first, second):
    return model(f"(float[{first},b,3] x, float[{second},b,3] u) => (float[p,1,b,2] y, float[q,1,b,2] z)", TWO_LENGTHS)


def test_a_second_length_of_the_file_stays_its_own():
    graph = import_onnx(two_lengths(9, 5))
    assert (dims(graph, "x"), dims(graph, "u")) == (["time", "batch", 3], [5, "batch", 3])
    assert any("a model has one" in n for n in graph.notes)
    graph = import_onnx(two_lengths(5, "t"))
    assert (dims(graph, "x"), dims(graph, "u")) == ([5, "batch", 3], ["time", "batch", 3])


def test_equal_lengths_of_two_inputs_are_one():
    graph = import_onnx(two_lengths(9, 9))
    assert dims(graph, "x") == dims(graph, "u") == ["time", "batch", 3]
    assert "axis 0 of input 'u' is as long as axis 0 of input 'x': both are 9" in graph.notes


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (
            model("(float[n,t,6,m] x) => (float[n,t,6,m] y)", "y = Relu(x)"),
            r"axis 3 of input 'x' \('m'\) is a free size besides batch and time .*'n'\) is batch.*'t'\) is time",
        ),
        (two_lengths("source", "target"), r"axis 0 of input 'u' \('target'\) is a free size .*sizes= at load"),
    ],
)
def test_a_third_free_size_is_told_by_name(made, text):
    assert any(re.search(text, note) for note in import_onnx(made).notes)


def test_all_free_sizes_too_many_are_named():
    notes = import_onnx(model("(float[n,t,l,m] x) => (float[n,t,l,m] y)", "y = Relu(x)")).notes
    assert sum("is a free size besides batch and time" in note for note in notes) == 2


def test_first_axes_of_two_names_are_one_batch():
    graph = import_onnx(model("(float[n,t,4] x, float[m,t,4] u) => (float[n,t,4] y)", "y = Add(x, u)"))
    assert dims(graph, "x") == dims(graph, "u") == ["batch", "time", 4]
    assert any("('m')" in n and "('n')" in n and "one size: they meet" in n for n in graph.notes)
    graph = import_onnx(
        model("(float[n,t,4] x, float[m,4] u) => (float[n,t,4] y, float[m,4] z)", "y = Relu(x) z = Relu(u)")
    )
    assert (dims(graph, "x"), dims(graph, "u")) == (["batch", "time", 4], ["batch", 4])
    assert "axis 0 of input 'u' ('m') is the batch, as axis 0 of input 'x' ('n') is" in graph.notes


def test_shape_arithmetic_leaves_nothing_behind():
    made = model(
        "(float[b,t,3] x) => (float[b,t,2] z)",
        """xt = Transpose <perm = [1, 0, 2]> (x)
           s = Shape(x) n = Gather <axis = 0> (s, zero) n1 = Unsqueeze(n, axes) q = Concat <axis = 0> (one, n1, two)
           h0 = ConstantOfShape(q)
           y, h = RNN <hidden_size = 2> (xt, W, R, , , h0)
           yt = Transpose <perm = [2, 0, 1, 3]> (y)
           ys = Shape(yt) a = Slice(ys, axes, end, axes) r = Concat <axis = 0> (a, minus)
           z = Reshape(yt, r)""",
        zero=np.int64(0),
        axes=np.int64([0]),
        one=np.int64([1]),
        two=np.int64([2]),
        end=np.int64([2]),
        minus=np.int64([-1]),
    )
    graph = import_onnx(made)
    assert dims(graph, "z") == ["batch", "time", 2]
    assert {n.op for n in graph.nodes} <= {"cell", "transpose", "reshape"}


@pytest.mark.parametrize(("beyond", "want"), [(3, "time"), (0, "time"), (-2, "time-2")])
def test_a_slice_to_a_computed_end(beyond, want):
    """x[: len(x) + 3] ends where x ends."""
    made = model(
        "(float[t,b,3] x) => (float[n,b,3] z, float[t,1,b,2] y)",
        "s = Shape(x) n = Gather <axis = 0> (s, i) e = Add(n, k) z = Slice(x, i, e, i) " + RNN.format(x="x"),
        i=np.int64([0]),
        k=np.int64([beyond]),
    )
    assert dims(import_onnx(made), "z")[0] == want
    agrees_with_onnxruntime(made, x=noise(6, 2, 3))


@pytest.mark.parametrize("where", ["Slice(x, zero, e, zero)", "Slice(x, e, far, zero)"])
def test_a_bound_of_a_number_less_the_length_counts_from_the_end(where):
    """x[: 7 - T] counts from the end if there are more than 7 steps; with 7 it is x[:0], which is refused."""
    made = model(
        "(float[t,b,3] x) => (float[n,b,3] z, float[t,1,b,2] y)",
        f"s = Shape(x) n = Gather <axis = 0> (s, zero) e = Sub(seven, n) z = {where} " + RNN.format(x="x"),
        zero=np.int64([0]),
        seven=np.int64([7]),
        far=np.int64([END]),
    )
    for steps in (8, 12):
        agrees_with_onnxruntime(made, x=noise(steps, 2, 3))
    loaded = fastrnn.from_onnx(made)
    for steps in (7, 5):
        with pytest.raises(ShapeError, match=f"time = {steps} is too small: .* where time-8 is 0 or more"):
            loaded.run(noise(steps, 2, 3))


def test_an_open_length_that_a_reshape_has_as_a_number():
    """F.multi_head_attention_forward, traced: [t, b, 4] -> [12, 2*b, 2], before a recurrent node names the time."""
    made = model(
        "(float[b,t,4] x) => (float[t,b,2] y)",
        """s = Transpose <perm = [1, 0, 2]> (x) all = Shape(s) n = Slice(all, one, end) n2 = Mul(n, end)
           to = Concat <axis = 0> (twelve, n2, end) r = Reshape(s, to) q = Reshape(r, all)
           y0, h = RNN <hidden_size = 2> (q, W, R) y = Squeeze(y0, one)""",
        one=np.int64([1]),
        end=np.int64([2]),
        twelve=np.int64([12]),
        F=4,
    )
    graph = import_onnx(made)
    assert dims(graph, "y") == ["time", "batch", 2]
    agrees_with_onnxruntime(made, x=noise(3, 12, 4))
    plain = import_onnx(
        model(
            "(float[b,t,4] x) => (float[t,b,2] y)",
            "q = Transpose <perm = [1, 0, 2]> (x) y0, h = RNN <hidden_size = 2> (q, W, R) y = Squeeze(y0, one)",
            one=np.int64([1]),
            F=4,
        )
    )
    x = noise(2, 5, 4)
    np.testing.assert_array_equal(reference.run(graph, {"x": x})[0], reference.run(plain, {"x": x})[0])


def test_zeros_of_the_examples_batch_expanded_to_an_open_batch():
    """onnxruntime runs this file with two rows alone."""
    made = model(
        "(float[t,b,3] x) => (float[t,1,b,2] y)",
        """s = Shape(x) n = Slice(s, one, two) q = Concat <axis = 0> (one, n, two) h0 = Expand(zeros, q)
           y, h = RNN <hidden_size = 2> (x, W, R, , , h0)""",
        one=np.int64([1]),
        two=np.int64([2]),
        zeros=np.zeros((1, 2, 2), np.float32),
    )
    graph = import_onnx(made)
    assert dims(graph, "x") == ["time", "batch", 3]
    agrees_with_onnxruntime(made, x=noise(5, 2, 3))
    x = noise(5, 3, 3)
    rows = [reference.run(graph, {"x": x[:, [k]]})[0] for k in range(3)]
    np.testing.assert_allclose(reference.run(graph, {"x": x})[0], np.concatenate(rows, 2), rtol=1e-12)


@pytest.mark.parametrize(("divisor", "thawed"), [(11.0, True), (10.0, False)])
def test_a_variance_over_all_steps_divides_by_as_many_as_there_are(divisor, thawed):
    """var and std by PyTorch's exporter: the mean of the squares times 12, over 11, both of the example's length."""
    made = model(
        "(float[2,12,3] x) => (float[2,2] v)",
        f"""s = Transpose <perm = [1, 0, 2]> (x) y, h = RNN <hidden_size = 2> (s, W, R) q = Squeeze(y, one)
           m = ReduceMean <axes = [0]> (q) d = Sub(q, m) e = Mul(d, d) w = ReduceMean <axes = [0], keepdims = 0> (e)
           n = Constant <value = float {{12.0}}> () k = Constant <value = float {{{divisor}}}> ()
           f = Mul(w, n) v = Div(f, k)""",
        one=np.int64([1]),
    )
    graph = import_onnx(made, policy=Policy(compared=not thawed))  # without that, 12 and 10 hold the length
    assert dims(import_onnx(made), "x") == ["batch", "time" if thawed else 12, 3]
    assert dims(graph, "x") == ["batch", "time", 3]
    agrees_with_onnxruntime(made, x=noise(2, 12, 3))
    weights = {n.name: numpy_helper.to_array(n).astype(float) for n in made.graph.initializer}
    x, h, steps = noise(3, 5, 3), np.zeros((3, 2)), []
    for t in range(5):
        h = np.tanh(x[:, t] @ weights["W"][0].T + h @ weights["R"][0].T)
        steps.append(h)
    want = np.var(steps, 0, ddof=1) if thawed else np.var(steps, 0) * 12 / divisor
    np.testing.assert_allclose(reference.run(graph, {"x": x})[0], want, rtol=1e-6)


def test_steps_that_are_rows_of_a_convolution_are_steps():
    """[t, 1, 4] -> [t, 1, 1, 4] for a convolution over features: its rows are the steps of the RNN behind it."""
    made = model(
        "(float[12,1,4] x) => (float[12,1,1,2] y)",
        """r = Reshape(x, rows) c = Conv (r, K) s = Reshape(c, steps) y, h = RNN <hidden_size = 2> (s, W, R)""",
        rows=np.int64([12, 1, 1, 4]),
        steps=np.int64([12, 1, 3]),
        K=np.ones((1, 1, 1, 2), np.float32),
    )
    graph = import_onnx(made)
    assert dims(graph, "x")[0] == "time"
    agrees_with_onnxruntime(made, x=noise(12, 1, 4))
