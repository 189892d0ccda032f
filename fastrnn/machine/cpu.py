"""What this process may use of the machine: instruction set, threads and caches, each with the reason.

How many threads a model uses by default is the smallest of what these say: the CPUs that this process may run on
(affinity), the CPU quota of its control group (v1 `cpu.cfs_quota_us`, v2 `cpu.max`, any level above it too), and
`OMP_NUM_THREADS`. `FASTRNN_THREADS` overrides all of them. A quota of 2.5 CPUs gives 2 threads: a team works in
lock-step, and one whose members get throttled in turn is slower than a smaller one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import FastRNNError

MAX_THREADS = 1024  # more is a typing error


@dataclass(frozen=True)
class IsaInfo:
    """The instruction sets of fastrnn's kernels.

    detected : the best one that this CPU and its operating system run.
    active : the one in use.
    forced_by : the environment setting that chose it ("FASTRNN_ISA"), or None.
    available : those that can run here, best first; compiled : those that this build holds.
    lanes : float32 numbers in the active one's widest vector.
    """

    detected: str
    active: str
    forced_by: str | None
    available: tuple[str, ...]
    compiled: tuple[str, ...]
    lanes: int


@dataclass(frozen=True)
class ThreadInfo:
    """How many threads a model uses when nobody says otherwise.

    count : that number, >= 1.
    reason : what decided it, in words.
    limits : every (source, CPUs) that was found; a quota may be a fraction.
    """

    count: int
    reason: str
    limits: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class CpuInfo:
    """What `cpu_info` returns. caches: level ("L1d", "L2", "L3") -> bytes of one such cache; empty where unknown."""

    name: str
    isa: IsaInfo
    threads: ThreadInfo
    caches: Mapping[str, int]

    def as_dict(self) -> dict:
        """The same as dicts, lists, strings and numbers."""
        return {
            "name": self.name,
            "isa": asdict(self.isa),
            "threads": asdict(self.threads),
            "caches": dict(self.caches),
        }

    def to_json(self) -> str:
        """`as_dict` as JSON text."""
        import json

        return json.dumps(self.as_dict())

    def __str__(self) -> str:
        isa, threads = self.isa, self.threads
        how = f"forced by {isa.forced_by}" if isa.forced_by else "the best here"
        lines = [
            self.name,
            f"isa      {isa.active} ({how}); detected {isa.detected}, available {' '.join(isa.available)}",
            f"threads  {threads.count} ({threads.reason})",
        ]
        if self.caches:
            sizes = ", ".join(f"{level} {size // 1024} KiB" for level, size in self.caches.items())
            lines.append(f"caches   {sizes}")
        return "\n".join(lines)


def cpu_info() -> CpuInfo:
    """Describe the machine as fastrnn sees and uses it.

    Returns
    -------
    CpuInfo
        Read anew at each call: affinity, quota and environment as they are now. The instruction set was chosen at
        import and does not change.

    Raises
    ------
    FastRNNError
        `FASTRNN_THREADS` or `OMP_NUM_THREADS` holds something that is no number of threads.

    Examples
    --------
    >>> import fastrnn
    >>> fastrnn.cpu_info().threads.count >= 1
    True
    """
    from . import _isa

    found = _isa.isa_info()
    isa = IsaInfo(
        detected=found["detected"],
        active=found["active"],
        forced_by=found["forced_by"],
        available=tuple(found["available"]),
        compiled=tuple(found["compiled"]),
        lanes=int(found["lanes"]),
    )
    return CpuInfo(name=_cpu_name(), isa=isa, threads=thread_info(), caches=_caches())


def thread_info(environ: Mapping[str, str] | None = None) -> ThreadInfo:
    """How many threads to use where the caller names no number, and why.

    Parameters
    ----------
    environ : mapping, default `os.environ`
        Where `FASTRNN_THREADS` and `OMP_NUM_THREADS` are looked up; an empty text counts as unset.

    Raises
    ------
    FastRNNError
        One of the two is no whole number from 1 to 1024 (of a list such as "4,2" the first counts, as in OpenMP).
    """
    environ = os.environ if environ is None else environ
    limits: list[tuple[str, float]] = [_affinity()]
    quota = cgroup_quota()
    if quota is not None:
        limits.append(("CPU quota of the control group", quota))
    asked = _threads_of("OMP_NUM_THREADS", environ)
    if asked is not None:
        limits.append(("OMP_NUM_THREADS", asked))
    forced = _threads_of("FASTRNN_THREADS", environ)
    if forced is not None:
        return ThreadInfo(forced, "FASTRNN_THREADS", (("FASTRNN_THREADS", forced), *limits))
    reason, least = min(limits, key=lambda limit: limit[1])
    return ThreadInfo(max(1, math.floor(least)), reason, tuple(limits))


def _threads_of(variable: str, environ: Mapping[str, str]) -> int | None:
    text = environ.get(variable, "").strip()
    if not text:
        return None
    first = text.split(",")[0].strip()
    if not (first.isascii() and first.isdigit() and 1 <= int(first) <= MAX_THREADS):
        raise FastRNNError(f"{variable}={text}: expected a number of threads from 1 to {MAX_THREADS}")
    return int(first)


def _affinity() -> tuple[str, int]:
    if hasattr(os, "sched_getaffinity"):
        return "CPUs of this process's affinity", len(os.sched_getaffinity(0))
    return "CPUs of this machine", os.cpu_count() or 1


def cgroup_quota(membership: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> float | None:
    """CPUs that the control groups of this process grant it: the least over the group and all groups above it.

    Returns None where nothing limits it, or where there are no control groups. Both versions are read; in a container
    the path of `membership` may be the host's, so that only the mount's own root (the container's limit) is found.
    """
    try:
        lines = Path(membership).read_text().splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            for folder in _upwards(Path(mount), path):
                found.append(_quota_v2(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for root in (Path(mount, controllers), Path(mount, "cpu")):
                for folder in _upwards(root, path):
                    found.append(_quota_v1(folder))
    quotas = [quota for quota in found if quota is not None]
    return min(quotas, default=None)


def _upwards(root: Path, path: str) -> list[Path]:
    """The folder of a control group and those above it, up to the hierarchy's root; only plain names are followed."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return [root.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def _quota_v2(file: Path) -> float | None:
    try:
        quota, period = file.read_text().split()
        return int(quota) / int(period) if quota != "max" else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _cpu_name(cpuinfo: str = "/proc/cpuinfo") -> str:
    import platform

    try:
        for line in Path(cpuinfo).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _caches(folder: str = "/sys/devices/system/cpu/cpu0/cache") -> dict[str, int]:
    sizes = {}
    for index in sorted(Path(folder).glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            if kind != "Instruction":
                sizes[f"L{level}{'d' if kind == 'Data' else ''}"] = _bytes(size)
        except (OSError, ValueError):
            continue
    return sizes


def _bytes(text: str) -> int:
    scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:])
    return int(text[:-1]) * scale if scale else int(text)
