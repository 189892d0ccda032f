"""SessionOptions and RunOptions: every field of onnxruntime's, with its default and its types."""

import logging

import onnxruntime
import pytest
from onnx import TensorProto
from ort_models import identity

import fastrnn
import fastrnn.onnxruntime as ours

SESSION = [n for n in dir(onnxruntime.SessionOptions) if isinstance(getattr(onnxruntime.SessionOptions, n), property)]
RUN = [n for n in dir(onnxruntime.RunOptions) if isinstance(getattr(onnxruntime.RunOptions, n), property)]
FIELDS = [("SessionOptions", n) for n in SESSION] + [("RunOptions", n) for n in RUN]


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_fields_and_defaults(kind, field):
    mine, theirs = getattr(ours, kind)(), getattr(onnxruntime, kind)()
    default = getattr(theirs, field)
    assert repr(getattr(mine, field)) == repr(default)
    other = {bool: not default, int: 3, str: "text"}.get(type(default))
    if other is None:
        other = list(type(default).__members__)[-1]
        setattr(mine, field, getattr(ours, type(default).__name__)[other])
        assert getattr(mine, field).name == other
    else:
        setattr(mine, field, other)
        assert getattr(mine, field) == other
    for wrong in {bool: ["text"], str: [5, None, 1.5]}.get(type(default), ["text", None, 1.5]):
        with pytest.raises(TypeError):
            setattr(theirs, field, wrong)
        with pytest.raises(TypeError, match=f"{kind}.{field} must be ") as found:
            setattr(mine, field, wrong)
        assert isinstance(found.value, fastrnn.FastRNNError)
    with pytest.raises(AttributeError):
        mine.no_such_field = 1


@pytest.mark.parametrize(("kind", "word"), [("SessionOptions", "session"), ("RunOptions", "run")])
@pytest.mark.parametrize("module", [ours, onnxruntime])
def test_entries(module, kind, word):
    options = getattr(module, kind)()
    add, get = getattr(options, f"add_{word}_config_entry"), getattr(options, f"get_{word}_config_entry")
    add("key", "value")
    assert get("key") == "value"
    with pytest.raises(RuntimeError):
        get("another")
    with pytest.raises(TypeError):
        add("key", 1)


def test_providers_of_options():
    options = ours.SessionOptions()
    assert options.has_providers() is False
    options.add_provider("CPUExecutionProvider", {"a": "b"})
    assert options.has_providers() is True
    with pytest.raises(fastrnn.ShapeError, match="the provider 'CUDAExecutionProvider' can't be added"):
        options.add_provider("CUDAExecutionProvider", {})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("register_custom_ops_library", ["x.so"]),
        ("add_initializer", ["w", None]),
        ("add_external_initializers", [[], []]),
        ("add_external_initializers_from_files_in_memory", [[], [], []]),
        ("add_provider_for_devices", [[], {}]),
        ("set_provider_selection_policy", [0]),
        ("set_provider_selection_policy_delegate", [None]),
        ("set_ep_context_data_read_func", [None]),
        ("set_load_cancellation_flag", [True]),
    ],
)
def test_methods_that_are_refused(name, arguments):
    with pytest.raises(fastrnn.UnsupportedError, match=f"SessionOptions.{name}: "):
        getattr(ours.SessionOptions(), name)(*arguments)


def test_methods_that_do_nothing():
    options = ours.SessionOptions()
    options.set_load_cancellation_flag(False)
    options.clear_ep_context_data_read_func()
    with pytest.raises(fastrnn.UnsupportedError, match="add_active_adapter: fastrnn has no LoRA adapters"):
        ours.RunOptions().add_active_adapter(None)


@pytest.mark.parametrize("module", [ours, onnxruntime])
def test_severities(module):
    try:
        for number in range(5):
            module.set_default_logger_severity(number)
        for wrong, kind in ((-1, RuntimeError), (5, RuntimeError), ("a", TypeError)):
            with pytest.raises(kind):
                module.set_default_logger_severity(wrong)
    finally:
        module.set_default_logger_severity(2)


def test_the_severity_of_a_session_decides_what_is_logged(caplog):
    options = ours.SessionOptions()
    with caplog.at_level(logging.DEBUG, "fastrnn.onnxruntime"):
        data = identity(TensorProto.FLOAT16)
        ours.InferenceSession(data, options)
        assert caplog.messages == []
        options.log_severity_level = 1
        session = ours.InferenceSession(data, options)
        assert caplog.messages == [f"g: {note}" for note in session.model.notes]
        assert caplog.messages
