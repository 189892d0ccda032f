"""What this process may use of the machine: instruction set, threads and caches, each with the reason.

The default number of threads of a model is the least of: the CPUs that this process may run on (affinity), the CPU
quota of its control group (v1 `cpu.cfs_quota_us`, v2 `cpu.max`, including all levels above), and `OMP_NUM_THREADS`.
`FASTRNN_THREADS` overrides all of them. A quota of 2.5 CPUs gives 2 threads, because a team works in lock-step: a team
whose members are throttled in turn is slower than a smaller one.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FastRNNError
from ..records import dataclass
from .hardware import caches as _caches
from .hardware import cpu_name as _cpu_name
from .workers import ThreadingInfo, threading_info

if TYPE_CHECKING:
    from .tuning import TuningInfo

MAX_THREADS = 1024  # more is a typo


@dataclass(frozen=True)
class IsaInfo:
    """The instruction sets of fastrnn's kernels.

    detected : the best one that this CPU and operating system support.
    active : the one in use.
    forced_by : the environment variable that selected it ("FASTRNN_ISA"), or None.
    available : those that can run here, best first.
    compiled : those in this build.
    lanes : float32 numbers in the widest vector of the active one.
    note : why "amx" is not available on a CPU that has it, and what to do; else empty.
    """

    detected: str
    active: str
    forced_by: str | None
    available: tuple[str, ...]
    compiled: tuple[str, ...]
    lanes: int
    note: str = ""


@dataclass(frozen=True)
class ThreadInfo:
    """The default number of threads of a model.

    count : the number, >= 1.
    reason : what determined it, in words.
    limits : every (source, CPUs) that was found; a quota may be a fraction.
    """

    count: int
    reason: str
    limits: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class CpuInfo:
    """The result of `cpu_info`.

    caches : level ("L1d", "L2", "L3") -> bytes of one cache; empty if unknown.
    tuning : how products of float32 prefetch their weights, and what was measured for that.
    """

    name: str
    isa: IsaInfo
    threads: ThreadInfo
    threading: ThreadingInfo
    caches: Mapping[str, int]
    tuning: TuningInfo

    def as_dict(self) -> dict[str, Any]:
        """The same data as dicts, lists, strings and numbers."""
        return {
            "name": self.name,
            "isa": asdict(self.isa),
            "threads": asdict(self.threads),
            "threading": asdict(self.threading),
            "caches": dict(self.caches),
            "tuning": asdict(self.tuning),
        }

    def to_json(self) -> str:
        """`as_dict` as JSON text."""
        import json

        return json.dumps(self.as_dict())

    def __str__(self) -> str:
        isa, threads, workers = self.isa, self.threads, self.threading
        how = f"forced by {isa.forced_by}" if isa.forced_by else "the best here"
        lines = [
            self.name,
            f"isa      {isa.active} ({how}); detected {isa.detected}, available {' '.join(isa.available)}"
            + (f"; {isa.note}" if isa.note else ""),
            f"threads  {threads.count} ({threads.reason})",
            f"workers  {workers.kind} ({workers.chosen_by}): steps {workers.steps}, runs {workers.runs}",
        ]
        if workers.note:
            lines[-1] += f"; {workers.note}"
        if self.caches:
            sizes = ", ".join(f"{level} {size // 1024} KiB" for level, size in self.caches.items())
            lines.append(f"caches   {sizes}")
        lines.append(f"tuning   {self.tuning}")
        return "\n".join(lines)


def cpu_info() -> CpuInfo:
    """Describe the machine as fastrnn uses it.

    Returns
    -------
    CpuInfo
        Each call reads affinity, quota and environment again. The instruction set is chosen at import and does not
        change.

    Raises
    ------
    FastRNNError
        `FASTRNN_THREADS` or `OMP_NUM_THREADS` is not a number of threads, `FASTRNN_THREADING` is not "auto", "team" or
        "openmp", or `FASTRNN_TUNE` is not "auto", "off" or "again".

    Examples
    --------
    >>> import fastrnn
    >>> fastrnn.cpu_info().threads.count >= 1
    True
    """
    from . import _isa
    from .tuning import tuning_info  # not part of `import fastrnn`

    found = _isa.isa_info()
    isa = IsaInfo(
        detected=found["detected"],
        active=found["active"],
        forced_by=found["forced_by"],
        available=tuple(found["available"]),
        compiled=tuple(found["compiled"]),
        lanes=int(found["lanes"]),
        note=_tile_note(int(found["refusal"])),
    )
    return CpuInfo(
        name=_cpu_name(),
        isa=isa,
        threads=thread_info(),
        threading=threading_info(),
        caches=_caches(),
        tuning=tuning_info(),
    )


def _tile_note(refusal: int) -> str:
    """Why the tile unit (AMX) of this CPU can't be used; empty if it can, or if the CPU has none."""
    if refusal == 0:
        return ""
    if refusal < 0:
        return (
            "this CPU has AMX, but the operating system does not save its tiles (XCR0 bits 17 and 18 are 0): "
            "it takes Linux 5.16 or later, and in a virtual machine a hypervisor that passes AMX on"
        )
    todo = {
        errno.EINVAL: "it takes Linux 5.16 or later",
        errno.ENOSPC: "a thread's alternate signal stack is too small for them; make it sysconf(_SC_SIGSTKSZ) bytes "
        "before fastrnn is imported",
    }.get(refusal, "a sandbox may forbid it; let its filter allow arch_prctl(0x1023, 18)")
    name = errno.errorcode.get(refusal, str(refusal))
    return f"this CPU has AMX, but Linux refused its tiles (arch_prctl(ARCH_REQ_XCOMP_PERM) gave {name}): {todo}"


def thread_info(environ: Mapping[str, str] | None = None) -> ThreadInfo:
    """The number of threads to use if the caller passes none, and the reason.

    Parameters
    ----------
    environ : mapping, default `os.environ`
        Contains `FASTRNN_THREADS` and `OMP_NUM_THREADS`; an empty value counts as unset.

    Raises
    ------
    FastRNNError
        One of the two is not a whole number from 1 to 1024. In a list such as "4,2" the first counts, as in OpenMP.
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
    """The CPU quota of this process: the least over its control group and all groups above it.

    Returns None without a limit or without control groups. Both versions are read. In a container, the path in
    `membership` may be that of the host; then only the root of the mount (the limit of the container) is found.
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
    """The folder of a control group and those above it, up to the root of the hierarchy; only plain names count."""
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
