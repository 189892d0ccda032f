"""One case of tools/fuzz_sizes.py: a model at drawn sizes, run whole, by `lengths=`, as streams and in a pool."""

from __future__ import annotations

import random

import numpy as np

TOLERANCE = 2e-3  # relative to an output's largest number: float32 against float64, over 70 steps
LARGEST = 1 << 22  # largest input that is worth the time, in numbers
SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 11, 12, 16, 17, 20, 33, 64, 70)
LAST_GUARD = "would work with"  # message of the check common to all bindings; a named condition should come first


class Finding(Exception):
    """A wrong answer."""


class Case:
    """A model with random sizes and inputs from a seed."""

    def __init__(self, model, seed: int):
        from fastrnn.graph import dims

        self.model, self.rng, self.numbers = model, random.Random(seed), np.random.default_rng(seed)
        self.graph, self.evaluate = model.graph, dims.evaluate
        self.names = sorted({s for n in self.graph.inputs for d in self._dims(n) for s in dims.symbols(d)})
        self.sizes = {"batch": 1, "time": 1} | {name: self.rng.choice(SIZES) for name in self.names}
        if self.rng.random() < 0.6:  # most failures already occur in a small batch
            self.sizes["batch"] = self.rng.choice((0, 1, 2, 3)) if "batch" in self.names else 1
        self.plain = [n for n in self.graph.inputs if n not in self.graph.states]
        ends = set(self.graph.states.values())
        self.outputs = [n for n in self.graph.outputs if n not in ends]

    def _dims(self, name: str) -> tuple:
        return self.graph.values[name].dims

    def feeds(self, names, sizes) -> dict[str, np.ndarray] | None:
        """Arrays for these inputs; None if one has no size or is too large."""
        made = {}
        for name in names:
            shape = [self.evaluate(d, sizes) for d in self._dims(name)]
            if any(s < 0 for s in shape) or np.prod(shape, dtype=float) > LARGEST:
                return None
            made[name] = self._values(self.graph.values[name].dtype, shape, sizes)
        return made

    def _values(self, dtype: str, shape, sizes) -> np.ndarray:
        if dtype == "bool":
            return self.numbers.random(shape) < 0.7
        if dtype.startswith("int"):  # lengths or indices: valid ones, and some invalid ones
            low, high = self.rng.choice(((0, sizes["time"] + 1), (0, 6), (0, 2), (-2, 12)))
            return self.numbers.integers(low, max(high, 1), shape).astype(dtype)
        return self.numbers.standard_normal(shape).astype(dtype)

    # -- the ways to run it --
    def run(self) -> None:
        """Run the case in every way; raises Finding, or any exception that should not occur."""
        from fastrnn import FastRNNError

        feeds = self.feeds(self.graph.inputs, self.sizes)
        if feeds is None:
            return
        for way in (self.whole, self.ragged, self.streamed, self.stepped, self.pooled):
            try:
                way()
            except FastRNNError as error:
                if LAST_GUARD in str(error):
                    raise Finding(f"{way.__name__}: only the check of all ops saw it: {error}") from None

    def whole(self) -> None:
        """`run` against the float64 reference."""
        from fastrnn import FastRNNError
        from fastrnn.graph import reference

        feeds = self.feeds(self.graph.inputs, self.sizes)
        got = self.model.run(**feeds)
        again = self.model.run(**feeds)
        try:
            expected = reference.run(self.graph, feeds, sizes=self.sizes if not self.names else None)
        except FastRNNError as error:
            if "can't tell" in str(error) or "needs a value" in str(error):
                return
            raise Finding(f"run answers, the reference refuses: {error}") from None
        moved = None
        for i, (name, a, b, c) in enumerate(zip(self.graph.outputs, got, again, expected, strict=True)):
            self.same(f"run again, {name}", b, a)
            try:
                self.close(f"run, {name}", a, c)
            except Finding:
                if moved is None:  # perturb the input by a few float32 roundings: is the answer that sensitive?
                    moved = reference.run(self.graph, {n: self.near(x) for n, x in feeds.items()})
                with np.errstate(all="ignore"):
                    if a.shape != c.shape or not np.abs(moved[i] - c).max() * 20 > np.abs(a - c).max():
                        raise

    def near(self, x: np.ndarray) -> np.ndarray:
        """x with a relative error of up to 1e-5 in either direction, a few float32 roundings."""
        return x * (1 + 1e-5 * self.numbers.choice((-1, 1), x.shape)) if x.dtype.kind == "f" else x

    def close(self, what: str, got: np.ndarray, expected: np.ndarray) -> None:
        """Check that the result is as close to the reference as float32 allows."""
        if got.shape != expected.shape:
            raise Finding(f"{what}: shape {got.shape}, expected {expected.shape}")
        if got.dtype.kind != "f":  # an argmax may differ if two values are nearly equal
            return
        a, b = got.astype(np.float64), expected.astype(np.float64)
        with np.errstate(all="ignore"):
            scale = 1 + np.abs(np.where(np.isfinite(b), b, 0)).max(initial=0)
            bad = ~((np.abs(a - b) <= TOLERANCE * scale) | (a == b) | (np.isnan(a) & np.isnan(b)))
        bad &= np.abs(b) < 1e30  # beyond the range of float32 the two differ
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            raise Finding(f"{what}: {a[at]} at {at}, expected {b[at]}; {bad.sum()} of {bad.size} differ")

    def same(self, what: str, got: np.ndarray, expected: np.ndarray) -> None:
        """Check that the bits are equal."""
        if got.shape != expected.shape:
            raise Finding(f"{what}: shape {got.shape}, expected {expected.shape}")
        if not np.array_equal(got, expected, equal_nan=got.dtype.kind == "f"):
            raise Finding(f"{what}: {int((got != expected).sum())} of {got.size} bits or numbers differ")

    def axis(self, name: str, kind: str) -> int | None:
        """Which axis of a value depends on batch or time."""
        from fastrnn.graph import dims

        return next((i for i, d in enumerate(self._dims(name)) if kind in dims.symbols(d)), None)

    def row(self, name: str, array: np.ndarray, row: int) -> np.ndarray:
        """One row of the batch, as a batch of one."""
        axis = self.axis(name, "batch")
        return array if axis is None else np.ascontiguousarray(np.take(array, [row], axis))

    def cut(self, name: str, array: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Steps start..stop."""
        axis = self.axis(name, "time")
        return array if axis is None else np.ascontiguousarray(np.take(array, np.arange(start, stop), axis))

    def as_stream(self, name: str, array: np.ndarray, batched: bool) -> np.ndarray:
        """A whole value in the form of streams: [batch, time, features...], without batch unless batched."""
        batch, timed = self.axis(name, "batch"), self.axis(name, "time")
        front = [a for a in (batch, timed) if a is not None]
        array = array.transpose([*front, *(a for a in range(array.ndim) if a not in front)])
        return np.array(array if batched or batch is None else array[0], order="C")

    def ragged(self) -> None:
        """`run(lengths=)` against separate runs of each row."""
        if self.sizes["batch"] < 1 or self.axis(self.graph.inputs[0], "batch") is None or self.graph.states:
            return
        if "lengths" in self.graph.inputs:
            return  # a file's own
        feeds = self.feeds(self.graph.inputs, self.sizes)
        lengths = self.numbers.integers(0, self.sizes["time"] + 1, self.sizes["batch"])
        got = self.model.run(**feeds, lengths=lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = self.model.run(**{n: self.cut(n, self.row(n, a, row), 0, length) for n, a in feeds.items()})
            for name, a, b in zip(self.graph.outputs, got, alone, strict=True):
                a = self.row(name, a, row)
                part = a[tuple(slice(0, n) for n in b.shape)]
                self.same(f"lengths={lengths.tolist()}, row {row}, {name}", part, b)

    def answers(self, feeds: dict[str, np.ndarray]) -> tuple:
        """Outputs of a whole run that starts from the file's initial states."""
        result = self.model(**feeds)
        return result if isinstance(result, tuple) else (result,)

    def streamed(self) -> None:
        """A stream fed chunks of any length, against the whole run."""
        if not self.model.streamable or not self.plain or self.axis(self.plain[0], "time") is None:
            return
        batch = self.sizes["batch"] if self.axis(self.plain[0], "batch") is not None else None
        if batch is not None and (batch == 0 or self.rng.random() < 0.3):
            batch = None
        feeds = self.feeds(self.plain, self.sizes | {"batch": batch or 1})
        stream = self.model.stream(batch_size=batch)
        parts, total = [], self.sizes["time"]
        for start, stop in self.chunks(total):
            chunk = {n: self.as_stream(n, self.cut(n, a, start, stop), batch is not None) for n, a in feeds.items()}
            parts.append((stop - start, _tuple(stream.push(chunk))))
        if not self.model._core._timetable.plain:
            parts.append((1, _tuple(stream.flush())))
        self.compare_parts("stream", parts, feeds, batch is not None, total)

    def chunks(self, total: int):
        """(start, stop) pairs that cover total steps, some of them empty."""
        done = 0
        while done < total:
            n = min(self.rng.choice((0, 1, 1, 2, 3, 5, 13, 64, 70)), total - done)
            yield done, done + n
            done += n

    def compare_parts(self, what: str, parts: list, feeds: dict, batched: bool, total: int) -> None:
        """Outputs of `total` steps, joined along time, against the whole run; for a value over time, its last state."""
        expected = self.answers(feeds)
        for i, (name, whole) in enumerate(zip(self.outputs, expected, strict=True)):
            wanted = self.as_stream(name, whole, batched)
            given = [p[i] for _, p in parts if p[i] is not None]
            timed = self.axis(name, "time") is not None
            if not given or (not timed and total == 0):
                continue
            axis = 1 if batched and self.axis(name, "batch") is not None else 0
            self.same(f"{what}, {name}", np.concatenate(given, axis) if timed else given[-1], wanted)

    def stepped(self) -> None:
        """A model of a single step: steps of a stream against runs whose states are passed from call to call."""
        if not self.model.streamable or any(self.axis(n, "time") is not None for n in self.graph.inputs):
            return
        feeds = self.feeds(self.graph.inputs, self.sizes | {"batch": 1})
        states = {n: np.zeros_like(feeds[n]) for n in self.graph.states}
        stream = self.model.stream()
        for _ in range(self.rng.randint(1, 4)):
            x = self.feeds(self.plain, self.sizes | {"batch": 1})
            made = dict(zip(self.graph.outputs, self.model.run(**x, **states), strict=True))
            got = _tuple(stream.step({n: self.as_stream(n, a, False) for n, a in x.items()}))
            states = {n: made[after] for n, after in self.graph.states.items()}
            for name, a in zip(self.outputs, got, strict=True):
                self.same(f"step, {name}", a, self.as_stream(name, made[name], False))

    def pooled(self) -> None:
        """Streams of a pool, by ragged chunks and by steps, each against a whole run of its own row."""
        if not self.model.streamable or not self.plain or self.axis(self.plain[0], "time") is None:
            return
        n = self.rng.randint(1, 5)
        pool = self.model.pool(capacity=n + 1)
        slots = [pool.open() for _ in range(n)]
        totals = [self.rng.choice((0, 1, 2, 9, self.sizes["time"])) for _ in slots]
        feeds = [self.feeds(self.plain, self.sizes | {"batch": 1, "time": t}) for t in totals]
        parts, done = [[] for _ in slots], [0] * n
        can_step = self.model._core._timetable.plain and all(
            self.axis(name, "batch") is not None for name in self.plain
        )
        while any(d < t for d, t in zip(done, totals, strict=True)):
            who = self.rng.sample(range(n), self.rng.randint(1, n))
            if can_step and self.rng.random() < 0.3:
                who = [i for i in who if done[i] < totals[i]]
                taken = [1] * len(who)
                made = self.pool_step(pool, [slots[i] for i in who], [feeds[i] for i in who], [done[i] for i in who])
            else:
                taken = [min(self.rng.choice((0, 1, 1, 2, 7, 30)), totals[i] - done[i]) for i in who]
                given = [
                    {k: self.as_stream(k, self.cut(k, a, done[i], done[i] + t), False) for k, a in feeds[i].items()}
                    for i, t in zip(who, taken, strict=True)
                ]
                made = [_tuple(out) for out in pool.push([slots[i] for i in who], given)]
            for i, steps, out in zip(who, taken, made, strict=True):
                parts[i].append((steps, out))
                done[i] += steps
        for i, total in enumerate(totals):
            if not self.model._core._timetable.plain:
                parts[i].append((1, _tuple(pool.flush(slots[i]))))
            self.compare_parts(f"pool of {totals}, row {i}", parts[i], feeds[i], False, total)

    def pool_step(self, pool, slots: list, feeds: list, done: list) -> list[tuple]:
        """`pool.step`; returns the outputs of each row, with a time axis of one step if they have one."""
        if not slots:
            return []
        x = {}
        for name in self.plain:
            rows = [
                self.as_stream(name, self.cut(name, f[name], d, d + 1), True) for f, d in zip(feeds, done, strict=True)
            ]
            x[name] = np.concatenate([r[:, 0] if self.axis(name, "time") is not None else r for r in rows])
        made = dict(zip(self.outputs, _tuple(pool.step(slots, x)), strict=True))
        results = []
        for at in range(len(slots)):
            row = {k: a if self.axis(k, "batch") is None else a[at] for k, a in made.items()}
            results.append(tuple(a[None] if self.axis(k, "time") is not None else a for k, a in row.items()))
        return results


def _tuple(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)
