"""What the parts of soak.py share: sequences, streams whose every answer is compared, and what was found."""

from __future__ import annotations

import collections
import os
import random
import resource
import time
from pathlib import Path

import numpy as np

import fastrnn

SEQUENCES, STEPS = 64, 150  # of each kind of stream
FEATURES, HIDDEN = 8, 48
PROBLEMS = 20  # that are kept
MOST_GROWTH = 6 << 20  # bytes of memory between the first and the last third of a run, after its warm-up
MOST_DESCRIPTORS = 4  # more at the end than after the warm-up


class Found:
    """What a part has found: problems, counts, and its memory over time."""

    def __init__(self, part: str):
        self.part, self.problems, self.notes = part, [], []
        self.counts: collections.Counter = collections.Counter()
        self.memory: list[int] = []
        self.descriptors: list[int] = []
        self._next = 0.0

    def problem(self, text: str) -> None:
        if len(self.problems) < PROBLEMS:
            self.problems.append(f"{self.part}: {text}"[:500])

    def sample(self) -> None:
        """Note the memory and descriptors of this process, once in half a second."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 0.5
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.memory.append(pages * resource.getpagesize())
            self.descriptors.append(len(os.listdir("/proc/self/fd")))

    def check_flat(self, processes: int = 1) -> None:
        """A problem if memory or descriptors grow after the first quarter, the warm-up. processes : that have it"""
        after = self.memory[len(self.memory) // 4 :]
        third = len(after) // 3
        if third < 4:
            self.notes.append("too short to say whether memory is flat")
            return
        first, last = np.median(after[:third]), np.median(after[-third:])
        self.notes.append(f"memory {first / 1e6:.1f} -> {last / 1e6:.1f} MB, {self.descriptors[-1]} descriptors")
        if last - first > MOST_GROWTH * processes:
            self.problem(f"memory grows: {first / 1e6:.1f} -> {last / 1e6:.1f} MB")
        if self.descriptors[-1] - self.descriptors[len(self.descriptors) // 4] > MOST_DESCRIPTORS:
            self.problem(f"descriptors: {self.descriptors[len(self.descriptors) // 4]} -> {self.descriptors[-1]}")

    def check_slots(self, pool) -> None:
        stats = pool.stats()
        if len(pool) or stats["opened"] != stats["closed"]:
            self.problem(f"{len(pool)} slots leak: {stats['opened']} opened, {stats['closed']} closed")

    def as_dict(self) -> dict:
        return {
            "part": self.part,
            "problems": self.problems,
            "counts": dict(self.counts),
            "notes": self.notes,
            "memory": self.memory,
        }


class World:
    """A model, the inputs of some sequences, and what a lone stream says to each step of them."""

    def __init__(self, steps: int = STEPS, sequences: int = SEQUENCES):
        rng = np.random.default_rng(7)
        W, R = (rng.standard_normal((3 * HIDDEN, n)) / np.sqrt(n) for n in (FEATURES, HIDDEN))
        self.model = fastrnn.from_arrays("gru", W=W.astype(np.float32), R=R.astype(np.float32), order="zrh")
        self.x = rng.standard_normal((sequences, steps, FEATURES)).astype(np.float32)
        self.y = np.stack([self.model.stream().push(x) for x in self.x])


class Streams:
    """Some streams of a pool, each at some step of some sequence; every answer is compared."""

    def __init__(self, world: World, pool, found: Found, seed: int, most: int, names: dict | None = None):
        self.world, self.pool, self.found, self.most = world, pool, found, most
        self.rng = random.Random(seed)
        self.at: dict[int, list[int]] = {}  # slot -> [sequence, steps]
        self.names = names  # slot -> sequence, also of those that are gone; None if not needed

    def add(self, slot: int, sequence: int, steps: int) -> None:
        self.at[slot] = [sequence, steps]
        if self.names is not None:
            self.names[slot] = sequence

    def drop(self, slot: int) -> None:
        del self.at[slot]
        self.pool.close(slot)

    def compare(self, slot: int, first: int, y: np.ndarray) -> None:
        sequence = self.at[slot][0]
        self.found.counts["steps"] += len(y)
        if y.tobytes() != self.world.y[sequence, first : first + len(y)].tobytes():
            self.found.problem(f"WRONG BITS: slot {slot}, sequence {sequence}, steps {first} to {first + len(y)}")

    def step(self) -> None:
        """One step of some of them."""
        slots = [s for s in self.at if self.at[s][1] < self.world.x.shape[1] and self.rng.random() < 0.7]
        if slots:
            y = self.pool.step(slots, np.stack([self.world.x[tuple(self.at[s])] for s in slots]))
            for slot, row in zip(slots, y, strict=True):
                self.compare(slot, self.at[slot][1], row[None])
                self.at[slot][1] += 1

    def push(self) -> None:
        """A chunk of each of some of them."""
        slots = [s for s in self.at if self.rng.random() < 0.3]
        chunks = []
        for slot in slots:
            sequence, steps = self.at[slot]
            chunks.append(self.world.x[sequence, steps : steps + self.rng.randrange(12)])
        for slot, y, chunk in zip(slots, self.pool.push(slots, chunks), chunks, strict=True):
            self.compare(slot, self.at[slot][1], y)
            self.at[slot][1] += len(chunk)

    def turn(self) -> None:
        """Something at random."""
        kind = self.rng.random()
        ends = [s for s, (_, steps) in self.at.items() if steps >= self.world.x.shape[1]]
        for slot in ends:
            if self.rng.random() < 0.5:
                self.drop(slot)
            else:
                self.pool.reset(slot)
                self.at[slot][1] = 0
        if len(self.at) < self.most and kind < 0.2:
            self.add(self.pool.open(), self.rng.randrange(len(self.world.x)), 0)
        elif kind < 0.25 and self.at:
            self.drop(self.rng.choice(list(self.at)))
        elif kind < 0.3 and 0 < len(self.at) < self.most:
            slot = self.rng.choice(list(self.at))
            again = self.pool.copy(slot) if kind < 0.27 else self.pool.restore(self.pool.snapshot(slot))
            self.add(again, *self.at[slot])
        elif kind < 0.5:
            self.push()
        else:
            self.step()

    def end(self) -> None:
        for slot in list(self.at):
            self.drop(slot)
