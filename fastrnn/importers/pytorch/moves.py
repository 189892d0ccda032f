"""torch functions that move data, read sizes or make constants, as ONNX nodes; registered as in `functions.py`."""

from __future__ import annotations

import numpy as np
import torch

from .emit import Emitter, Size, Unknown, V
from .functions import does


def axis_of(x: V, dim: int, more: int = 0) -> int:
    """`dim` as an axis >= 0 of a value, or of a value with `more` additional axes."""
    return dim % (x.value.ndim + more)


def _flat(args: tuple) -> list:
    """Sizes given one by one or as a list."""
    return list(args[0]) if len(args) == 1 and isinstance(args[0], tuple | list) else list(args)


# -- sizes --


def sizes(b: Emitter, x: V) -> tuple[Size, ...]:
    """Every size of a value, read live."""
    return tuple(Size(b.shape_of(x, k, k + 1), n) for k, n in enumerate(x.value.shape))


@does("size")
def _size(b, out, input, dim=None):
    if dim is None:
        return sizes(b, input)
    k = axis_of(input, dim)
    return Size(b.shape_of(input, k, k + 1), out)


@does("dim")
def _dim(b, out, input):
    return out


@does("len")
def _len(b, out, input):
    return Size(b.shape_of(input, 0, 1), out) if isinstance(input, V) else out


@does("getattr")
def _getattr(b, out, input, name):
    if name == "shape":
        return sizes(b, input)
    if name in ("T", "mT"):
        perm = list(range(input.value.ndim))
        perm[-2:] = perm[-2:][::-1]
        if name == "T" and len(perm) != 2:
            raise Unknown("T of a tensor of rank other than 2")
        return b.transpose(input.name, *perm)
    if name in ("ndim", "dtype", "device"):
        return out
    raise Unknown(f"the attribute {name}")


# -- shapes --


@does("transpose", "swapaxes")
def _transpose(b, out, input, dim0, dim1):
    perm = list(range(input.value.ndim))
    i, j = axis_of(input, dim0), axis_of(input, dim1)
    perm[i], perm[j] = perm[j], perm[i]
    return b.transpose(input.name, *perm)


@does("t")
def _t(b, out, input):
    return b.transpose(input.name, 1, 0) if input.value.ndim == 2 else input.name


@does("permute")
def _permute(b, out, input, *dims):
    return b.transpose(input.name, *(axis_of(input, d) for d in _flat(dims)))


@does("view", "reshape")
def _reshape(b, out, input, *shape):
    if len(shape) == 1 and isinstance(shape[0], torch.dtype):
        raise Unknown("a view as another dtype")
    return b.op("Reshape", input.name, b.dims(_flat(shape)), allowzero=0)


@does("flatten")
def _flatten(b, out, input, start_dim=0, end_dim=-1):
    rank = input.value.ndim
    first, last = axis_of(input, start_dim), axis_of(input, end_dim)
    parts = [b.shape_of(input, 0, first)] if first else []
    parts += [b.ints(-1)] + ([b.shape_of(input, last + 1, rank)] if last + 1 < rank else [])
    return b.op("Reshape", input.name, b.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0])


@does("unflatten")
def _unflatten(b, out, input, dim, sizes):
    k, rank = axis_of(input, dim), input.value.ndim
    parts = [b.shape_of(input, 0, k)] if k else []
    parts += [b.dims(sizes)] + ([b.shape_of(input, k + 1, rank)] if k + 1 < rank else [])
    return b.op("Reshape", input.name, b.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0])


@does("squeeze")
def _squeeze(b, out, input, dim=None):
    if dim is None:
        raise Unknown("squeeze without axes")
    axes = [axis_of(input, d) for d in ((dim,) if isinstance(dim, int) else dim)]
    axes = [k for k in axes if input.value.shape[k] == 1]
    return b.op("Squeeze", input.name, b.ints(*axes)) if axes else input.name


