"""A service's code, as a type checker sees it: mypy and pyright read this file in their strict modes; it is never run.

It uses every public class, function and method: test_typing.py looks for each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import fastrnn
from fastrnn.aio import Batcher, QueueFullError
from fastrnn.typing import Array, Outputs, PoolOutputs, StepOutputs

Floats = NDArray[np.float32]


def loading() -> fastrnn.Model:
    """Every way to a model."""
    model = fastrnn.load(Path("model.onnx"), bind={"sr": 16000}, states={"h0": "hn"}, threads=1, sizes={"time": 9})
    assert_type(model, fastrnn.Model)
    assert_type(fastrnn.load(b"bytes", strict=False, thaw=False), fastrnn.Model)
    assert_type(fastrnn.load({"w": np.zeros((4, 1))}, layers="lstm"), fastrnn.Model)
    assert_type(fastrnn.load("m.pt", layers=["lstm:rnn", "linear:out"], key="model"), fastrnn.Model)
    assert_type(fastrnn.from_arrays("lstm", W=np.zeros((4, 1)), R=np.zeros((4, 1)), order="ifgo"), fastrnn.Model)
    assert_type(fastrnn.from_torch(object(), example=np.zeros((1, 3, 4))), fastrnn.Model)
    assert_type(fastrnn.from_keras(object(), threads=2), fastrnn.Model)
    assert_type(fastrnn.from_onnx(object(), bind={"sr": [16000]}), fastrnn.Model)
    assert_type(fastrnn.from_equations("h = tanh(W @ x)", W=[[1.0]], inputs={"x": 1}, outputs="h"), fastrnn.Model)
    return model


def describing(model: fastrnn.Model) -> None:
    assert_type(model.name, str)
    assert_type(model.threads, int)
    assert_type(model.inputs, tuple[fastrnn.TensorInfo, ...])
    assert_type(model.outputs[0].dims, tuple[int | str, ...])
    assert_type(model.states, tuple[fastrnn.TensorInfo, ...])
    assert_type(model.layers, tuple[fastrnn.LayerInfo, ...])
    assert_type(model.notes, tuple[str, ...])
    assert_type(model.metadata, dict[str, str])
    assert_type(model.parameters + model.memory_bytes + model.delay, int)
    assert_type(model.streamable, bool)
    assert_type(model.fingerprint, str)
    assert_type(model.precision, str | dict[str, str])
    assert_type(model.stats(), dict[str, Any])
    print(model.graph)
    told = model.describe()
    assert_type(told, fastrnn.Description)
    assert_type(told.as_dict(), dict[str, Any])
    assert_type(told.to_json(), str)
    assert_type(told.head + told.notes, list[tuple[str, str]])


def whole_sequences(model: fastrnn.Model) -> Floats:
    x: Floats = np.zeros((1, 3, 4), np.float32)
    assert_type(model.run(x, lengths=[2]), tuple[Array, ...])
    assert_type(model.run(x, lengths=(2,)), tuple[Array, ...])
    assert_type(model.run(x, lengths=np.array([2])), tuple[Array, ...])
    assert_type(model.run(x=[[[1.0, 2.0]]], sr=16000), tuple[Array, ...])
    assert_type(model(x, lengths=np.array([2], np.int32)), Outputs)
    y = model(x)
    if isinstance(y, tuple):  # a model of several outputs
        return y[0]
    return y


def one_stream(model: fastrnn.Model) -> None:
    with model.stream(batch_size=8, bind={"speaker": [0.5]}, context=64, at_context="window") as stream:
        assert_type(stream, fastrnn.Stream)
        x: Floats = np.zeros((8, 4), np.float32)
        y = stream.step(x)
        assert_type(y, StepOutputs)
        if isinstance(y, np.ndarray):  # neither a tuple, nor None
            assert_type(y.argmax(), np.intp)
        out: Floats = np.empty((8, 2), np.float32)
        assert_type(stream.step(x, out), Array | None)
        assert_type(stream.step(x, out=(out, out)), StepOutputs)
        assert_type(stream.step({"x": x, "sr": 16000}), StepOutputs)
        assert_type(stream.step((x, [1, 2])), StepOutputs)
        assert_type(stream.push([[1.0, 2.0]]), StepOutputs)
        assert_type(stream.flush(), StepOutputs)
        stream.reset()
        assert_type(stream.copy(), fastrnn.Stream)
        assert_type(stream.delay + stream.steps_done, int)
        assert_type(stream.batch_size, int | None)
        assert_type(stream.bound, dict[str, Array] | None)
        assert_type(stream.model, fastrnn.Model)
        state: dict[str, Array] = stream.state
        stream.state = state
        blob: bytes = stream.snapshot()
        stream.snapshot(Path("user.snapshot"))
        stream.restore(blob)
        stream.restore("user.snapshot")
    stream.close()
    assert_type(stream.closed, bool)


def many_streams(model: fastrnn.Model) -> None:
    with model.pool(capacity=100) as pool:
        assert_type(pool, fastrnn.StreamPool)
        slots = [pool.open(), pool.open()]
        x: Floats = np.zeros((2, 4), np.float32)
        y = pool.step(slots, x)
        assert_type(y, PoolOutputs)
        out: Floats = np.empty((2, 2), np.float32)
        assert_type(pool.step(np.array(slots), x, out), Array)
        assert_type(pool.step((slots[0],), {"x": x[:1]}), PoolOutputs)
        assert_type(pool.push(slots, [x, [[1.0, 2.0, 3.0, 4.0]]]), list[StepOutputs])
        assert_type(pool.flush(slots[0]), StepOutputs)
        pool.reset(slots[0])
        assert_type(pool.copy(slots[0]), int)
        assert_type(pool.steps_done(slots[0]), int)
        pool.set_state(slots[1], pool.state(slots[0]))
        assert_type(pool.snapshot(slots[0]), bytes)
        assert_type(pool.restore(b"blob"), int)
        assert_type(pool.snapshot_all(), bytes)
        token: str = pool.snapshot_all("all.snapshot")
        pool.snapshot_all(Path("later.snapshot"), since=token)
        assert_type(pool.restore_all(["all.snapshot", Path("later.snapshot")]), dict[int, int])
        pool.grow(200)
        assert_type(len(pool) + pool.capacity + pool.memory_bytes, int)
        assert_type(slots[0] in pool, bool)
        assert_type(list(pool), list[int])
        assert_type(pool.slots, NDArray[np.int64])
        assert_type(pool.bound, dict[str, Array] | None)
        assert_type(pool.model, fastrnn.Model)
        assert_type(pool.stats(), dict[str, Any])
        pool.close(slots[0])
    pool.close()
    assert_type(pool.closed, bool)


async def callers(model: fastrnn.Model) -> None:
    async def evicted(slot: int, snapshot: bytes) -> None:
        await asyncio.sleep(0)

    pool = model.pool(capacity=16)
    async with Batcher(pool, max_delay=0.001, on_full="raise", idle_timeout=60, on_evict=evicted) as batcher:
        assert_type(batcher, Batcher)
        slot: int = await batcher.open()
        with contextlib.suppress(TimeoutError, QueueFullError):
            assert_type(await batcher.step(slot, [0.0, 1.0], timeout=0.5), StepOutputs)
        assert_type(await batcher.push(slot, np.zeros((3, 4), np.float32)), StepOutputs)
        assert_type(batcher.steps_done(slot) + batcher.ticks + batcher.steps + len(batcher), int)
        assert_type(batcher.stats(), dict[str, Any])
        await batcher.close_slot(slot)
    await batcher.close()
    fastrnn.metrics.register(model, pool, batcher, names=["vad", "calls", "calls"])


def files(model: fastrnn.Model) -> None:
    model.save(Path("model.fastrnn"))
    with fastrnn.load("model.fastrnn") as loaded:
        assert_type(loaded, fastrnn.Model)
    loaded.close()
    assert_type(loaded.closed, bool)
    switched = fastrnn.load("switched.onnx")
    if isinstance(switched, fastrnn.SelectedModel):
        assert_type(switched.selectors, tuple[fastrnn.TensorInfo, ...])
        assert_type(switched.select(sr=16000), fastrnn.Model)
        assert_type(switched.stream(bind={"sr": 16000}), fastrnn.Stream)
        assert_type(switched.pool(bind={"sr": 16000}), fastrnn.StreamPool)
        switched.refuse()


def reports(model: fastrnn.Model) -> None:
    report = fastrnn.verify("model.onnx", "reference", seed=1)
    assert_type(report, fastrnn.VerifyReport)
    assert_type(report.ok and report.agrees, bool)
    assert_type(report.outputs, tuple[fastrnn.OutputDifference, ...])
    assert_type([error.reduced for error in report.reduced], list[float])
    assert_type(report.to_json() + report.sizes, str)
    assert_type(report.as_dict(), dict[str, Any])
    if report.long is not None:
        assert_type(report.long.ok, bool)
    info = fastrnn.cpu_info()
    assert_type(info, fastrnn.CpuInfo)
    assert_type(info.isa, fastrnn.IsaInfo)
    assert_type(info.threads, fastrnn.ThreadInfo)
    assert_type(info.threading, fastrnn.ThreadingInfo)
    assert_type(fastrnn.set_threading("auto"), None)
    assert_type(info.to_json(), str)
    assert_type(info.as_dict(), dict[str, Any])
    profile = fastrnn.profile(model, batch=2, steps=3)
    assert_type(profile, fastrnn.Profile)
    assert_type(profile.step_ns + profile.flops, float)
    assert_type(profile.definitions, dict[str, str])
    assert_type(profile.as_dict(), dict[str, Any])
    data = fastrnn.load_data("speech.npy")
    assert_type(data, fastrnn.Data)
    analysis = fastrnn.analyze(model, fastrnn.Data.of(np.zeros((9, 4))), steps=100)
    assert_type(analysis, fastrnn.Analysis)
    assert_type(analysis.as_dict(), dict[str, Any])
    choice = fastrnn.choose_precision(model, data, tolerance=0.01, batch=2)
    assert_type(choice, fastrnn.PrecisionChoice)
    assert_type(choice.model, fastrnn.Model)
    assert_type(choice.as_dict(), dict[str, Any])
    assert_type(choice.to_json(), str)
    assert_type(choice.summary, list[tuple[str, str]])
    assert_type(choice.table, list[tuple[str, ...]])
    planned = fastrnn.plan_capacity(model, 1000, 50.0, cores=8)
    assert_type(planned, fastrnn.CapacityPlan)
    assert_type(planned.as_dict(), dict[str, Any])
    scored = fastrnn.score("calls.parquet", model, "scores", threads=2, on_error="null")
    assert_type(scored, fastrnn.ScoreReport)
    assert_type(scored.as_dict(), dict[str, Any])
    with fastrnn.Scorer(model, inputs={"x": "frames"}, outputs=["y"]) as scorer:
        assert_type(scorer.options, dict[str, Any])
    fastrnn.report.require()
    fastrnn.report.write_profile(profile, "profile.html")
    fastrnn.report.write_analysis(analysis, Path("analysis.html"), name="vad")
    fastrnn.report.draw(model.graph, "model.svg")


def sessions(x: Floats) -> None:
    options = fastrnn.onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = fastrnn.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
    assert_type(session.run(["y"], {"x": x}), list[Array])
    assert_type(session.get_inputs()[0].name, str)
    assert_type(session.get_outputs()[0].type, str)
    assert_type(session.model, fastrnn.Model)
    binding: fastrnn.onnxruntime.IOBinding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    assert_type(fastrnn.onnxruntime.InferenceSession("model.onnx", options), fastrnn.InferenceSession)


def errors() -> list[str]:
    try:
        fastrnn.load("model.onnx")
    except fastrnn.UnsupportedError as error:
        return [*error.problems, error.where]
    except (fastrnn.ModelFormatError, fastrnn.ShapeError, fastrnn.StateError, fastrnn.StreamError) as error:
        assert_type(str(error), str)
    except fastrnn.FastRNNMemoryError as error:
        assert isinstance(error, MemoryError)
    except fastrnn.FastRNNError as error:
        assert_type(error, fastrnn.FastRNNError)
    assert issubclass(fastrnn.FastRNNWarning, UserWarning)
    return [fastrnn.__version__]


async def served(model: fastrnn.Model) -> None:
    async with fastrnn.serving.Server({"m": model}, http_port=0, grpc_port=None, idle_timeout=5.0) as server:
        assert_type(server, fastrnn.serving.Server)
        assert_type(server.http_port, int | None)
        await server.drain(1.0)
