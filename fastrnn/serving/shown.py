"""Streams and pools as a notebook shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import tables

if TYPE_CHECKING:
    from .pool import StreamPool
    from .stream import Stream


def stream(stream: Stream) -> str:
    """HTML: where the stream is in its sequence, and what it keeps."""
    rows: list[tuple[str, object]] = [("model", stream.model.name)]
    rows += [] if stream.batch_size is None else [("batch size", stream.batch_size)]
    rows += [("steps done", stream.steps_done), ("delay", stream.delay)]
    layout = stream._parts.layout
    for state in () if layout is None else layout.shown:
        rows.append((f"state {state.name}", f"{state.dtype} [{', '.join(map(str, state.dims))}]"))
    rows += [("bound", name) for name in stream.bound or ()]
    return tables.block("Stream", tables.pairs(rows))


def pool(pool: StreamPool) -> str:
    """HTML: how full the pool is, and what its calls cost so far."""
    told = pool.stats()
    step = told["step"]
    rows: list[tuple[str, object]] = [
        ("model", pool.model.name),
        ("slots", f"{told['open']:,} of {told['capacity']:,} open; {told['opened']:,} opened so far"),
        ("memory", f"{tables.size(told['memory_bytes'])} at full use"),
        ("calls of step", f"{step['calls']:,}, {step['steps']:,} steps of streams"),
    ]
    if step["seconds"]["count"]:
        half, most = (tables.seconds(step["seconds"][p]) for p in ("p50", "p99"))
        rows.append(("a call takes", f"{half}; 99 of 100 at most {most}"))
    return tables.block("StreamPool", tables.pairs(rows))
