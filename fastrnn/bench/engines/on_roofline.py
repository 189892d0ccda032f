"""No engine: what the machine itself can do, measured between the engines' rounds."""

import fastrnn
from fastrnn.machine import _roofline

PREFETCH_AHEAD = (0, 2048)  # bytes; which one is faster depends on the CPU and the level
# Some CPUs read wide vectors in halves and gain nothing by them.
NARROWER = {name: (name, "avx2") for name in ("amx", "avx512_vnni", "avx512")}
PROBE_NS = 300_000  # of one loop: long against the clock, short against a round
buffers = {}


def version():
    return "roofline probe"


def candidates(job, engine, threads):
    raise ValueError("the roofline probe runs no models")


def probe(message):
    """{"isa": active, "fma": flops a second, level: bytes a second} for {"levels": {level: bytes of its buffer}}."""
    isa = fastrnn.cpu_info().isa.active
    found = {"isa": isa, "fma": best(lambda repeats: _roofline.fma_rate(isa, repeats), 8.0)}
    for level, size in message["levels"].items():
        found[level] = max(read_rate(name, size) for name in NARROWER.get(isa, (isa,)))
    return found


def read_rate(isa, size):
    reader = buffers.get((isa, size))
    if reader is None:
        reader = buffers[isa, size] = _roofline.Reader(isa, size)
    return max(best(lambda repeats, a=ahead: reader.rate(repeats, a), size / 10) for ahead in PREFETCH_AHEAD)


def best(rate, guess_ns):
    """The best of three loops, each of about PROBE_NS; guess_ns: how long one repeat takes at a guess."""
    repeats = max(1, int(PROBE_NS / guess_ns))
    return max(rate(repeats) for _ in range(3))
