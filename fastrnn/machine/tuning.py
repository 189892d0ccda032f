"""How products of float32 prefetch their weights on this machine: measured once, and kept in a file.

Which way is fastest depends on the CPU and on where the weights are between two steps (L2, L3 or memory): see
docs/decisions/0029-prefetching-by-machine.md. All settings give the same bits.

When the first model with a cell past L2 is loaded, a trial steps that cell for at most 50 ms, and the result is written
beside the limits of the machine: $XDG_CACHE_HOME/fastrnn (or ~/.cache/fastrnn), which may be deleted at any time. Later
processes read it. `import fastrnn` and models with small weights never do either. If the file can't be kept, or if
another process is measuring, there is no trial, and the fixed settings of the instruction set stay.

FASTRNN_TUNE=off keeps the fixed settings and touches no file; FASTRNN_TUNE=again measures again.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import FastRNNError
from ..records import dataclass
from . import _isa, forks, hardware

FORMAT = 1  # of the file
KERNELS = 1  # count up with every change of how fast tiles are
LEVELS = ("L2", "L3", "memory")
KINDS = ("one row", "a tile", "more rows")
ROWS = (1, 4, 16)  # of the trial's steps, for each kind
SPREAD = 1  # as _roofline.SPREAD, which is not loaded for a model with small weights
NAMES = {0: "none", SPREAD: "spread"}
CANDIDATES = ((0, 2048, 4096), (0, 4096, 16384, SPREAD), (0, 4096, 16384, SPREAD))  # for each kind

LEAST = 256 << 10  # bytes of a cell whose level may be known from a file: smaller ones are in L1 and L2 anyway
TRIAL_NS = 40_000_000  # beside which loading modules and writing the file take up to 10 ms
SAMPLE_NS = 60_000  # of the steps between two readings of the clock
PIECE = 4 << 20  # bytes of a cell in memory that are stepped at a time, so that each piece comes from memory
LEAST_TURNS = 3
WORTH = 1.03  # times as fast as the fixed setting that another one must be
MODES = ("auto", "off", "again")

_lock = forks.Lock()
_settled: dict[str, int] = {}  # instruction set -> number of levels that need no trial any more
_infos: dict[str, TuningInfo] = {}


@dataclass(frozen=True)
class TuningInfo:
    """How products of float32 prefetch their weights.

    source : "fixed" (those of the instruction set), "measured" (by this process) or the path of the file.
    note : why they were not measured; else empty.
    sizes : bytes of the largest weights of a layer that count as in L2, and in L3.
    settings : (level, rows, setting, gains). level: "L2", "L3", "memory"; rows: "one row", "a tile" (up to 6), "more
        rows"; setting: "none", "spread" (tiles prefetch the next block of weights) or the bytes ahead; gains: how many
        times as fast as without prefetching each setting was, by setting; empty if that was not measured.
    """

    source: str
    note: str
    sizes: tuple[int, ...]
    settings: tuple[tuple[str, str, str, Mapping[str, float]], ...]

    def __str__(self) -> str:
        lines = [f"prefetching {self.source}{f' ({self.note})' if self.note else ''}"]
        for level in LEVELS:
            parts = []
            for _, rows, setting, gains in [s for s in self.settings if s[0] == level]:
                tried = ", ".join([f"{name} {gain:.2f}" for name, gain in gains.items() if name != "none"])
                parts.append(f"{rows}: {setting}{f' ({tried})' if tried else ''}")
            lines.append(f"  weights in {level:<8}{'; '.join(parts)}")
        return "\n".join(lines)


def mode(environ: Mapping[str, str] | None = None) -> str:
    """What FASTRNN_TUNE asks for: "auto", "off" or "again". Raises FastRNNError for anything else."""
    asked = (os.environ if environ is None else environ).get("FASTRNN_TUNE", "").strip() or "auto"
    if asked not in MODES:
        raise FastRNNError(f"FASTRNN_TUNE: expected one of {', '.join(map(repr, MODES))}, got {asked!r:.80}")
    return asked


def prepare(packed: Any) -> None:
    """Called for every PackedCell of a model that is loaded: choose the settings for weights of its size, if that is
    still to be done. Never waits for anything but its own trial."""
    if packed.nbytes < LEAST or packed.weights != "float32":
        return
    isa = _isa.kernels_of(packed.isa)
    if _settled.get(isa, 0) > _level(packed.nbytes, _settled_sizes(isa)):
        return
    with _lock:
        _prepare(packed, isa)


def tuning_info() -> TuningInfo:
    """The settings that the active instruction set uses now. Reads the file if no model has done so; measures nothing.

    Raises FastRNNError if FASTRNN_TUNE is not one of its values.
    """
    isa = _isa.kernels_of()
    asked = mode()
    if isa not in _infos and asked == "auto":
        with _lock, contextlib.suppress(RuntimeError):  # without a home folder there is no file
            _use_file(isa, Machine.found(isa))
    return _infos.get(isa) or _info(isa, "fixed", _note(asked))


def _note(asked: str) -> str:
    return "FASTRNN_TUNE=off" if asked == "off" else "no model with weights past L2 was loaded on this machine"


@dataclass(frozen=True)
class Machine:
    """What the settings depend on. key: all that names it; sizes: as in TuningInfo; path: of its file."""

    key: list[Any]
    sizes: tuple[int, int]
    path: Path

    @classmethod
    def found(cls, isa: str) -> Machine:
        import hashlib
        import json

        known = hardware.caches()
        L2 = known.get("L2", 1 << 20)
        key = [FORMAT, KERNELS, hardware.cpu_name(), isa, sorted(known.items())]
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = f"tuning-{isa}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]}.json"
        # Other processes take their share of an L3.
        return cls(key, (L2, max(L2, known.get("L3", 0) * 3 // 4)), home / "fastrnn" / name)


def _level(nbytes: int, sizes: tuple[int, ...]) -> int:
    return sum(nbytes > size for size in sizes)


def _settled_sizes(isa: str) -> tuple[int, ...]:
    info = _infos.get(isa)
    return info.sizes if info is not None else ()


def _prepare(packed: Any, isa: str) -> None:
    asked = mode()
    if asked == "off":
        _infos[isa], _settled[isa] = _info(isa, "fixed", _note(asked)), len(LEVELS)
        return
    try:
        machine = Machine.found(isa)
    except (OSError, RuntimeError, ValueError) as error:  # no home folder, for one
        _give_up(isa, f"no place to keep what is measured: {error}")
        return
    level = _level(packed.nbytes, machine.sizes)
    known = _use_file(isa, machine) if asked == "auto" or isa in _infos else {}
    if level == 0 or LEVELS[level] in known:
        _settled[isa] = max(_settled.get(isa, 0), level + 1)
        return
    try:
        with _alone(machine.path) as alone:
            if not alone:  # another process measures: this one takes the file when it next loads a model
                return
            known = {**known, **measure(packed, level, machine.sizes, known)}
            _use(isa, machine, known, "measured")
            with contextlib.suppress(OSError):  # such as a full disk: then this process alone uses it
                _keep(machine, known)
    except OSError as error:
        _give_up(isa, f"no place to keep what is measured: {error}")
        return
    _settled[isa] = level + 1


def _give_up(isa: str, why: str) -> None:
    _infos[isa], _settled[isa] = _info(isa, "fixed", why), len(LEVELS)
    from .logs import log

    log("INFO", "prefetching is not measured on this machine (%s)", why)


# ---- the file ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether no other process measures. Raises OSError if the folder can't be written, before anything is measured."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        if not os.access(path.parent, os.W_OK):  # a lock that another user left may be writable
            raise PermissionError(f"{path.parent} is read-only")
        yield True
    finally:
        os.close(handle)


def _keep(machine: Machine, known: Mapping[str, list]) -> None:
    import json

    from .files import replace_file

    replace_file(machine.path, json.dumps({"key": machine.key, "levels": known}).encode())


def _use_file(isa: str, machine: Machine) -> dict:
    """Use the settings of the file. Returns what it holds by level: nothing if it is missing or damaged."""
    import json

    try:
        record = json.loads(machine.path.read_text(encoding="utf-8"))
        if record["key"] != json.loads(json.dumps(machine.key)):
            return {}
        known = {str(level): _checked(kinds) for level, kinds in record["levels"].items() if level in LEVELS}
        _use(isa, machine, known, str(machine.path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return known


def _checked(kinds: Any) -> list:
    """[chosen, [[setting, gain], ...]] for each kind of rows. Raises ValueError or TypeError for anything else."""
    found = [[int(chosen), [[int(setting), float(gain)] for setting, gain in gains]] for chosen, gains in kinds]
    if len(found) != len(KINDS):
        raise ValueError(f"{len(found)} kinds of rows")
    for (chosen, gains), candidates in zip(found, CANDIDATES, strict=True):
        if not {chosen, *(s for s, _ in gains)} <= {*candidates} or any(not 0 < g < math.inf for _, g in gains):
            raise ValueError(f"unknown setting {chosen} or gains {gains}")
    return found


def _use(isa: str, machine: Machine, known: Mapping[str, list], source: str) -> None:
    from . import _roofline  # not part of the first load of a small model

    _, fixed = _fixed(isa)
    ahead = [[chosen for chosen, _ in known[level]] if level in known else fixed[i] for i, level in enumerate(LEVELS)]
    _roofline.tune(machine.sizes, ahead, isa)
    _infos[isa] = _info(isa, source, "", known)


def _fixed(isa: str) -> tuple:
    """The fixed settings of an instruction set, kept from before anything was measured."""
    from . import _roofline

    if isa not in _FIXED:
        _FIXED[isa] = _roofline.tuning(isa)
    return _FIXED[isa]


_FIXED: dict[str, tuple] = {}


def _name(setting: int) -> str:
    return NAMES.get(setting, f"{setting} bytes")


def _info(isa: str, source: str, note: str, known: Mapping[str, list] | None = None) -> TuningInfo:
    from . import _roofline

    _fixed(isa)
    sizes, ahead = _roofline.tuning(isa)
    rows = []
    for i, level in enumerate(LEVELS):
        for k, kind in enumerate(KINDS):
            gains = {_name(s): g for s, g in known[level][k][1]} if known and level in known else {}
            rows.append((level, kind, _name(ahead[i][k]), gains))
    return TuningInfo(source, note, sizes, tuple(rows))


# ---- the trial -----------------------------------------------------------------------------------------------------


def measure(packed: Any, level: int, sizes: tuple[int, int], known: Mapping[str, list]) -> dict[str, list]:
    """The fastest settings for weights at the level of this cell and at those before it, in at most 40 ms.

    Returns {level: [[chosen, [[setting, gain], ...]], ...]} for the levels that are not known, with an entry for each
    kind of rows and the gains over no prefetching. Steps that could not be measured in time keep the fixed setting.
    """
    from . import _roofline

    isa = _isa.kernels_of(packed.isa)
    before, (_, fixed) = _roofline.tuning(isa), _fixed(isa)
    end = time.perf_counter_ns() + TRIAL_NS
    levels = [at for at in range(level, -1, -1) if LEVELS[at] not in known]  # that of this model first
    found = {}
    try:
        for left, at in enumerate(levels):
            budget = (end - time.perf_counter_ns()) / (len(levels) - left) / len(KINDS)
            found[LEVELS[at]] = [
                _fastest(Walk(packed, at, k, sizes, isa), fixed[at][k], budget) for k in range(len(KINDS))
            ]
    finally:
        _roofline.tune(*before, isa)
    return found


class Walk:
    """Steps of the part of a cell that fits a level, with as many rows as a kind of calls has."""

    def __init__(self, packed: Any, level: int, kind: int, sizes: tuple[int, int], isa: str):
        from . import _roofline

        self.tune, self.isa, self.kind = _roofline.tune, isa, kind
        self.timer = _roofline.StepTimer(packed, ROWS[kind])
        self.blocks, self.in_memory = packed.blocks, level == len(LEVELS) - 1
        target = (sizes[0] // 2, min(4 * sizes[0], sizes[1] // 2), PIECE)[level]
        self.count = min(self.blocks, max(1, self.blocks * target // packed.nbytes))
        self.at = 0

    def ns(self, setting: int, steps: int = 1) -> float:
        """Of a step with this setting. In memory, each call steps the next piece of the cell, once."""
        self.tune((1 << 62, 1 << 62), [[setting] * len(KINDS)] * len(LEVELS), self.isa)
        if not self.in_memory:
            return self.timer.ns(0, self.count, steps)
        if self.at + self.count > self.blocks:
            self.at = 0
        self.at += self.count
        return self.timer.ns(self.at - self.count, self.at, 1)


def _fastest(walk: Walk, fixed: int, budget: float) -> list:
    """[the best setting, the gains of all]. Settings take turns, and the median of the turns decides, so that a busy
    neighbour slows all of them. Another setting than the fixed one must be worth it."""
    settings = CANDIDATES[walk.kind]
    start = time.perf_counter_ns()
    steps = max(1, round(SAMPLE_NS / max(walk.ns(fixed), 1.0)))  # this one also warms the caches
    turns: list[list[float]] = []
    while True:
        turn = (time.perf_counter_ns() - start) / max(len(turns), 1)
        if time.perf_counter_ns() + turn > start + budget:
            break
        turns.append([max(walk.ns(setting, steps), 1.0) for setting in settings])
    if len(turns) < LEAST_TURNS:
        return [fixed, []]
    gains = {s: sorted(turn[0] / turn[i] for turn in turns)[len(turns) // 2] for i, s in enumerate(settings)}
    best = max(gains, key=lambda setting: gains[setting])
    chosen = best if fixed not in gains or gains[best] >= WORTH * gains[fixed] else fixed
    return [chosen, [[setting, round(gain, 3)] for setting, gain in gains.items()]]
