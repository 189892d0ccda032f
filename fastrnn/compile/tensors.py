"""Where values are stored while a plan runs: buffers, and tensors as strided views of them.

Strides and offsets are in elements and may be dims over batch and time, so that one plan serves every size.
Transpose, slice, squeeze and most reshapes are free: they only make another `Tensor` over the same buffer.
"""

from __future__ import annotations

from dataclasses import field

import numpy as np

from ..graph import DTYPES
from ..graph import dims as D
from ..records import dataclass

ITEMSIZE = {name: np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}


def kept_as(dtype: str) -> str:
    """The dtype in which a slab row keeps values of `dtype`: it consists of float32, so an item has 4 or 8 bytes."""
    return "float32" if dtype == "bool" else dtype if ITEMSIZE[dtype] >= 4 else "int32"


@dataclass(eq=False)
class Buffer:
    """One run of memory. kind: "input" "output" "const" (index: which), or "arena" (offset chosen by the plan).

    size : elements, an int or dim; `cap`: more would not help. `first` and `last` are the ops between which an
    arena buffer is alive.
    """

    kind: str
    dtype: str
    size: object
    index: int = -1
    first: int | None = None
    last: int | None = None
    cap: int | None = None


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view: element (i, j, ..) is at `offset + i*strides[0] + j*strides[1] + ..` in its buffer.

    order : axes from the slowest to the fastest in memory. Ops that keep dims also keep the order in their result, so
        a transposed value stays one run of rows and needs no copy.
    """

    buffer: Buffer
    dims: tuple
    strides: tuple
    offset: object = 0
    order: tuple = field(default=())

    def __post_init__(self):
        if len(self.order) != len(self.dims):
            object.__setattr__(self, "order", tuple(range(len(self.dims))))

    @property
    def dtype(self) -> str:
        return self.buffer.dtype

    def transpose(self, perm) -> Tensor:
        where = {axis: i for i, axis in enumerate(perm)}
        return Tensor(
            self.buffer,
            tuple(self.dims[p] for p in perm),
            tuple(self.strides[p] for p in perm),
            self.offset,
            tuple(where[a] for a in self.order),
        )

    def narrow(self, axis: int, start, size, step: int = 1) -> Tensor:
        """Every step-th element of `axis` from `start`, `size` of them."""
        dims, strides = list(self.dims), list(self.strides)
        offset = start * strides[axis] + self.offset
        dims[axis], strides[axis] = size, strides[axis] * step
        return Tensor(self.buffer, tuple(dims), tuple(strides), offset, self.order)

    def expand(self, dims) -> Tensor:
        """Broadcast to `dims` by strides of 0."""
        lead = len(dims) - len(self.dims)
        strides = [0] * lead
        for have, want, stride in zip(self.dims, dims[lead:], self.strides, strict=True):
            strides.append(0 if have == 1 and want != 1 else stride)
        order = tuple(range(lead)) + tuple(a + lead for a in self.order)
        return Tensor(self.buffer, tuple(dims), tuple(strides), self.offset, order)

    def squeeze(self, axis: int) -> Tensor:
        """Drop an axis of size 1."""
        keep = [a for a in range(len(self.dims)) if a != axis]
        order = tuple(a - (a > axis) for a in self.order if a != axis)
        dims, strides = (tuple(t[a] for a in keep) for t in (self.dims, self.strides))
        return Tensor(self.buffer, dims, strides, self.offset, order)

    def unsqueeze(self, axis: int) -> Tensor:
        """Insert an axis of size 1 before `axis`."""
        dims = (*self.dims[:axis], 1, *self.dims[axis:])
        strides = (*self.strides[:axis], 0, *self.strides[axis:])
        order = (axis, *(a + (a >= axis) for a in self.order))
        return Tensor(self.buffer, dims, strides, self.offset, order)

    def reshape(self, dims) -> Tensor | None:
        """The same elements in row-major order as `dims`, or None if that needs a copy."""
        view = self
        for axis in reversed(range(len(view.dims))):
            if view.dims[axis] == 1:
                view = view.squeeze(axis)
        ones = [i for i, d in enumerate(dims) if d == 1]
        view = view._regroup([d for d in dims if d != 1])
        for axis in ones if view is not None else ():
            view = view.unsqueeze(axis)
        return view

    def _regroup(self, target) -> Tensor | None:
        """reshape if no dim is 1 on either side: merge and split runs of axes, left to right."""
        dims, strides, order_key = [], [], []
        i, rank = 0, len(self.dims)
        j = 0
        while i < rank or j < len(target):
            if i == rank or j == len(target):
                return None
            i2, j2 = i + 1, j + 1
            have, want = self.dims[i], target[j]
            while have != want:
                if i2 < rank and (j2 == len(target) or D.exact_div(want, have) is not None):
                    have, i2 = have * self.dims[i2], i2 + 1
                elif j2 < len(target) and D.exact_div(have, want) is not None:
                    want, j2 = want * target[j2], j2 + 1
                elif i2 < rank and j2 < len(target):  # neither divides: widen both
                    have, i2 = have * self.dims[i2], i2 + 1
                else:
                    return None
            for a in range(i, i2 - 1):  # axes i..i2-1 must be one run in memory
                if self.strides[a] != self.strides[a + 1] * self.dims[a + 1]:
                    return None
            stride, key = self.strides[i2 - 1], self.order.index(i2 - 1)
            part = []
            for d in reversed(target[j:j2]):
                part.append((d, stride))
                stride = d * stride
            for n, (d, s) in enumerate(reversed(part)):
                dims.append(d)
                strides.append(s)
                order_key.append((key, n))
            i, j = i2, j2
        order = tuple(sorted(range(len(dims)), key=order_key.__getitem__))
        return Tensor(self.buffer, tuple(dims), tuple(strides), self.offset, order)


def contiguous(buffer: Buffer, dims, order=None, offset=0) -> Tensor:
    """A dense tensor over `buffer` whose memory order of axes is `order` (default: row-major)."""
    order = tuple(order) if order is not None else tuple(range(len(dims)))
    strides, step = [0] * len(dims), 1
    for axis in reversed(order):
        strides[axis] = step
        step = dims[axis] * step
    return Tensor(buffer, tuple(dims), tuple(strides), offset, order)


def collapse(dims, strides, order) -> list[tuple]:
    """Merge axes that every operand walks as one, in memory order; drop axes of size 1.

    dims : sizes of the iteration space. strides : one tuple of strides per operand.
    Returns a list of (size, (stride of operand 0, stride of operand 1, ..)), slowest first; [] for a single element.
    """
    out: list[tuple] = []
    for axis in order:
        size = dims[axis]
        if size == 1:
            continue
        steps = tuple(s[axis] for s in strides)
        if out:
            last_size, last_steps = out[-1]
            if all(a == b * size for a, b in zip(last_steps, steps, strict=True)):
                out[-1] = (last_size * size, steps)
                continue
        out.append((size, steps))
    return out
