"""Which actor is on which node, and which shard belongs to which actor."""

from __future__ import annotations

from typing import Any

import numpy as np


def nodes_of(ray: Any) -> list[str]:
    """The ids of the nodes that are alive and have CPUs, in a fixed order."""
    return sorted(n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0)


def balanced(
    cluster: str, actors: list[str], owner: np.ndarray, where: dict[str, str], nodes: list[str], most: int | None
) -> tuple[list[str], np.ndarray, dict[str, str]]:
    """Spread shards evenly over actors on these nodes, and move as few as that takes.

    Parameters
    ----------
    actors : names; owner : int64 [shards], positions in them; where : actor -> its node
    nodes : on which the actors shall be. most : actors in all; None: one per node

    Returns
    -------
    (names of actors, int64 [shards] of positions in them, actor -> node)
    """
    count = most or len(nodes)
    room = {node: count // len(nodes) + (k < count % len(nodes)) for k, node in enumerate(nodes)}
    places: dict[str, str] = {}
    for name in actors:  # stay where they are, if that node is wanted
        node = where.get(name, "")
        if room.get(node, 0):
            room[node] -= 1
            places[name] = node
    numbers = (n for n in range(1 << 30) if f"{cluster}-{n}" not in actors)
    for node, left in room.items():
        for _ in range(left):
            places[f"{cluster}-{next(numbers)}"] = node
    names = list(places)
    shards = len(owner)
    quota = [shards // len(names) + (k < shards % len(names)) for k in range(len(names))]
    new = np.full(shards, -1, np.int64)
    for shard, k in enumerate(owner.tolist()):
        at = names.index(actors[k]) if actors[k] in places else -1
        if at >= 0 and quota[at]:
            new[shard], quota[at] = at, quota[at] - 1
    left = [k for k, n in enumerate(quota) for _ in range(n)]
    new[new < 0] = left
    return names, new, places
