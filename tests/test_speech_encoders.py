"""Streaming encoders as their exporters write them load, equal onnxruntime over many chunks, and stream: a pool of 100
calls of different lengths gives the bits of lone streams."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the models are PyTorch's")
pytest.importorskip("onnxscript", reason="PyTorch's exporters need it")
pytest.importorskip("onnxruntime", reason="it is what the answers are compared with")
ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

from modern.speech import conformer, emformer, memory, zipformer  # noqa: E402
from modern.speech.files import exported  # noqa: E402
from modern.speech.trials import alone, differs, same_bits, sequences, together, tried, tried_in_chunks  # noqa: E402

import fastrnn  # noqa: E402

PAGE = (ROOT / "docs" / "guide" / "modern.md").read_text()
ENCODERS = {
    "zipformer": zipformer.zipformer,
    "emformer": emformer.emformer,
    "wenet": conformer.wenet,
    "wenet for a batch": conformer.wenet_batch,
    "nemo": conformer.nemo,
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_trial_passes(name):
    encoder = ENCODERS[name]()
    assert tried(encoder, exported(encoder)) == {}


@pytest.mark.any_isa
def test_the_page_has_a_row_for_each_encoder():
    table = PAGE.split("<!-- table: tools/speech_table.py -->")[1].split("<!-- end")[0]
    rows = {row.split("|")[1].strip() for row in table.splitlines() if row.endswith("| yes | yes |")}
    assert {make().name for make in (*ENCODERS.values(), memory.fsmn, memory.mdtc)} == rows


@pytest.mark.parametrize("make", [memory.fsmn, memory.mdtc])
def test_caches_in_front_of_an_open_chunk_stream_in_chunks_of_any_length(make):
    encoder = make()
    assert tried_in_chunks(encoder, exported(encoder)) == {}


def test_the_trials_can_fail():
    encoder = conformer.wenet_batch()
    model = fastrnn.load(exported(encoder), threads=1)
    calls = sequences(encoder, 2)
    calls[1] = [dict(step) for step in calls[0]]
    lone = [alone(encoder, model, steps) for steps in calls]
    assert same_bits(*lone)
    assert differs(*lone) == ""
    assert all(map(same_bits, together(encoder, model, calls), lone))
    calls[1][0]["chunk_xs"] = calls[1][0]["chunk_xs"] + np.float32(0.01)
    other = alone(encoder, model, calls[1])
    assert not same_bits(lone[0], other)
    assert "at call 0" in differs(lone[0], other)
    assert not same_bits(lone[0][1:], other[1:])  # the difference is kept in the states


def test_the_length_of_what_a_length_is_of_is_no_state():
    """`chunk_lens -> chunk_out_lens` was taken for a state by its name; a stream began with chunks of no frames."""
    model = fastrnn.load(exported(conformer.wenet_batch()), threads=1)
    assert "chunk_lens" not in model.graph.states
    assert model.graph.states["offset"] == "r_offset"


def test_a_stream_continues_from_its_snapshot():
    encoder = zipformer.zipformer()
    model = fastrnn.load(exported(encoder), threads=1)
    (steps,) = sequences(encoder, 1)
    want, stream = alone(encoder, model, steps), model.stream()
    stream.step(steps[0]["x"])
    assert stream.state["processed_lens"].tolist() == [zipformer.CHUNK]
    blob, pool = stream.snapshot(), model.pool(capacity=2)
    slot = pool.restore(blob)
    got = [pool.step([slot], step["x"][None])[0] for step in steps[1:]]
    assert all(a.tobytes() == b["encoder_out"].tobytes() for a, b in zip(got, want[1:], strict=True))
