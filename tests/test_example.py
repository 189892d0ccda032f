"""The example of the README: its model, its features and the live listener, run as a user runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrnn

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
MODEL = EXAMPLES / "tone_words.onnx"
LINE = re.compile(r" *(\d+\.\d\d) s  heard (\w+) *p (\d\.\d\d)  (right: ended at (\d+\.\d\d) s|false alarm)")


@pytest.fixture(scope="module")
def example_modules():
    """(features, tones), imported as the example imports them."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import features
        import tones
    finally:
        sys.path.remove(str(EXAMPLES))
    return features, tones


def listen(*arguments):
    """Run examples/stream.py --fast in a pipe; returns the finished process."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "stream.py"), "--fast", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        cwd=EXAMPLES.parent,
        check=False,
    )


def test_model_is_small_and_streams():
    assert MODEL.stat().st_size < 300_000
    model = fastrnn.load(MODEL)
    assert [i.dims for i in model.inputs] == [("batch", "time", 20)]
    assert [o.dims for o in model.outputs] == [("batch", "time", 3)]
    assert model.streamable is True
    assert [s.dims for s in model.states] == [("batch", 56)]


@pytest.mark.any_isa
def test_live_features_are_those_of_the_whole_signal(example_modules):
    features, tones = example_modules
    signal, _ = tones.synthesise(2.0, np.random.default_rng(5), 10)
    live = features.LiveFeatures()
    pieces = signal.reshape(-1, features.HOP)
    got = np.stack([live.push(piece) for piece in pieces])
    # The FFT of many frames and of one may differ in the last bits of a float32.
    np.testing.assert_allclose(got, features.features(signal), rtol=0, atol=1e-5)


@pytest.mark.any_isa
def test_features_see_nothing_of_the_future(example_modules):
    features, _ = example_modules
    random = np.random.default_rng(6)
    signal = random.normal(size=8 * features.HOP).astype(np.float32)
    changed = signal.copy()
    changed[5 * features.HOP :] = 0
    a, b = features.features(signal), features.features(changed)
    np.testing.assert_array_equal(a[:5], b[:5])
    assert (a[5] != b[5]).any()


@pytest.mark.any_isa
def test_ear_says_a_word_once(example_modules):
    _, tones = example_modules
    y = np.zeros((120, 3), np.float32)
    y[10:20, 1] = 0.9
    y[14, 1] = 0.1  # it wavers: still the same word
    y[100:110, 1] = 0.9  # said again
    y[40:90, 2] = 0.75  # held for long: once
    assert tones.detections(y) == [(10, 1), (40, 2), (100, 1)]


@pytest.mark.any_isa
def test_score_counts_missed_and_false(example_modules):
    features, tones = example_modules
    at = features.RATE
    events = [tones.Event(0, at // 2, at), tones.Event(-1, 2 * at, 3 * at), tones.Event(2, 4 * at, 5 * at)]
    assert tones.score([(100, 0)], events) == (2, 1, 0)
    assert tones.score([(100, 1), (300, 0), (505, 2)], events) == (2, 1, 2)
    assert tones.score([(131, 0)], events) == (2, 0, 1)  # a third of a second late


@pytest.mark.parametrize(("seed", "snr_db"), [(1, 10), (2, 3)])
def test_stream_hears_what_sounds(example_modules, seed, snr_db):
    """What the command prints, against the truth that it synthesised from that seed."""
    _, tones = example_modules
    done = listen("--seconds", "60", "--seed", str(seed), "--snr", str(snr_db))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *lines, summary = done.stdout.splitlines()
    _, events = tones.synthesise(60.0, np.random.default_rng(seed), snr_db)
    ends = [(tones.NAMES[e.word], f"{e.end / 16000:.2f}") for e in events if e.word >= 0]
    found = [LINE.fullmatch(line) for line in lines if "heard" in line]
    assert all(found), lines
    right = [(m[2], m[5]) for m in found if m[5]]
    missed = [line for line in lines if "missed" in line]
    assert set(right) <= set(ends)
    assert len(lines) == len(found) + len(missed)
    # Over 80 minutes at 0 to 20 dB the model misses one word and makes four false alarms.
    assert set(right) == set(ends)
    assert len(found) - len(right) <= 1
    assert f"heard {len(set(right))} of {len(ends)} words, {len(found) - len(right)} false alarms, in 60.0 s" in summary


def test_listening_is_the_whole_run(example_modules):
    """Stepped live, the model says what it says of the whole signal, bit for bit."""
    features, tones = example_modules
    signal, _ = tones.synthesise(3.0, np.random.default_rng(8), 5)
    x = features.features(signal)
    model = fastrnn.load(MODEL)
    stream, y = model.stream(), np.empty(3, np.float32)
    stepped = np.stack([stream.step(row, out=y).copy() for row in x])
    assert stepped.tobytes() == model(x[None])[0].tobytes()


def test_stream_draws_in_a_terminal():
    """With a terminal on its output it draws bars and still ends with the summary."""
    pty = pytest.importorskip("pty", reason="no pseudo terminals on this system")
    pytest.importorskip("rich", reason="rich draws the terminal view and is not installed")
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "stream.py"), "--fast", "--seconds", "5"],
        stdout=other,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
    )
    os.close(other)
    drawn = b""
    while True:
        try:
            piece = os.read(main, 4096)
        except OSError:  # Linux says so when the other end is closed
            piece = b""
        if not piece:
            break
        drawn += piece
    errors = process.stderr.read().decode()
    process.stderr.close()
    os.close(main)
    assert process.wait(60) == 0, errors
    text = drawn.decode(errors="replace")
    assert "tone words" in text
    for name in ("rise", "fall", "hop"):
        assert name in text
    assert "words, " in text.splitlines()[-1]


def test_bad_arguments_are_refused():
    done = listen("--seconds", "0")
    assert done.returncode == 2
    assert "--seconds must be positive" in done.stderr


def test_live_calls_in_a_pipe():
    """Two seconds of 60 callers, as fast as possible: one line per second, and the time of a step."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    command = [
        sys.executable,
        "-W",
        "error",
        str(EXAMPLES / "live_calls.py"),
        "--fast",
        "--seconds",
        "2",
        "--callers",
        "60",
    ]
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    shown = [
        re.match(r" +(\d)\.0 s +(\d+) calls, +(\d+) speak  step p50 [\d.]+ ms  p99 [\d.]+ ms  load [\d.]+%$", x)
        for x in lines
    ]
    assert [m[1] for m in shown] == ["1", "2"]
    assert all(0 < int(m[3]) <= int(m[2]) <= 60 for m in shown)
    assert re.match(r"\d+ steps in 200 frames; [\d.]+ us per step$", last)
