"""What a benchmark ran on: CPU, caches, flags, memory, system, and how busy it was."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from ..machine.cpu import cpu_info

KIB = 1024
# Sizes of the probe's buffers if the system does not say: what nearly every server CPU has at least.
DEFAULT_CACHES = {"L1": 32 * KIB, "L2": 512 * KIB, "L3": 8192 * KIB}
MAX_L3_BUFFER = 8 << 20  # an L3 is shared; neighbours' share of a larger one is not ours to use
MAX_MEMORY_BUFFER = 256 << 20


def describe() -> dict:
    """The machine as plain dicts and numbers."""
    info = cpu_info().as_dict()
    uname = platform.uname()
    return {
        "cpu": info["name"],
        "isa": info["isa"],
        "caches": caches(info["caches"]),
        "flags": _cpu_field("flags") or _cpu_field("Features"),
        "cpus": info["threads"],
        "memory_bytes": _memory(),
        "system": f"{uname.system} {uname.release} {uname.machine}",
        "python": sys.version.split()[0],
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }


def caches(found: dict[str, int]) -> dict[str, int]:
    """Level -> bytes of the data cache ("L1", not "L1d"); `DEFAULT_CACHES` if nothing was found."""
    named = {level.rstrip("d"): size for level, size in found.items() if level.rstrip("d") in DEFAULT_CACHES}
    return named or dict(DEFAULT_CACHES)


def probe_sizes(sizes: dict[str, int]) -> dict[str, int]:
    """Bytes of the buffer that represents each level: it fits there with room to spare, and not one level nearer."""
    found = {level: sizes[level] // 2 for level in ("L1", "L2") if level in sizes}
    if "L3" in sizes:
        found["L3"] = max(2 * sizes.get("L2", 0), min(sizes["L3"] // 4, MAX_L3_BUFFER))
    last = max(sizes.values())
    found["memory"] = min(max(4 * last, 64 << 20), MAX_MEMORY_BUFFER)
    return found


def _cpu_field(name: str) -> str:
    for line in (_text("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
