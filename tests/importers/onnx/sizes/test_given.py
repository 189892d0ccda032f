"""Sizes that a caller gives before the import, and files that need none: free dims of 0 and -1, a batch of one."""

import numpy as np
import onnx
import pytest
from onnx_text import dims, model, noise

import fastrnn
from fastrnn.cli.main import main
from fastrnn.errors import FastRNNError, ShapeError, UnsupportedError
from fastrnn.onnxruntime import InferenceSession, SessionOptions

ort = pytest.importorskip("onnxruntime")


def agrees(made, found, **feeds):
    """A loaded model gives onnxruntime's answers."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    want = ort.InferenceSession(made.SerializeToString(), options).run(None, feeds)
    got = found.run(**feeds)
    for a, b in zip(got if isinstance(got, tuple) else (got,), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def fixed_reshape(name="sequence_length"):
    """[batch, length, 4] -> [batch, 24, 2]: the file works at a length of 12 alone, and does not say so."""
    return model(
        f'(float[batch,"{name}",4] x) => (float[batch,24,2] y)'.replace('"', ""),
        "z = Reshape(x, s)\n y = Relu(z)",
        s=np.int64([0, 24, 2]),
    )


def odd_windows():
    """Two paths over an axis that meet only if 4 divides it."""
    return model(
        "(float[batch,2,width] x) => (float[batch,2,other] y)",
        "a = MaxPool <kernel_shape = [2], strides = [2], ceil_mode = 1> (x)\n"
        "b = MaxPool <kernel_shape = [2], strides = [2], ceil_mode = 1> (a)\n"
        'c = Resize <mode = "nearest"> (b, , twice)\n y = Add(a, c)',
        twice=np.float32([1, 1, 2]),
    )


CURED = {  # a file, the sizes that its error names, other ways to say them, feeds
    "reshape": (fixed_reshape, {"sequence_length": 12}, [{"x[1]": 12}, {"time": 12}], {"x": (3, 12, 4)}),
    "odd name": (
        lambda: renamed(fixed_reshape(), "unk__12 :'=/"),
        {"unk__12 :'=/": 12},
        [{"x[1]": 12}, {"time": 12}],
        {"x": (2, 12, 4)},
    ),
    "no name": (lambda: renamed(fixed_reshape(), ""), {"x[1]": 12}, [{"time": 12}], {"x": (1, 12, 4)}),
}


def renamed(made, name):
    for info in (*made.graph.input, *made.graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param == "sequence_length":
                dim.dim_param = name
    return made


@pytest.mark.parametrize("case", CURED)
def test_a_file_that_works_at_one_size_loads_with_it(case):
    make, sizes, others, shapes = CURED[case]
    made = make()
    feeds = {name: noise(*shape) for name, shape in shapes.items()}
    with pytest.raises(FastRNNError):
        fastrnn.from_onnx(made)
    for given in (sizes, *others):
        found = fastrnn.from_onnx(made, sizes=given)
        assert found.graph.inputs == tuple(feeds)
        agrees(made, found, **feeds)
        agrees(made, fastrnn.load(made.SerializeToString(), sizes=given), **feeds)


def test_an_error_names_the_sizes_that_cure_it(tmp_path, capsys):
    made = fixed_reshape("sequence_length")
    made.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.int64([0, 1024, 2]), "s"))
    made.graph.output[0].type.tensor_type.ClearField("shape")
    text = "say sizes={'sequence_length': 512}, or --size sequence_length=512"
    with pytest.raises(UnsupportedError) as error:
        fastrnn.from_onnx(made)
    assert text in str(error.value)
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    assert main(["inspect", str(path)]) != 0
    assert text in capsys.readouterr().err.replace("\n", " ")
    assert main(["inspect", str(path), "--size", "sequence_length=512"]) == 0
    agrees(made, fastrnn.load(path, sizes={"sequence_length": 512}), x=noise(2, 512, 4))


def test_a_wrong_name_lists_the_names_there_are():
    for made in (fixed_reshape(), odd_windows()):
        with pytest.raises(ShapeError, match="no input has the size 'hight'; there are 'batch'"):
            fastrnn.from_onnx(made, sizes={"hight": 12})
    with pytest.raises(ShapeError, match="'sequence_length', 'time'"):
        fastrnn.from_onnx(fixed_reshape(), sizes={"hight": 12})


@pytest.mark.parametrize("number", [0, -3, 2.5, True, "12"])
def test_a_size_is_a_whole_number(number):
    with pytest.raises(ShapeError, match="must be a whole number of 1 or more"):
        fastrnn.from_onnx(fixed_reshape(), sizes={"sequence_length": number})


def test_sizes_of_a_session_are_applied_before_the_import():
    made = fixed_reshape()
    made.graph.input[0].type.tensor_type.shape.dim[1].denotation = "STEPS"
    for give in ("by_name", "by_denotation"):
        options = SessionOptions()
        name = "sequence_length" if give == "by_name" else "STEPS"
        getattr(options, f"add_free_dimension_override_{give}")(name, 12)
        session = InferenceSession(made.SerializeToString(), options)
        assert session.get_inputs()[0].shape == ["batch", 12, 4]
        (got,) = session.run(None, {"x": noise(2, 12, 4)})
        np.testing.assert_array_equal(got, np.maximum(noise(2, 12, 4).reshape(2, 24, 2), 0))


def test_sizes_that_agree_at_multiples_are_taken_to_be_multiples():
    made = odd_windows()
    found = fastrnn.from_onnx(made)
    assert "axis 2 of input x: time is taken to be a multiple of 4" in found.notes
    for batch, width in ((1, 4), (3, 12), (2, 60)):
        agrees(made, found, x=noise(batch, 2, width))
    with pytest.raises(ShapeError, match="time = 6, but time must be a multiple of 4"):
        found.run(noise(1, 2, 6))
    fixed = fastrnn.from_onnx(made, sizes={"width": 8})
    assert dims(fixed.graph, "x") == ["batch", 2, 8]
    assert not any("multiple" in note for note in fixed.notes)
    agrees(made, fixed, x=noise(2, 2, 8))
    with pytest.raises(FastRNNError, match="broadcast"):
        fastrnn.from_onnx(made, sizes={"width": 6})


@pytest.mark.parametrize("value", [0, -1])
def test_dims_of_zero_and_minus_one_are_free(value):
    made = model(
        "(float[7,5,3] x) => (float[7,5,2] z)",
        "y, h = RNN <hidden_size = 2> (x, W, R)\n z = Squeeze(y, one)",
        one=np.int64([1]),
    )
    for info in (*made.graph.input, *made.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = info.type.tensor_type.shape.dim[1].dim_value = value
    found = fastrnn.from_onnx(made)
    assert dims(found.graph, "x") == ["time", "batch", 3]
    free = onnx.ModelProto()
    free.CopyFrom(made)
    for info in (*free.graph.input, *free.graph.output):
        for axis in (0, 1):
            info.type.tensor_type.shape.dim[axis].Clear()
    for steps, batch in ((1, 1), (9, 3)):
        agrees(free, found, x=noise(steps, batch, 3))
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -2
    with pytest.raises(fastrnn.ModelFormatError, match="dim -2"):
        fastrnn.from_onnx(made)


def test_an_empty_graph_name_loads():
    made = fixed_reshape()
    made.graph.name = ""
    found = fastrnn.load(made.SerializeToString(), sizes={"time": 12})
    agrees(made, found, x=noise(1, 12, 4))
    session = InferenceSession(made.SerializeToString(), sizes={"sequence_length": 12})
    assert session.run(None, {"x": noise(1, 12, 4)})[0].shape == (1, 24, 2)


def test_a_batch_that_must_be_one_is_fixed_with_a_note():
    """The batch has a free name, but Reshapes leave it out."""
    made = model(
        "(float[batch,6,4] x) => (float[1,12,2] y)", "z = Reshape(x, rows)\n y = Relu(z)", rows=np.int64([1, 12, 2])
    )
    made.graph.input[0].type.tensor_type.shape.dim[1].ClearField("value")
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 6
    found = fastrnn.from_onnx(made)
    assert dims(found.graph, "x") == [1, 6, 4]
    agrees(made, found, x=noise(1, 6, 4))
    with pytest.raises(ShapeError, match=r"axis 0 .* must be 1, got 2"):
        found.run(noise(2, 6, 4))


def test_one_sequence_under_a_free_name_keeps_its_length_free():
    """[batch, time, 3] -> [time, 3] with a batch that the file leaves open: the rows would join the steps."""
    made = model(
        "(float[N,T,3] x) => (float[T,2] y)",
        "q = Shape(x)\n t = Gather(q, one)\n s = Concat <axis = 0> (t, three)\n z = Reshape(x, s)\n"
        "u = Unsqueeze(z, one)\n r, h = RNN <hidden_size = 2> (u, W, R)\n y = Reshape(r, tail)",
        one=np.int64([1]),
        three=np.int64([3]),
        tail=np.int64([-1, 2]),
    )
    found = fastrnn.from_onnx(made)
    assert dims(found.graph, "x") == [1, "time", 3]
    assert any(note.startswith("N is 1: the file loads with 1 alone") for note in found.notes)
    for steps in (1, 7):
        agrees(made, found, x=noise(1, steps, 3))
    with pytest.raises(ShapeError, match=r"axis 0 .* must be 1, got 2: the file loads with 1 alone"):
        found.run(noise(2, 7, 3))


def test_a_size_that_is_no_time_is_fixed_by_any_of_its_names():
    """A window of samples that has no value per sample is called size."""
    made = model(
        "(float[B,samples] x, float[1,B,2] h) => (float[B,2] y, float[1,B,2] hn)",
        "u = Unsqueeze(x, zero)\n s = Slice(u, none, three, two)\n r, hn = RNN <hidden_size = 2> (s, W, R, , , h)\n"
        "m = ReduceMean <axes = [1], keepdims = 1> (x)\n q = Squeeze(r, both)\n y = Add(q, m)",
        zero=np.int64([0]),
        none=np.int64([0]),
        three=np.int64([3]),
        two=np.int64([2]),
        both=np.int64([0, 1]),
    )
    feeds = {"x": noise(2, 8), "h": noise(1, 2, 2)}
    for given in ({"samples": 8}, {"x[1]": 8}, {"size": 8}, {"time": 8}):
        found = fastrnn.from_onnx(made, sizes=given)
        assert dims(found.graph, "x") == ["batch", 8]
        assert dict(found.graph.states) == {"h": "hn"}
        agrees(made, found, **feeds)
        stream, h = found.stream(2), np.zeros((1, 2, 2), np.float32)
        session = ort.InferenceSession(made.SerializeToString())
        for k in range(3):
            x = noise(2, 8) + k
            want, h = session.run(None, {"x": x, "h": h})
            np.testing.assert_allclose(stream.step(x), want, rtol=1e-5, atol=1e-6)
    with pytest.raises(ShapeError, match="no input has the size 'width'"):
        fastrnn.from_onnx(made, sizes={"width": 8})
