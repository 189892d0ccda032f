"""The limits of this machine, measured in about a second and cached in a file: the roofline of `fastrnn profile`.

    limits = measured()        from the cache for this CPU and instruction set, or measured now and cached
    limits = measure()         measured now

The cache is stored in $XDG_CACHE_HOME/fastrnn (or ~/.cache/fastrnn) and may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, field, replace
from pathlib import Path

import numpy as np

from ..graph import Graph, Node, Value, validate
from ..graph.cells import CellSpec
from ..graph.dims import BATCH, TIME
from ..graph.precision import PRECISIONS
from ..machine import _isa, _kernel_calls
from ..machine.cpu import cpu_info
from ..machine.files import replace_file
from ..model import Model
from ..records import dataclass
from ..runtime._timing import OpTimer, clock_ns

FORMAT = 4  # of the cache file; other formats are measured again
LEVELS = ("L1", "L2", "L3", "memory")
KIB = 1024
# If the system does not report them: the minimum of nearly every server CPU.
USUAL_CACHES = {"L1": 32 * KIB, "L2": 512 * KIB, "L3": 8192 * KIB}
LARGEST_L3 = 8 << 20  # an L3 is shared, so don't count on more of a larger one
MEMORY_BYTES = 64 << 20
LOOP_NS = 400_000  # of one timed loop: long against the clock, short against a time slice
TRIES = 3
PREFETCH_AHEAD = (0, 2048)  # bytes; which one is faster depends on the CPU and the level
# Some CPUs read wide vectors in halves, without a gain.
NARROWER = {name: (name, "avx2") for name in ("amx", "avx512_vnni", "avx512")}


@dataclass(frozen=True)
class FormatRates:
    """Products in a number format of reduced precision, as the kernels compute them from the nearest cache.

    flops : floating point operations per second of many rows; a multiply-add is two, whatever its numbers are
    term_ns : of one term of a sum, for one row and a block of columns of four vectors
    round_ns : of rounding one number of a row
    """

    flops: float
    term_ns: float
    round_ns: float


@dataclass(frozen=True)
class Limits:
    """One thread of this machine.

    cpu, isa, lanes, caches : the machine of these limits; caches: level -> bytes
    fma : floating point operations per second of independent multiply-adds (each is two)
    read : (bytes of the working set, bytes read per second), by rising size
    latency_ns : of one multiply-add that waits for the previous one
    function_ns : tanh of one vector of `lanes` numbers, among many
    step_ns, run_ns : from Python to the ops and back, for `Stream.step(x, out=y)` and `Model.run(x)`
    general_ns : for a step other than one plain array in and one out
    formats : format of reduced precision -> its products; empty in records of earlier releases
    """

    cpu: str
    isa: str
    lanes: int
    caches: Mapping[str, int]
    fma: float
    read: tuple[tuple[int, float], ...]
    latency_ns: float
    function_ns: float
    step_ns: float
    run_ns: float
    general_ns: float
    formats: Mapping[str, FormatRates] = field(default_factory=dict)

    def read_rate(self, footprint: float) -> float:
        """Bytes per second when a working set of that many bytes is read repeatedly. Interpolates between measured
        sizes by the logarithm of the size."""
        sizes = [math.log(size) for size, _ in self.read]
        return float(np.interp(math.log(max(footprint, 1)), sizes, [rate for _, rate in self.read]))

    def level(self, footprint: float) -> str:
        """The nearest level that holds that many bytes: "L1", "L2", "L3" or "memory"."""
        return next((n for n in LEVELS[:-1] if n in self.caches and footprint <= self.caches[n]), "memory")

    def as_dict(self) -> dict:
        """The same as dicts, lists, strings and numbers."""
        return {**asdict(self), "read": [list(pair) for pair in self.read], "caches": dict(self.caches)}

    @classmethod
    def from_dict(cls, record: Mapping) -> Limits:
        """The inverse of `as_dict`. Raises ValueError, KeyError or TypeError for an invalid record."""
        values = {name: record[name] for name in cls.__dataclass_fields__ if name != "formats"}
        values["formats"] = {str(n): FormatRates(**rates) for n, rates in record.get("formats", {}).items()}
        values["read"] = tuple((int(size), float(rate)) for size, rate in record["read"])
        values["caches"] = {str(name): int(size) for name, size in record["caches"].items()}
        for name in ("fma", "latency_ns", "function_ns", "step_ns", "run_ns", "general_ns"):
            values[name] = float(record[name])
            if not 0 < values[name] < math.inf:
                raise ValueError(f"{name} is {values[name]}")
        if any(not 0 < v < math.inf for rates in values["formats"].values() for v in asdict(rates).values()):
            raise ValueError("rates of formats must be positive")
        if not values["read"] or any(size <= 0 or not 0 < rate < math.inf for size, rate in values["read"]):
            raise ValueError("reading rates must be positive")
        return cls(**values)


def caches() -> dict[str, int]:
    """Level -> bytes of the data caches of this machine; `USUAL_CACHES` if the system does not say."""
    found = {name.rstrip("d"): size for name, size in cpu_info().caches.items()}
    return {name: found[name] for name in LEVELS[:-1] if name in found} or dict(USUAL_CACHES)


def cache_file() -> Path:
    """The cache file for this CPU, instruction set and kind of machine."""
    info = cpu_info()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = json.dumps([FORMAT, info.name, info.isa.active, sorted(caches().items())])
    return Path(home) / "fastrnn" / f"limits-{info.isa.active}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"


def measured(again: bool = False) -> Limits:
    """The limits from the cache file. If it is absent or unreadable, or with `again`, measures and writes them first.

    Figures that were measured while the core was busy are too low, and would stay so. So if multiply-adds turn out to
    be a tenth faster than in the cache, everything is measured again and the better value of each figure is kept.
    """
    path, known = cache_file(), None
    if not again:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            known = Limits.from_dict(json.loads(path.read_text(encoding="utf-8")))
    if known is not None and _fma_rate() <= 1.1 * known.fma:
        return known
    limits = measure()
    if known is not None and [size for size, _ in known.read] == [size for size, _ in limits.read]:
        limits = best_of(known, limits)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(limits.as_dict()).encode())
    except OSError:  # if the cache can't be written, the next call takes a second more
        pass
    return limits


def best_of(*found: Limits) -> Limits:
    """The best of each figure over several measurements of a machine: neighbours can only slow things down."""
    read = tuple((size, max(one.read[i][1] for one in found)) for i, (size, _) in enumerate(found[0].read))
    times = ("latency_ns", "function_ns", "step_ns", "run_ns", "general_ns")
    least = {name: min(getattr(one, name) for one in found) for name in times}
    formats = {
        name: FormatRates(
            max(one.formats[name].flops for one in found),
            min(one.formats[name].term_ns for one in found),
            min(one.formats[name].round_ns for one in found),
        )
        for name in found[0].formats
        if all(name in one.formats for one in found)
    }
    return replace(found[0], fma=max(one.fma for one in found), read=read, formats=formats, **least)


def _fma_rate() -> float:
    """Floating point operations per second of multiply-adds, in about a millisecond."""
    from ..machine import _roofline  # not part of a service's path

    isa = cpu_info().isa.active
    return _best(lambda n: _roofline.fma_rate(isa, n), 8.0)


def measure() -> Limits:
    """Measure this machine with one thread, in about a second. Neighbours that share its caches affect the figures."""
    from ..machine import _roofline  # not part of a service's path

    info, fma = cpu_info().isa, _fma_rate()
    sizes, read = caches(), []
    for size in _reading_sizes(sizes):
        readers = [_roofline.Reader(name, size) for name in NARROWER.get(info.active, (info.active,))]
        rate = max(_best(lambda n, r=r, a=a: r.rate(n, a), size / 20) for r in readers for a in PREFETCH_AHEAD)
        read.append((size, rate))
    return Limits(
        cpu_info().name, info.active, info.lanes, sizes, fma, tuple(read), _latency_ns(info.lanes), _function_ns(),
        *_call_ns(), {name: _format_rates(name, info.lanes) for name in PRECISIONS[1:]},
    )  # fmt: skip


def _reading_sizes(sizes: Mapping[str, int]) -> list[int]:
    """Working sets from well inside L1 to beyond the last level, denser near the sizes of the caches."""
    L1, L2 = sizes.get("L1", USUAL_CACHES["L1"]), sizes.get("L2", USUAL_CACHES["L2"])
    found = {L1 // 2, L1, L1 * 3 // 2, 2 * L1, 4 * L1, L2 // 2, L2, L2 * 3 // 2, 2 * L2, 4 * L2}
    if "L3" in sizes:
        found |= {min(sizes["L3"] // 4, LARGEST_L3), sizes["L3"] // 2}
    return sorted({*found, max(MEMORY_BYTES, 2 * max(sizes.values()))})


def _best(rate: Callable[[int], float], guess_ns: float) -> float:
    """The best of some loops, each of about LOOP_NS; guess_ns: how long one repeat takes at a guess."""
    repeats = max(1, int(LOOP_NS / guess_ns))
    return max(rate(repeats) for _ in range(TRIES))


def _timed(call: Callable[[], object], repeats: int) -> float:
    """The least ns of one call, over some rounds of `repeats`."""
    best = math.inf
    for _ in range(3 * TRIES):
        start = time.perf_counter_ns()
        for _ in range(repeats):
            call()
        best = min(best, (time.perf_counter_ns() - start) / repeats)
    return best


def _latency_ns(lanes: int) -> float:
    """A product of one row with one block of columns waits at every term; this is the difference of two lengths."""
    times = []
    for K in (512, 1536):
        packed = _isa.pack_linear(np.zeros((K, lanes), np.float32))
        x = np.zeros((1, K), np.float32)
        times.append(_timed(lambda packed=packed, x=x: _kernel_calls.linear(packed, x), 40))
    return max((times[1] - times[0]) / 1024, 0.05)


def _format_rates(name: str, lanes: int) -> FormatRates:
    """The rates of a format, from differences of linear layers: of one and two blocks of columns, of two lengths."""
    x = np.random.default_rng(0).standard_normal((64, 384), np.float32)

    def slope(rows: int, blocks: int) -> float:
        """ns for each further term of the sums."""
        times = []
        for K in (128, 384):
            W = np.random.default_rng(1).standard_normal((K, 4 * blocks * lanes), np.float32)
            packed, part = _isa.pack_linear(W, weights=name), np.ascontiguousarray(x[:rows, :K])
            times.append(_timed(lambda packed=packed, part=part: _kernel_calls.linear(packed, part), 40 // rows + 1))
        return (times[1] - times[0]) / 256

    one, two, row = slope(64, 1), slope(64, 2), slope(1, 1)
    block = max(two - one, 0.01)  # of 64 rows and one block, without rounding
    rounding = max((one - block) / 64, 0.001)
    return FormatRates(2e9 * 64 * 4 * lanes / block, max(row - rounding, 0.001), rounding)


def _function_ns() -> float:
    """tanh over two lengths; the difference excludes the call."""
    lanes, times = cpu_info().isa.lanes, []
    for count in (64, 192):
        x = np.linspace(-4, 4, count * lanes, dtype=np.float32)
        times.append(_timed(lambda x=x: _kernel_calls.map_function("tanh", x), 100))
    return max((times[1] - times[0]) / 128, 0.05)


def _call_ns() -> tuple[float, ...]:
    """A step of a stream, a run of one step, and a step with two outputs, for models that do almost nothing: one tanh
    layer of 4 units."""
    model = tiny_model()
    stream, x = model.stream(), np.zeros(4, np.float32)
    y, step, run, whole = stream.step(x), stream.step, model.run, x.reshape(1, 1, 4)
    stream.program.timer = timer = OpTimer(1, 200)  # subtract the layer itself from the call
    for _ in range(200):
        step(x, out=y)
    stream.program.timer = None
    kernel = max(float(np.median(timer.ns)) - clock_ns(), 0.0)

    def steps(n):
        for _ in range(n):
            step(x, out=y)

    def runs(n):
        for _ in range(n):
            run(whole)

    several = tiny_model(outputs=2).stream()
    out, general = several.step(x), several.step

    def generals(n):
        for _ in range(n):
            general(x, out=out)

    timed = ((steps, 500), (runs, 50), (generals, 50))
    return tuple(max(_best_ns(calls, n) - kernel, 1.0) for calls, n in timed)


def _best_ns(calls: Callable[[int], object], repeats: int) -> float:
    """The least ns of one of `repeats` calls, which `calls` makes in its own loop."""
    return min(_timed(lambda: calls(repeats), 1) for _ in range(TRIES)) / repeats


def tiny_model(outputs: int = 1) -> Model:
    """x [time, batch, 4] through an RNN of 4 units; its second output is the last state."""
    values = [Value(name, "float32", (TIME, BATCH, 4)) for name in "xy"] + [Value("h", "float32", (BATCH, 4))]
    constants = {name: np.full((4, 4), 0.1, np.float32) for name in "WR"}
    values += [Value(name, "float32", (4, 4)) for name in constants]
    node = Node("cell", "cell", ("x", "W", "R"), ("y", "h"), {"spec": CellSpec("rnn", 4, 4)})
    graph = Graph("tiny", ("x",), ("y", "h")[:outputs], (node,), {v.name: v for v in values}, constants)
    return Model(validate(graph), threads=1)