@does("unsqueeze")
def _unsqueeze(b, out, input, dim):
    return b.op("Unsqueeze", input.name, b.ints(axis_of(input, dim, 1)))


@does("expand", "broadcast_to")
def _expand(b, out, input, *shape):
    shape, rank = _flat(shape), input.value.ndim
    new = len(shape) - rank
    held = [1 if isinstance(s, int) and s == -1 else s for s in shape]  # -1 keeps the size, and 1 broadcasts to it
    if any(isinstance(s, int) and s == -1 for s in shape[:new]):
        raise Unknown("expand with -1 for a new axis")
    return b.op("Expand", input.name, b.dims(held))


@does("expand_as")
def _expand_as(b, out, input, other):
    return b.op("Expand", input.name, b.shape_of(other, 0, other.value.ndim))


@does("repeat")
def _repeat(b, out, input, *counts):
    counts, name = _flat(counts), input.name
    new = len(counts) - input.value.ndim
    if new:
        name = b.op("Unsqueeze", name, b.ints(*range(new)))
    return b.op("Tile", name, b.dims(counts))


@does("flip")
def _flip(b, out, input, *dims):
    name = input.name
    for dim in _flat(dims):
        name = b.slice(name, axis_of(input, dim), -1, np.iinfo(np.int64).min, -1)
    return name


@does("unfold")
def _unfold(b, out, input, dimension, size, step):
    """Windows of an axis, as a convolution whose weights are the identity: exact, and it streams."""
    if not isinstance(size, int) or not isinstance(step, int) or input.value.dtype != torch.float32:
        raise Unknown("unfold of integers, or by computed sizes")
    rank, k = input.value.ndim, axis_of(input, dimension)
    others = [a for a in range(rank) if a != k]
    fixed = others[1:]  # the first one is the batch; the others become channels
    count = int(np.prod([input.value.shape[a] for a in fixed], dtype=np.int64))
    if count * size * size > _MOST_OF_IDENTITY:
        raise Unknown(f"unfold to {count} channels of windows of {size}")
    name = b.transpose(input.name, *others, k) if others + [k] != list(range(rank)) else input.name
    if not others:
        name = b.op("Unsqueeze", name, b.ints(0))
    lead = b.shape_of(V(name, None), 0, 1)
    name = b.op("Reshape", name, b.op("Concat", lead, b.ints(count, -1), axis=0)) if rank != 3 else name
    eye = np.tile(np.eye(size, dtype=np.float32)[:, None], (count, 1, 1))
    name = b.op("Conv", name, b.const(eye), kernel_shape=[size], strides=[step], group=count)  # [B, count*size, n]
    sizes = [input.value.shape[a] for a in fixed]
    name = b.op("Reshape", name, b.op("Concat", lead, b.ints(*sizes, size, -1), axis=0))  # [B, .., size, n]
    name = b.op("Squeeze", name, b.ints(0)) if not others else name
    order = [*others, rank, k]  # where each axis of the result is now
    return b.transpose(name, *(order.index(a) for a in range(rank + 1)))


_MOST_OF_IDENTITY = 1 << 24


# -- joining and splitting --


@does("cat", "concat", "concatenate")
def _cat(b, out, tensors, dim=0):
    return b.op("Concat", *(b.name(t, out.dtype) for t in tensors), axis=dim % out.ndim)


@does("stack")
def _stack(b, out, tensors, dim=0):
    k = dim % out.ndim
    parts = [b.op("Unsqueeze", b.name(t, out.dtype), b.ints(k)) for t in tensors]
    return b.op("Concat", *parts, axis=k)


@does("chunk", "split")
def _split(b, out, tensor=None, split_size_or_sections=None, dim=0, *, input=None, split_size=None, chunks=None):
    x = tensor if tensor is not None else input
    k, lengths = axis_of(x, dim), [part.shape[axis_of(x, dim)] for part in out]
    if len(set(lengths)) == 1:
        return tuple(b.ops("Split", [x.name], len(out), axis=k, num_outputs=len(out)))
    return tuple(b.ops("Split", [x.name, b.ints(*lengths)], len(out), axis=k))


