"""The commands on files of weights: --layers, --key, what they tell, and what --verify compares with."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_nets
from test_cli import convert, run

import fastrnn
from fastrnn.insight.verification.engine_torch import TorchEngine

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parents[2]
LAYERS = "embedding:emb lstm:rnn linear:out softmax"


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of "tagger" under the key "model", and its averages under "ema"."""
    state = torch_nets.made("tagger").state_dict()
    torch.save({"model": state, "ema": {name: (t * 0.5).half() for name, t in state.items()}}, tmp_path / "m.pt")
    return tmp_path / "m.pt"


def test_convert_takes_layers_and_key(capsys, weights):
    code, out, err = convert(capsys, weights, "--layers", LAYERS, "--key", "model", "--verify")
    assert (code, err) == (0, "")
    assert "answers like torch" in out
    assert "1 embedding, 2 lstm, 1 linear" in out
    assert f"{sum(p.numel() for p in torch_nets.made('tagger').parameters()):,} parameters" in out
    assert "weights are float32" in out
    x = torch_nets.feed("tagger")
    got = fastrnn.load(weights.with_suffix(".fastrnn"))(x.numpy())
    np.testing.assert_allclose(got, torch_nets.answer(torch_nets.made("tagger"), x).numpy(), atol=1e-5)


def test_precision_is_told(capsys, weights):
    code, out, _ = convert(capsys, weights, "--layers", LAYERS.replace(" ", ","), "--key=ema", "--json", "--verify")
    told = json.loads(out)
    assert code == 0
    assert "weights are float16 and compute in float32" in told["notes"]
    assert told["verify"]["against"].startswith("torch ")


def test_without_torch_it_compares_with_the_reference_and_says_so(capsys, weights, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, _ = convert(capsys, weights, "--layers", LAYERS, "--key", "model", "--verify")
    assert code == 0
    assert "compared with the float64 reference: torch is not installed" in out


def test_what_torch_has_no_module_for(capsys, tmp_path):
    torch.save(torch_nets.made("gru").state_dict(), tmp_path / "m.pt")
    code, out, _ = convert(capsys, tmp_path / "m.pt", "--layers", "gru(reset=before)", "--verify")
    assert code == 0
    assert "compared with the float64 reference" in out
    assert "torch has no reset of 'gru'" in out


def test_a_wrong_list_fails_with_words(capsys, weights):
    code, _, err = convert(capsys, weights, "--layers", "embedding:emb gru:rnn linear:out", "--key", "model")
    assert code == 1
    assert "expected [24, 8]" in err
    assert not weights.with_suffix(".fastrnn").exists()
    code, _, err = convert(capsys, weights, "--layers", LAYERS)
    assert code == 1
    assert "key=: 'model', 'ema'" in err


def test_allow_torch(capsys, tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 2)), tmp_path / "m.pt")
    code, _, err = convert(capsys, tmp_path / "m.pt")
    assert code == 1
    assert "allow_torch" in err
    code, out, _ = convert(capsys, tmp_path / "m.pt", "--allow-torch")
    assert code == 0
    assert "traced by torch.fx" in out


def test_verify_command(capsys, weights):
    code, out, _ = run(capsys, "verify", weights, "--layers", LAYERS, "--key", "model")
    assert code == 0
    assert "answers like torch" in out
    convert(capsys, weights, "--layers", LAYERS, "--key", "model")
    other = weights.with_suffix(".fastrnn")
    code, out, _ = run(capsys, "verify", other, "--source", weights, "--layers", LAYERS, "--key", "model")
    assert (code, "answers like torch" in out) == (0, True)
    code, out, _ = run(capsys, "verify", other, "--source", weights, "--layers", LAYERS, "--key", "ema")
    assert (code, "does NOT answer like torch" in out) == (1, True)


@pytest.mark.parametrize("name", torch_nets.NETS)
@pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:Using padding='same'")
def test_torch_as_a_judge(tmp_path, name):
    """Its own modules over the list give the module's answer, so that a wrong importer would show."""
    module, layers = torch_nets.made(name), torch_nets.NETS[name][1]
    torch.save(module.state_dict(), tmp_path / "m.pt")
    x = torch_nets.feed(name)
    (got,) = TorchEngine(tmp_path / "m.pt", layers).run({"x": x.numpy()}, ["y"])
    np.testing.assert_allclose(got, torch_nets.answer(module, x).numpy(), rtol=1e-5, atol=1e-5)
    assert fastrnn.verify(tmp_path / "m.pt", "torch", layers=layers).ok


def test_progress_shows_on_a_terminal_alone(weights):
    main, other = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    argv = [sys.executable, "-m", "fastrnn", "convert", str(weights), "--layers", LAYERS, "--key", "model"]
    done = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=other, env=env)
    os.close(other)
    shown = b""
    while True:
        try:
            piece = os.read(main, 4096)
        except OSError:  # Linux says so when the other end is closed
            piece = b""
        if not piece:
            break
        shown += piece
    os.close(main)
    out = done.communicate(timeout=120)[0]
    assert done.returncode == 0
    for text in (b"reading ", b"writing "):
        assert text in shown
    assert b"reading" not in out
