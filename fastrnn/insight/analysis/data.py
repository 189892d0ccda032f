"""Sequences for `analyze`: from files, or random."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import FastRNNError, ModelFormatError
from ...records import dataclass
from ...typing import Input, StrPath

if TYPE_CHECKING:
    from .runner import Runner

SUFFIXES = (".npy", ".npz", ".wav", ".csv")


@dataclass(frozen=True)
class Data:
    """Sequences for `analyze`, made by `load_data` or `Data.of`.

    arrays : one array [T, features...] or [rows, T, features...], or a dict of such arrays by input
    text : where they come from
    synthetic : whether they are random
    """

    arrays: Input | Mapping[str, Input]
    text: str
    synthetic: bool = False

    @classmethod
    def of(cls, arrays: Input | Mapping[str, Input]) -> Data:
        """Data from the caller."""
        shape = {k: list(np.shape(v)) for k, v in arrays.items()} if isinstance(arrays, Mapping) else np.shape(arrays)
        return cls(arrays, f"given: {shape if isinstance(shape, dict) else list(shape)}")


def load_data(path: StrPath) -> Data:
    """Read sequences from a file.

    .npy : an array [T, features...] or [rows, T, features...]; .npz : such arrays by the names of the inputs
    .csv : one row per step, commas between features; a first line that does not hold numbers is skipped
    .wav : sound, one channel (the first), as float32 in -1..1, cut into steps of the input's size; needs soundfile

    Raises
    ------
    ModelFormatError : not such a file. OSError : it can't be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ModelFormatError(f"{path}: data come from {', '.join(SUFFIXES)} files")
    if not path.is_file():
        raise FileNotFoundError(f"no data file {path}")
    try:
        if suffix == ".wav":
            arrays, how = _wav(path)
        else:
            arrays, how = {".npy": _npy, ".npz": _npz, ".csv": _csv}[suffix](path), ""
    except (ValueError, EOFError, KeyError) as error:
        raise ModelFormatError(f"{path}: {error}") from None
    return Data(arrays, f"{path}{how}")


def _npy(path: Path):
    return np.load(path, allow_pickle=False)


def _npz(path: Path):
    from zipfile import BadZipFile

    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except BadZipFile as error:
        raise ValueError(str(error)) from None
    if not found:
        raise ValueError("holds no arrays")
    return found


def _csv(path: Path):
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    if lines and not any(map(_is_number, lines[first].split(","))):  # a header with the names of the columns
        first += 1
    if not any(line.strip() for line in lines[first:]):
        raise ValueError("holds no numbers")
    return np.loadtxt(lines[first:], np.float32, delimiter=",", ndmin=2)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _wav(path: Path):
    try:
        import soundfile
    except ImportError:
        raise FastRNNError("reading .wav needs the soundfile package: pip install 'fastrnn[report]'") from None
    try:
        sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(str(error)) from None
    channels = "" if sound.shape[1] == 1 else f", the first of {sound.shape[1]} channels"
    return np.ascontiguousarray(sound[:, 0]), f" ({rate:,} Hz{channels})"


def made_up(runner: Runner, steps: int, seed: int) -> Data:
    """Noise for every input. Real inputs get slow and fast parts of rms 0.5 that differ by row. Ints and bools are 0
    and 1, which every table has."""
    rng = np.random.default_rng([seed, 1])
    arrays = {}
    for a in runner.inputs:
        shape = (2 if runner.has_batch else 1, *((steps,) if a.timed else ()), *a.features)
        if a.dtype in ("float32", "float64"):
            noise = rng.standard_normal(shape)
            if a.timed and steps > 1:
                noise += _smoothed(noise)
            arrays[a.name] = (0.5 * noise / np.sqrt(np.mean(noise**2))).astype(a.dtype)
        else:
            arrays[a.name] = rng.integers(0, 2, shape).astype(a.dtype)
    return Data(arrays, f"made up: noise of rms 0.5, seed {seed}", True)


def _smoothed(noise: np.ndarray) -> np.ndarray:
    """A first-order low pass over steps (axis 1), with the same level as the noise itself."""
    out, level = np.empty_like(noise), np.zeros_like(noise[:, 0])
    for t in range(noise.shape[1]):
        level = 0.9 * level + noise[:, t]
        out[:, t] = level
    return out * np.sqrt(1 - 0.9**2)