@does("unbind")
def _unbind(b, out, input, dim=0):
    k = axis_of(input, dim)
    return tuple(b.op("Gather", input.name, b.const(np.int64(i)), axis=k) for i in range(len(out)))


@does("select")
def _select(b, out, input, dim, index):
    if not isinstance(index, int):
        raise Unknown("select by a computed index")
    return b.op("Gather", input.name, b.const(np.int64(index)), axis=axis_of(input, dim))


@does("narrow")
def _narrow(b, out, input, dim, start, length):
    if not isinstance(start, int) or not isinstance(length, int):
        raise Unknown("narrow by computed sizes")
    return b.slice(input.name, axis_of(input, dim), start, start + length)


@does("index_select")
def _index_select(b, out, input, dim, index):
    return b.lookup(input.name, b.name(index), axis_of(input, dim))


@does("getitem")
def _getitem(b, out, input, index):
    if not isinstance(input, V):  # of a tuple, a list or a shape
        return input[index]
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        given = sum(i is not None for i in items) - 1
        items[at : at + 1] = [slice(None)] * (input.value.ndim - given)
    name, axis = input.name, 0
    for item in items:
        if item is None:
            name, axis = b.op("Unsqueeze", name, b.ints(axis)), axis + 1
        elif isinstance(item, int) and not isinstance(item, bool):
            name = b.op("Gather", name, b.const(np.int64(item)), axis=axis)
        elif isinstance(item, slice):
            name, axis = _sliced(b, name, axis, item), axis + 1
        else:
            raise Unknown(f"an index that is a {type(item).__name__}")
    return name


def _sliced(b: Emitter, name: str, axis: int, item: slice) -> str:
    if item == slice(None):
        return name
    step = 1 if item.step is None else item.step
    ends = [0 if item.start is None else item.start, np.iinfo(np.int64).max if item.stop is None else item.stop]
    if not isinstance(step, int) or not all(isinstance(e, int | Size) for e in ends):
        raise Unknown("a slice whose bounds are computed")
    start, stop = (e.name if isinstance(e, Size) else b.ints(e) for e in ends)
    return b.op("Slice", name, start, stop, b.ints(axis), b.ints(step))


@does("pad")
def _pad(b, out, input, pad, mode="constant", value=None):
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    if mode not in modes or not all(isinstance(p, int) for p in pad):
        raise Unknown(f"pad with mode {mode}, or by computed sizes")
    rank, begins, ends = input.value.ndim, [], []
    for k in range(rank):
        at = 2 * (rank - 1 - k)
        begins.append(pad[at] if at < len(pad) else 0)
        ends.append(pad[at + 1] if at + 1 < len(pad) else 0)
    fill = b.name(0.0 if value is None else value, input.value.dtype)
    return b.op("Pad", input.name, b.ints(*begins, *ends), fill if mode == "constant" else None, mode=modes[mode])


# -- new tensors --


def _filled(b: Emitter, out: torch.Tensor, shape: list, value) -> str:
    return b.op("Expand", b.name(value, out.dtype), b.dims(shape))


@does("zeros", "ones")
def _zeros(b, out, *shape, size=None, one=False, **form):
    return _filled(b, out, _flat(shape) if size is None else list(size), 1 if one else 0)


does("ones")(lambda b, out, *shape, **form: _zeros(b, out, *shape, **form, one=True))


@does("new_zeros")
def _new_zeros(b, out, input, *shape, size=None, **form):
    return _filled(b, out, _flat(shape) if size is None else list(size), 0)


@does("full")
def _full(b, out, size, fill_value, **form):
    return _filled(b, out, list(size), fill_value)


@does("zeros_like", "ones_like")
def _like(b, out, input, *, one=False, **form):
    return b.op("Expand", b.name(int(one), out.dtype), b.shape_of(input, 0, input.value.ndim))


does("ones_like")(lambda b, out, input, **form: _like(b, out, input, **form, one=True))
