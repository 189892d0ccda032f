"""Every public name says what it is, and every public method what it does."""

import inspect

import pytest

import fastrnn
from fastrnn import aio, errors, metrics, onnx_backend, threadpools, typing

pytestmark = pytest.mark.any_isa
MODULES = [fastrnn, aio, errors, metrics, threadpools, typing, onnx_backend, fastrnn.onnxruntime, fastrnn.report]


def public():
    """(dotted name, object) of each public name of a public module, and of each public member of its classes."""
    for module in MODULES:
        yield module.__name__, module
        for name in getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]):
            thing = getattr(module, name)
            if not getattr(thing, "__module__", "fastrnn").startswith("fastrnn"):
                continue
            if inspect.isclass(thing):
                yield f"{module.__name__}.{name}", thing
                yield from members(thing)
            elif callable(thing) and inspect.isroutine(thing):
                yield f"{module.__name__}.{name}", thing


def members(cls):
    for name in dir(cls):
        owner = next((c for c in cls.__mro__ if name in vars(c)), None)
        if owner is None or not owner.__module__.startswith("fastrnn") or (name.startswith("_") and name != "__call__"):
            continue
        found = inspect.getattr_static(cls, name)
        found = found.__func__ if isinstance(found, classmethod | staticmethod) else found
        if isinstance(found, property) or (callable(found) and not inspect.isclass(found)):
            yield f"{owner.__module__}.{owner.__qualname__}.{name}", found


FOUND = dict(public())


@pytest.mark.parametrize("name", sorted(FOUND))
def test_it_has_a_docstring(name):
    text = inspect.getdoc(FOUND[name])
    assert text, f"{name} has no docstring"


def test_the_search_finds_what_it_should():
    for name in (
        "fastrnn.load",
        "fastrnn.Model",
        "fastrnn.model.Model.run",
        "fastrnn.model.Model.__call__",
        "fastrnn.serving._stream.StreamCore.step",
        "fastrnn.serving.pool.StreamPool.close",
        "fastrnn.serving._pool.PoolCore.step",
        "fastrnn.serving.batcher.Batcher.step",
        "fastrnn.insight.verification.report.VerifyReport.to_json",
        "fastrnn.onnxruntime.session.InferenceSession.run",
        "fastrnn.errors.StreamError",
    ):
        assert name in FOUND
    assert len(FOUND) > 150


FULL = [
    fastrnn.load,
    fastrnn.from_torch,
    fastrnn.from_arrays,
    fastrnn.from_equations,
    fastrnn.Model.run,
    fastrnn.Model.stream,
    fastrnn.Model.pool,
    fastrnn.Stream.step,
    fastrnn.Stream.push,
    fastrnn.Stream.snapshot,
    fastrnn.Stream.restore,
    fastrnn.StreamPool.step,
    fastrnn.StreamPool.push,
    aio.Batcher.step,
    aio.Batcher.push,
    fastrnn.verify,
    fastrnn.profile,
    fastrnn.analyze,
]


@pytest.mark.parametrize("call", FULL, ids=lambda c: c.__qualname__)
def test_a_call_names_its_arguments_and_errors(call):
    """Every argument, and what is raised."""
    text = inspect.getdoc(call)
    assert "Raises\n------" in text
    for name, argument in inspect.signature(call).parameters.items():
        if name != "self" and argument.kind not in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL):
            assert name in text, f"{call.__qualname__} does not describe {name}"
