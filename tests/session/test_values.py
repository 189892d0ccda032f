"""OrtValue and IOBinding do what onnxruntime's do."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto
from ort_models import both, identity

import fastrnn
import fastrnn.onnxruntime

MODULES = [pytest.param(fastrnn.onnxruntime, id="fastrnn"), pytest.param(onnxruntime, id="onnxruntime")]
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("module", MODULES)
def test_a_value_is_the_array_itself(module):
    x = X.copy()
    value = module.OrtValue.ortvalue_from_numpy(x)
    assert np.shares_memory(value.numpy(), x)
    assert (value.shape(), value.data_type(), value.element_type()) == ([2, 3], "tensor(float)", 1)
    assert (value.device_name(), value.data_ptr(), value.tensor_size_in_bytes()) == ("cpu", x.ctypes.data, 24)
    kinds = (value.has_value(), value.is_tensor(), value.is_sparse_tensor(), value.is_tensor_sequence())
    assert kinds == (True, True, False, False)
    value.update_inplace(np.ones((2, 3), np.float32))
    assert x.tolist() == [[1, 1, 1], [1, 1, 1]]
    np.testing.assert_array_equal(np.from_dlpack(value), x)
    np.testing.assert_array_equal(np.asarray(value), x)
    with pytest.raises(RuntimeError):
        value.update_inplace(np.ones((3, 3), np.float32))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    ("element", "text"),
    [
        (np.float32, "tensor(float)"),
        (np.dtype("int64"), "tensor(int64)"),
        ("bool", "tensor(bool)"),
        (TensorProto.FLOAT16, "tensor(float16)"),
        (np.float64, "tensor(double)"),
        (np.uint8, "tensor(uint8)"),
    ],
)
def test_a_value_of_a_shape_and_type(module, element, text):
    value = module.OrtValue.ortvalue_from_shape_and_type([2, 3], element)
    assert (value.shape(), value.data_type(), value.numpy().shape) == ([2, 3], text, (2, 3))


@pytest.mark.parametrize("module", MODULES)
def test_values_that_are_refused(module):
    make = module.OrtValue.ortvalue_from_numpy
    for wrong in ([1, 2], np.float32(3), np.array(["a"])):
        with pytest.raises(RuntimeError):
            make(wrong)
    with pytest.raises(RuntimeError):
        make(X, "cuda", 0)
    with pytest.raises(RuntimeError):
        module.OrtValue.ortvalue_from_shape_and_type([2], np.float32, "cuda")


def test_values_that_fastrnn_refuses_by_name():
    value = fastrnn.onnxruntime.OrtValue
    for call in (
        lambda: value.ort_value_from_sparse_tensor(None),
        lambda: value(X).as_sparse_tensor(),
        lambda: value.ortvalue_from_numpy_with_onnx_type(X.astype(np.uint16), TensorProto.BFLOAT16),
        lambda: value.ortvalue_from_shape_and_type([1], TensorProto.STRING),
        lambda: fastrnn.onnxruntime.OrtDevice.make("cuda", 0),
    ):
        with pytest.raises(fastrnn.UnsupportedError):
            call()
    with pytest.raises(fastrnn.ShapeError, match=r"update_inplace: float32.* expected, got float64"):
        value(X).update_inplace(X.astype(np.float64))
    assert value.from_dlpack(X).numpy().tolist() == X.tolist()
    device = fastrnn.onnxruntime.OrtDevice.make("cpu", 0)
    assert (device.device_id(), device.device_type(), device.device_vendor_id(), device.device_mem_type()) == (0,) * 4


@pytest.fixture(params=[0, 1], ids=["fastrnn", "onnxruntime"])
def made(request):
    """(session of y = x * x, its module)."""
    return both(identity(op="Mul"))[request.param], (fastrnn.onnxruntime, onnxruntime)[request.param]


def test_a_binding_reads_what_its_arrays_hold_then(made):
    session, _ = made
    binding, x = session.io_binding(), X.copy()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    for _ in range(2):
        x += 1
        session.run_with_iobinding(binding)
        np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], x * x)
        np.testing.assert_array_equal(binding.get_outputs()[0].numpy(), x * x)
    binding.synchronize_inputs()
    binding.synchronize_outputs()
    binding.clear_binding_inputs()
    binding.clear_binding_outputs()
    assert binding.get_outputs() == []
    with pytest.raises(RuntimeError):
        session.run_with_iobinding(binding)


def test_a_binding_writes_into_memory_of_the_caller(made):
    session, module = made
    binding, x, y = session.io_binding(), X.copy(), np.zeros((2, 3), np.float32)
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(y, x * x)
    value = module.OrtValue.ortvalue_from_numpy(np.zeros((2, 3), np.float32))
    binding.bind_ortvalue_input("x", module.OrtValue.ortvalue_from_numpy(x + 1))
    binding.bind_ortvalue_output("y", value)
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(value.numpy(), (x + 1) ** 2)
    made_value = session.create_ortvalue_from_shape_and_type([2, 3], np.float32, "cpu")
    assert made_value.shape() == [2, 3]


def test_bindings_that_do_not_fit(made):
    session, module = made
    binding = session.io_binding()
    with pytest.raises(RuntimeError):
        binding.bind_cpu_input("q", X)
    binding.bind_cpu_input("x", X)
    with pytest.raises(RuntimeError):  # no output
        session.run_with_iobinding(binding)
    binding.bind_ortvalue_output("y", module.OrtValue.ortvalue_from_numpy(np.zeros((3, 3), np.float32)))
    with pytest.raises(RuntimeError):
        session.run_with_iobinding(binding)
    binding = session.io_binding()
    binding.bind_cpu_input("x", X.astype(np.float64))
    binding.bind_output("y")
    with pytest.raises(RuntimeError):
        session.run_with_iobinding(binding)
    binding = session.io_binding()
    binding.bind_output("y")
    with pytest.raises(RuntimeError):  # no input
        session.run_with_iobinding(binding)
    other = module.InferenceSession(identity(), providers=["CPUExecutionProvider"])
    with pytest.raises(ValueError):
        other.run_with_iobinding(binding)


def test_what_fastrnn_says_of_bindings_that_do_not_fit():
    session = fastrnn.InferenceSession(identity(op="Mul"))
    binding = session.io_binding()
    with pytest.raises(fastrnn.UnsupportedError, match="the device 'cuda': fastrnn runs on 'cpu'"):
        binding.bind_output("y", "cuda")
    with pytest.raises(fastrnn.ShapeError, match="output y: a buffer needs element_type and shape"):
        binding.bind_output("y", buffer_ptr=5)
    with pytest.raises(fastrnn.ShapeError, match="a buffer at the address 0"):
        binding.bind_input("x", "cpu", 0, np.float32, (2, 3), 0)
    binding.bind_cpu_input("x", X)
    binding.bind_ortvalue_output("y", fastrnn.onnxruntime.OrtValue(np.zeros((2, 3))))
    with pytest.raises(fastrnn.ShapeError, match=r"output y is float32\[2, 3\], but is bound to memory of float64"):
        session.run_with_iobinding(binding)
    found: list = []
    session.run_with_ortvaluevector(None, ["x"], [fastrnn.onnxruntime.OrtValue(X)], ["y"], found, None)
    np.testing.assert_array_equal(found[0].numpy(), X * X)
