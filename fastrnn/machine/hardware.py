"""The name of the CPU and the sizes of its caches."""

from __future__ import annotations

from pathlib import Path


def cpu_name(cpuinfo: str = "/proc/cpuinfo") -> str:
    """The model of the CPU, as the system names it."""
    import platform

    try:
        with open(cpuinfo) as lines:  # of many cores: only those of the first one are made
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def caches(folder: str = "/sys/devices/system/cpu/cpu0/cache") -> dict[str, int]:
    """Level ("L1d", "L2", "L3") -> bytes of one cache; empty if the system does not say."""
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
