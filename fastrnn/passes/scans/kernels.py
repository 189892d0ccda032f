"""Convolutions with a frozen kernel over all steps, as a Fourier transform computes them, that are recurrences.

    y[t] = sum over s of k[s] u[t - s]      k[s] = direct * (s == 0) + sum over n of Re(weight[n] * pole[n]**s)

The kernel is what the file's nodes make of one impulse. That they are the convolution of all steps before is proved by
numbers, so a circular one, whose end reaches its beginning, is none. The poles are those of its Hankel matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...records import dataclass
from .laws import Leaf, Trial
from .regions import End, Region

_ALIKE = 2e-6  # of the largest value: the file's transforms are products with rounded matrices
_FITS = 2e-6  # of the largest of the kernel, with poles and weights of float32
_RANK = 1e-6  # of the largest singular value
_MOST_STATES = 32
_ROWS, _COLUMNS = 96, 256  # of a Hankel matrix


@dataclass(frozen=True)
class Kernel:
    """The convolution that the value `end.y` is; y here is `end.source`.

    leaf : u. poles, weights : complex [*axes of y, n], of one element for axes of any size. direct : float64, without n
    error : of the kernel, relative to its largest value. steps : of the kernel
    axes, size, row : as of a `Law` without a matrix
    """

    end: End
    axes: int
    leaf: Leaf
    poles: np.ndarray
    weights: np.ndarray
    direct: np.ndarray
    error: float
    steps: int
    size: int = 0

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return (self.leaf,)

    def row(self) -> None:
        return None


class Misfit(Exception):
    """No recurrence with few states has the kernel of this convolution."""


def kernel_of(region: Region, end: End, steps: int) -> Kernel | None:
    """The recurrence of a region that is a causal convolution of its one leaf. None if it is none.

    Raises Misfit, with the error, if its kernel does not fit.
    """
    (name,) = region.leaves
    if sum(n.op in ("matmul", "linear") for n in region.part.nodes) < 2:
        return (
            None  # one there and one back; sums, windows, and layers whose matrix looks like a kernel stay as they are
        )
    try:
        trial = Trial(region, steps)
        leaf = trial.leaf(name)
        k = _impulse(region, name, steps)
    except ValueError:
        return None
    if np.abs(k[1:]).max(initial=0.0) <= _FITS * np.abs(k).max():
        return None  # nothing of earlier steps
    axes = trial.y.ndim - 1
    if leaf.summed or sorted(p for p in leaf.places if p is not None) != [
        p for p in range(axes) if trial.y.shape[p + 1] > 1
    ]:
        return None
    order = [0, *(1 + leaf.places.index(p) for p in range(axes) if p in leaf.places)]
    one = [1 + a for a, p in enumerate(leaf.places) if p is None]
    shape = (steps, *trial.y.shape[1:])

    def placed(u: np.ndarray) -> np.ndarray:
        return u.transpose(*order, *one).reshape(shape)

    if not _is_convolution(lambda u: region({name: u}, steps), placed, k, trial.given[name].shape):
        return None
    same = [a for a in range(axes) if np.ptp(k, axis=1 + a).max() <= 1e-9 * np.abs(k).max()]
    if not set(_symbolic(region, end)) <= set(same):
        return None
    k = k[(slice(None), *(slice(0, 1) if a in same else slice(None) for a in range(axes)))]
    return _fitted(k, end, axes, leaf)


def _symbolic(region: Region, end: End) -> list[int]:
    """The axes of y, but that of its steps, whose size is not known."""
    dims = region.graph.values[region.y].dims
    steps = {a + len(dims) for a in end.axes}
    others = [d for a, d in enumerate(dims) if a not in steps]
    return [a for a, d in enumerate(others) if not isinstance(d, int)]


def _impulse(region: Region, name: str, steps: int) -> np.ndarray:
    u = np.zeros(region.shape(name, steps))
    u[0] = 1.0
    k = region({name: u}, steps)
    if not np.isfinite(k).all() or not np.abs(k).max(initial=0.0) > 0:
        raise ValueError("no impulse")
    return k


def _is_convolution(run: Callable, placed: Callable, k: np.ndarray, shape: tuple) -> bool:
    """Whether the region is the causal convolution with k, for several inputs; one has its impulse at the end."""
    rng, steps = np.random.default_rng(13), len(k)
    last = np.zeros(shape)
    last[-1] = 1.0
    for u in (rng.standard_normal(shape), 8.0 * rng.standard_normal(shape) + 3.0, last, np.zeros(shape)):
        x, want = placed(u), np.zeros((steps, *k.shape[1:]))
        for t in range(steps):
            want[t] = (k[: t + 1] * x[t::-1]).sum(0)
        largest = max(np.abs(k).max() * np.abs(u).max(), np.abs(want).max())
        if not np.abs(run(u) - want).max() <= _ALIKE * largest:
            return False
    return True


def _fitted(k: np.ndarray, end: End, axes: int, leaf: Leaf) -> Kernel:
    steps, shape = len(k), k.shape[1:]
    flat = k.reshape(steps, -1)
    found = [_modes(column) for column in flat.T]
    most = max(len(poles) for poles, _ in found)
    poles, weights = np.zeros((2, flat.shape[1], max(most, 1)), np.complex128)
    for c, (p, w) in enumerate(found):
        poles[c, : len(p)], weights[c, : len(w)] = p, w
    poles, weights = poles.astype(np.complex64).astype(complex), weights.astype(np.complex64).astype(complex)
    made = (weights * poles ** np.arange(steps)[:, None, None]).sum(-1).real
    direct = flat[0] - made[0]
    made[0] += direct
    error = float(np.abs(made - flat).max() / np.abs(flat).max())
    if not error <= _FITS or np.abs(poles).max() >= 1.0 or most > min(_MOST_STATES, steps // 4):
        raise Misfit(
            f"it convolves all steps with a kernel of {steps} of them, which no recurrence of at most "
            f"{min(_MOST_STATES, steps // 4)} states gives (the best one is off by {error:.1e} of its largest value)"
        )
    direct = np.where(np.abs(direct) > 1e-7 * np.abs(flat).max(), direct, 0.0)
    full = (*shape, poles.shape[-1])
    return Kernel(end, axes, leaf, poles.reshape(full), weights.reshape(full), direct.reshape(shape), error, steps)


def _modes(k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The poles and weights of one kernel, as few as give it, by Ho and Kalman; at most a quarter of its steps."""
    half = (len(k) - 1) // 2
    if half < 1 or not np.abs(k[1:]).max() > 0:
        return np.zeros(0), np.zeros(0)
    rows = min(half, _ROWS)
    columns = min(len(k) - rows, _COLUMNS)
    u, s, _ = np.linalg.svd(np.array([k[1 + i : 1 + i + columns] for i in range(rows)]), full_matrices=False)
    rank = max(1, min(int((s > _RANK * s[0]).sum()), len(k) // 4, rows - 1, _MOST_STATES))
    poles = (
        np.linalg.eigvals(np.linalg.lstsq(u[:-1, :rank], u[1:, :rank], rcond=None)[0]) if rows > 1 else k[2:3] / k[1]
    )
    powers = poles ** np.arange(1, len(k))[:, None]
    weights = np.linalg.lstsq(powers, k[1:].astype(complex), rcond=None)[0]
    paired = np.abs(poles.imag) > 1e-12  # of a pole and its conjugate, the real part of one is half of both
    kept = ~(paired & (poles.imag < 0))
    return poles[kept], np.where(paired, 2.0 * weights, weights)[kept]
