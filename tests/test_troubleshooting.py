"""docs/guide/troubleshooting.md: the code raises each error that it quotes, with that text and of that class."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import fastrnn
from fastrnn.aio import Batcher
from fastrnn.errors import memory_for

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "tone_words.onnx"
PAGE = (ROOT / "docs" / "guide" / "troubleshooting.md").read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"^### `([^\n]*)`\n\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL))
X = np.zeros(20, np.float32)


def model():
    return fastrnn.load(MODEL)


def recurrent(kind="gru", **options):
    rng, lead = np.random.default_rng(0), (2,) if "direction" in options else ()
    W, R = (rng.standard_normal((*lead, 12, n)).astype(np.float32) for n in (20, 4))
    return fastrnn.from_arrays(kind, W=W, R=R, **options)


def file(folder, name, data=b"garbage" * 20):
    (folder / name).write_bytes(data)
    return fastrnn.load(folder / name)


def unsupported(folder):
    """A file with two operators that do not exist."""
    nodes = [helper.make_node("Nope", ["x"], ["y"], "a", domain="my"), helper.make_node("Not", ["x"], ["z"], "b")]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 5]) for n in "xyz"]
    nodes[1] = helper.make_node("Never", ["x"], ["z"], "b", domain="my")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    return file(folder, "m.onnx", helper.make_model(graph, opset_imports=opsets).SerializeToString())


def float64(folder):
    return fastrnn.load(onnx_of(TensorProto.DOUBLE))


def onnx_of(dtype):
    x, y = (helper.make_tensor_value_info(n, dtype, ["batch", 5]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Tanh", ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


def torch_file(folder, save):
    torch = pytest.importorskip("torch")
    torch.save(save(torch), folder / "m.pt")
    return fastrnn.load(folder / "m.pt")


def pieces(torch):
    gru, out = torch.nn.GRU(3, 4), torch.nn.Linear(4, 2)
    named = {f"rnn.{k}": v for k, v in gru.state_dict().items()}
    return named | {f"out.{k}": v for k, v in out.state_dict().items()}


def stateful(folder):
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.h = torch.nn.GRU(3, 4, batch_first=True), torch.zeros(1, 1, 4)

        def forward(self, x):
            y, self.h = self.rnn(x, self.h)
            return y

    fastrnn.from_torch(Net().eval(), torch.zeros(1, 5, 3))


def keras_file(folder, name, *layers):
    keras = pytest.importorskip("keras")
    made = [keras.layers.Lambda(lambda x: x * 2) if layer == "lambda" else layer for layer in layers]
    net = keras.Sequential([keras.layers.Input((5, 3)), *made, keras.layers.GRU(4)])
    net.save(folder / name) if name.endswith(".keras") else net.save_weights(folder / name)
    return fastrnn.load(folder / name)


def full_pool(folder):
    pool = model().pool(1)
    pool.open()
    pool.open()


def closed_slot(folder):
    pool = model().pool(1)
    slot = pool.open()
    pool.close(slot)
    pool.step([slot], X[None])


def twice(folder):
    pool = model().pool(2)
    slot = pool.open()
    pool.step([slot, slot], np.stack([X, X]))


def busy_stream(folder):
    stream, chunk = model().stream(), np.zeros((100_000, 20), np.float32)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            try:
                stream.push(chunk)
            except fastrnn.StreamError:  # the main thread has the stream
                continue

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while True:
            stream.step(X)
    finally:
        stop.set()
        thread.join()


def full_context(folder):
    torch = pytest.importorskip("torch")

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
            return x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]

    stream = fastrnn.from_torch(Block().eval(), torch.randn(1, 7, 8)).stream(context=2)
    for _ in range(3):
        stream.step(np.zeros(8, np.float32))


async def opened():
    batcher = Batcher(model().pool(2))
    return batcher, await batcher.open()


def other_loop(folder):
    batcher, slot = asyncio.run(opened())
    asyncio.run(batcher.step(slot, X))


async def flooded():
    async with Batcher(model().pool(2), on_full="raise", max_stream_queue=1, max_delay=0.5) as batcher:
        slot = await batcher.open()
        await asyncio.gather(*(batcher.step(slot, X) for _ in range(5)))


async def too_slow():
    async with Batcher(model().pool(2), max_delay=2.0) as batcher:
        slot, _ = await batcher.open(), await batcher.open()
        await batcher.step(slot, X, timeout=0.01)


def wrong_isa(folder):
    env = {**os.environ, "FASTRNN_ISA": "z80", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", "import fastrnn"], env=env, capture_output=True, text=True)
    raise fastrnn.FastRNNError(re.search(r"^fastrnn\.errors\.FastRNNError: (.*)$", done.stderr, re.MULTILINE)[1])


def no_memory(folder):
    with memory_for("run"):
        raise MemoryError


# The beginning of a quoted text -> what raises it.
CASES = {
    "no such file": lambda folder: fastrnn.load(folder / "missing.onnx"),
    "unknown file type": lambda folder: file(folder, "m.xyz"),
    "not an ONNX model": lambda folder: file(folder, "m.onnx"),
    "not a .fastrnn file": lambda folder: file(folder, "m.fastrnn"),
    "... things are not supported": unsupported,
    "computes in float64": float64,
    "its weights don't say": lambda folder: torch_file(folder, pieces),
    "several dicts of tensors": lambda folder: torch_file(folder, lambda t: {"model": pieces(t), "ema": pieces(t)}),
    "the file asks for": lambda folder: torch_file(folder, lambda t: t.nn.Linear(2, 3)),
    "the module keeps its state": stateful,
    "a Lambda layer": lambda folder: keras_file(folder, "m.keras", "lambda"),
    "it holds weights but no config": lambda folder: keras_file(folder, "m.weights.h5"),
    "there is no input": lambda folder: fastrnn.load(MODEL, bind={"sr": 16000}),
    "dtype float32 expected": lambda folder: model()(np.zeros((1, 5, 20))),
    "axis ... of": lambda folder: model()(np.zeros((1, 5, 19), np.float32)),
    "one step is": lambda folder: model().stream().step(X[None]),
    "takes arrays": lambda folder: model().run({"bands": X[None, None]}),
    "can't be streamed": lambda folder: recurrent(direction="bidirectional").stream(),
    "this stream is in use": busy_stream,
    "its context of": full_context,
    "all ... slots": full_pool,
    "slot ... was closed": closed_slot,
    "slot ... is there twice": twice,
    "snapshot: it belongs": lambda folder: model().stream().restore(recurrent().stream().snapshot()),
    "snapshot: not a snapshot": lambda folder: model().stream().restore(model().stream().snapshot()[:50]),
    "this batcher belongs": other_loop,
    "the queue of slot": lambda folder: asyncio.run(flooded()),
    "no tick took the step": lambda folder: asyncio.run(too_slow()),
    "FASTRNN_ISA asks for": wrong_isa,
    "not enough memory": no_memory,
}


def case_of(text):
    return next((run for begin, run in CASES.items() if text.startswith(begin)), None)


@pytest.mark.parametrize("text", ENTRIES)
@pytest.mark.filterwarnings("ignore")  # of Keras and PyTorch
def test_the_quoted_error_is_raised(text, tmp_path):
    run = case_of(text)
    assert run is not None, "the page quotes an error that no case here raises"
    with pytest.raises((fastrnn.FastRNNError, OSError, TimeoutError)) as caught:
        run(tmp_path)
    named = ENTRIES[text].split("`")[1]
    assert named in {kind.__name__ for kind in type(caught.value).__mro__}
    words = ".*".join(re.escape(part) for part in text.split("..."))
    assert re.search(words, str(caught.value), re.DOTALL), str(caught.value)


def test_every_case_is_on_the_page():
    assert {begin for begin in CASES if not any(text.startswith(begin) for text in ENTRIES)} == set()
    assert len(ENTRIES) == len(CASES) == PAGE.count("\n### ")


def test_the_lines_of_the_log_are_written(tmp_path, caplog):
    path, folder = tmp_path / "m.fastrnn", tmp_path / "cache"
    W, R = (np.random.default_rng(0).normal(size=(512, n)).astype(np.float32) for n in (64, 128))
    fastrnn.from_arrays("lstm", W=W, R=R).save(path)
    (tmp_path / "taken").write_text("not a folder")
    fastrnn.load(path, cache=folder)
    for packed in folder.glob("*.packed"):
        packed.chmod(0o666)
    fastrnn.load(path, cache=folder)
    fastrnn.load(path, cache=tmp_path / "taken")
    quoted = re.findall(r"\*\*In the log: `([^`]*)`\*\*", PAGE)
    assert len(quoted) == 2
    for text in quoted:
        words = ".*".join(re.escape(part) for part in text.split("..."))
        assert any(re.search(words, record.getMessage()) for record in caplog.records), text


def test_the_option_that_the_page_names_for_states_says_the_same():
    with pytest.raises(fastrnn.StateError, match="there is no input 'h0'; the inputs are"):
        fastrnn.load(MODEL, states={"h0": "hn"})


def test_two_problems_are_listed(tmp_path):
    with pytest.raises(fastrnn.UnsupportedError) as caught:
        unsupported(tmp_path)
    assert len(caught.value.problems) == 2


def test_the_files_of_these_cases_are_otherwise_fine():
    assert fastrnn.load(onnx_of(TensorProto.FLOAT))(np.zeros((2, 5), np.float32)).shape == (2, 5)
    onnx.load_from_string(onnx_of(TensorProto.DOUBLE))
