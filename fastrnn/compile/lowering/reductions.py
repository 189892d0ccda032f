"""Lowering of reductions and norms: rows of one run each, and sums that go on from step to step."""

from __future__ import annotations

import numpy as np

from ...errors import UnsupportedError
from ...graph import Node
from ...graph import dims as D
from ..plan import StateSlot
from ..tensors import Tensor, collapse
from .fields import FUNCTIONS, LEVELS
from .fields import at as _at
from .fields import level_fields as _level_fields

_REDUCE = {"sum": "add", "mean": "add", "max": "max", "min": "min"}


class ReductionLowering:
    """The methods `op_...` of `fastrnn.compile.lowering.Lowering` for these ops; self is that class."""

    def op_reduce(self, node: Node) -> None:
        x, axes = self.real(node), list(node.attrs["axes"])
        if self.mode != "stream":
            self._need_elements(node, D.product(x.dims[a] for a in axes))
        # Rows whose own size depends on the length (scores of all steps) never stream: an ordinary sum.
        fixed = not any("time" in D.symbols(d) for i, d in enumerate(x.dims) if i not in axes)
        if len(axes) == 1 and self.is_time(x.dims[axes[0]]) and (fixed or self.mode == "stream"):
            return self._reduce_over_time(node, x, axes[0])
        fn, keep = node.attrs["fn"], [a for a in range(len(x.dims)) if a not in axes]
        x = x.transpose((*keep, *axes))
        loops = collapse(x.dims[len(keep) :], (x.strides[len(keep) :],), range(len(axes)))
        if len(loops) > 1:
            x = self.contiguous_last(x, node, len(axes))
            loops = collapse(x.dims[len(keep) :], (x.strides[len(keep) :],), range(len(axes)))
        count, (step,) = loops[0] if loops else (1, (1,))
        out = self.result(node)
        if out.dtype == "bool":
            out = self._float_stand_in(node, out)
        if node.attrs["keepdims"]:
            for axis in reversed(axes):
                out = out.squeeze(axis)
        rows = self._levels(x.dims[: len(keep)], (x.strides[: len(keep)], out.strides), range(len(keep)), node)
        self.builder.emit(
            "reduce", node.name, (x,), (out,), D.product(x.dims), fn=FUNCTIONS[_REDUCE[fn]], count=count, step=step,
            mean=int(fn == "mean"), **_level_fields(rows, ("x", "y")), **_at("x", x), **_at("y", out),
        )  # fmt: skip

    def _need_elements(self, node: Node, count) -> None:
        """If windows leave no step of a sequence that is too short for them, PyTorch and onnxruntime refuse it. Of an
        empty sequence ONNX itself has a largest element, -inf."""
        fn = node.attrs["fn"]
        if isinstance(count, D.Dim) and fn != "sum" and D.may_be_negative(count):
            self.plan.conditions.append((count - 1, f"node {node.name}: the {fn} of no elements"))

    def is_time(self, dim) -> bool:
        """dim is a number of steps, and of nothing else."""
        return bool(D.symbols(dim)) and self.builder.time_axis((dim,)) == 0 and "batch" not in D.symbols(dim)

    def _reduce_over_time(self, node: Node, x: Tensor, axis: int) -> None:
        """One step after the other into float64 sums, whole or streamed: a stream's value is that of the run so far."""
        out = self.result(node)
        if out.dtype == "bool":
            out = self._float_stand_in(node, out)
        if node.attrs["keepdims"]:
            out = out.squeeze(axis)
        keep = [a for a in range(len(x.dims)) if a != axis]
        x = x.transpose((axis, *keep))
        if self.has_batch and D.BATCH in x.dims:
            first = x.dims.index(D.BATCH)
            x = x.transpose((0, first, *(a for a in range(1, len(x.dims)) if a != first)))
            out = out.transpose((first - 1, *(a for a in range(len(out.dims)) if a != first - 1)))
        else:
            x, out = x.unsqueeze(1), out.unsqueeze(0)
        features = x.dims[2:]
        if not all(isinstance(d, int) for d in features):
            raise UnsupportedError(f"a {node.attrs['fn']} over all steps of values of size {features}")
        x = self.contiguous_last(x, node, len(features))
        size = D.product(features)
        dense = collapse(features, (out.strides[1:],), range(len(features)))
        y = out if dense in ([], [(size, (1,))]) else self.builder.allocate("float32", out.dims)
        offset = self.plan.state_size
        self.plan.states.append(
            StateSlot(f"{node.name}.{node.attrs['fn']}", node.name, "sum", offset, size + 1, "float64")
        )
        self.builder.emit(
            "running", node.name, (x,), (y,), D.product(x.dims), fn=FUNCTIONS[_REDUCE[node.attrs["fn"]]],
            mean=int(node.attrs["fn"] == "mean"), steps=x.dims[0], rows=x.dims[1], size=size, x_time=x.strides[0],
            x_row=x.strides[1], y_row=y.strides[0], per_slot=1, state=offset, **_at("x", x), **_at("y", y),
        )  # fmt: skip
        self._copy(y, out, node.name)

    def op_softmax(self, node: Node) -> None:
        self._along_last(node, node.attrs["axis"], "softmax", 16, log=int(node.attrs["log"]))

    def op_layer_norm(self, node: Node) -> None:
        axis, dims = node.attrs["axis"], self.graph.values[node.inputs[0]].dims
        inner = dims[axis:]
        extra, present = {}, []
        for i, what in ((1, "scale"), (2, "bias")):
            array = self.array(node, i, what)
            if array is None:
                extra |= {f"{what}_buffer": -1, f"{what}_offset": 0}
                continue
            if array.ndim > len(inner) or any(isinstance(d, D.Dim) for d in inner):
                raise UnsupportedError(f"{what} of shape {array.shape} for normalised axes {inner}")
            t = self.builder.constant(np.broadcast_to(array, inner).astype(np.float32), "float32")
            extra |= _at(what, t)
            present.append(t)
        epsilon = self.builder.constant(np.array([node.attrs["epsilon"]], np.float32), "float32")
        self._along_last(node, axis, "layer_norm", 8, epsilon=epsilon.buffer, **extra)

    def _along_last(self, node: Node, axis: int, kind: str, cost: int, **fields) -> None:
        """softmax and layer_norm: rows of one contiguous run each. A softmax axis that isn't last is moved there."""
        x = self.real(node)
        rank = len(x.dims)
        count = rank - axis if kind == "layer_norm" else 1
        perm = [a for a in range(rank) if not axis <= a < axis + count] + list(range(axis, axis + count))
        x = self.contiguous_last(x.transpose(perm), node, count)
        y, back = self.result(node).transpose(perm), [perm.index(a) for a in range(rank)]
        dense = collapse(y.dims[rank - count :], (y.strides[rank - count :],), range(count))
        if len(dense) > 1 or (dense and dense[0][1] != (1,)):
            y = self.builder.allocate(
                "float32", y.dims, [*[a for a in x.order if a < rank - count], *range(rank - count, rank)]
            )
            self.tensors[node.outputs[0]] = y.transpose(back)
        keep = rank - count
        order = [a for a in x.order if a < keep]
        loops = self._levels(x.dims[:keep], (x.strides[:keep], y.strides[:keep]), order, node)
        n = D.product(x.dims[keep:])
        self.builder.emit(
            kind, node.name, (x,), (y,), D.product(x.dims) * cost, n=n, **fields, **_level_fields(loops, ("x", "y")),
            **_at("x", x), **_at("y", y),
        )  # fmt: skip

    def _levels(self, dims, strides, order, node: Node, levels: int = LEVELS) -> list[tuple]:
        """Rows as at most `levels` nested loops."""
        loops = collapse(dims, strides, order)
        if len(loops) > levels:
            raise UnsupportedError(f"rows over {len(loops)} axes that can't be merged; at most {levels}")
        return loops
