"""Runs a file at sizes of its own and at others, and judges each answer by PyTorch's.

An answer is `right`, `refused` (a FastRNNError, when loading or running), `wrong` (other numbers or another shape),
`error` (any other exception), `twin` (right for another program whose file is the same, see `Program.twin`) or `noted`
(wrong, but a note of the model says that it is no good, see `Program.noted`).

The truth is eager PyTorch in float64, or in float32 if the program can't do float64. For sizes that the file itself
allows, onnxruntime's answer of the same file counts too: an exporter's mistake is part of the file. A size at which
PyTorch raises is left out.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from .registry import Program


@dataclass(frozen=True)
class Answer:
    """verdict: one word of the module's docstring. why: the error's text. difference: the largest, of wrong answers."""

    verdict: str
    why: str = ""
    difference: float | None = None


def other_sizes(program: Program) -> list[tuple[int, int]]:
    """(T, B) that differ from the exported ones: in T alone, B alone and both; one step and one row among them."""
    T, B = program.T, program.B
    drawn = [
        (T + 5, B),
        (T, B + 1),
        (2 * T + 1, B + 2),
        (T // 2, 5),
        (T + 4, 1 if B > 1 else 3),
        (T - 1, B),
        (T, 1 if B > 1 else 4),
        (1, B),
        (3, 1),
    ]
    m, made = program.multiple, []
    for t, b in drawn:
        t = max(t // m * m, -(-program.least // m) * m, m)
        size = (t if program.has("T") else T, b if program.has("B") else B)
        if size != (T, B) and size not in made:
            made.append(size)
    return made


def expected(program: Program, net, size) -> list[list[np.ndarray]]:
    """Answers that PyTorch gives, float64 first; empty if it raises."""
    found = []
    args = program.tensors(*size)
    for dtype in (torch.float64, torch.float32):
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(dtype)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                out = net.to(dtype)(*[a.to(dtype) if a.is_floating_point() else a for a in args])
        except Exception:  # sizes that the program doesn't allow, or dtypes that don't mix
            continue
        finally:
            torch.set_default_dtype(before)
            net.float()
        found.append([np.asarray(o.numpy()) for o in flat(out)])
    return found


def flat(out) -> list[torch.Tensor]:
    return [out] if isinstance(out, torch.Tensor) else [t for o in out for t in flat(o)]


def differ(got, want, tolerance: float) -> float | str | None:
    """None if equal within the tolerance, else the largest difference or what else is wrong."""
    if len(got) != len(want):
        return f"{len(got)} outputs, not {len(want)}"
    largest = 0.0
    for a, b in zip(got, want, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape:
            return f"shape {list(a.shape)}, not {list(b.shape)}"
        if (a.dtype.kind == "f") != (b.dtype.kind == "f"):
            return f"dtype {a.dtype}, not {b.dtype}"
        if not a.size:
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        with np.errstate(invalid="ignore"):
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            finite = np.isfinite(b)
            scale = max(1.0, float(np.abs(b[finite]).max(initial=0.0)))
            away = np.where(same, 0.0, np.abs(a - b))
        away = float("inf") if not np.isfinite(away).all() else float(away.max())
        if away > tolerance * scale:
            largest = max(largest, away)
    return largest or None


def plain(content: bytes) -> list:
    """A file without names: two programs that write the same one can't be told apart."""
    import onnx

    graph = onnx.load_from_string(content).graph
    held = {t.name: t for t in graph.initializer}
    numbers: dict[str, int] = {}
    made = [[d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim] for i in graph.input]
    for value in graph.input:
        numbers[value.name] = len(numbers)
    for node in graph.node:
        for name in node.input:
            if name in held and name not in numbers:
                t = onnx.numpy_helper.to_array(held[name])
                made.append((t.dtype.str, t.shape, t.tobytes()))
            numbers.setdefault(name, len(numbers))
        for name in node.output:
            numbers.setdefault(name, len(numbers))
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        made.append((node.op_type, [numbers[n] for n in node.input], [numbers[n] for n in node.output], attributes))
    return [*made, [numbers.get(o.name) for o in graph.output]]


def _session(content: bytes, loosened: bool):
    """A session of onnxruntime; None if it can't load the file."""
    import onnx
    import onnxruntime

    if loosened:
        model = onnx.load_from_string(content)
        for value in model.graph.input:
            for k, dim in enumerate(value.type.tensor_type.shape.dim):
                dim.dim_param = f"{value.name}_{k}"
        del model.graph.value_info[:]
        content = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Its own optimiser makes a Range backwards empty (1.32).
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception:
        return None


class File:
    """One exported file: loaded once, run at many sizes."""

    def __init__(self, program: Program, content: bytes, net=None, twin: bytes | None = None):
        """twin: the file of the program's twin, exported the same way."""
        import fastrnn

        self.program, self.content, self.net = program, content, net or program.net()
        self.failure, self.model, self._sessions = None, None, {}
        self.twin = program.its_twin() if twin is not None and plain(twin) == plain(content) else None
        try:
            self.model = fastrnn.load(content, threads=1)
        except fastrnn.FastRNNError as e:
            self.failure = Answer("refused", f"load: {type(e).__name__}: {e}")
        except Exception as e:
            self.failure = Answer("error", f"load: {type(e).__name__}: {e}")

    def feeds(self, size) -> dict[str, np.ndarray]:
        arrays = self.program.arrays(*size)
        if self.model is None:
            return arrays
        return {info.name: arrays[info.name] for info in self.model.inputs}

    def onnxruntime(self, arrays: dict, loosened: bool = False) -> list[np.ndarray] | None:
        """What onnxruntime answers; None if it refuses, as it does at sizes that the file writes down differently.

        loosened: the sizes that the file's inputs write down are taken out first.
        """
        if loosened not in self._sessions:
            self._sessions[loosened] = _session(self.content, loosened)
        session = self._sessions[loosened]
        if session is None:
            return None
        try:
            return session.run(None, {i.name: arrays[i.name] for i in session.get_inputs()})
        except Exception:
            return None

    def meant(self, size) -> list[np.ndarray] | None:
        """onnxruntime's answer if it counts: the file allows the size, or the length that its exporter spoilt."""
        arrays = self.program.arrays(*size)
        found = self.onnxruntime(arrays)
        if found is None and self._is_spoilt(size[0]):
            found = self.onnxruntime(arrays, loosened=True)
            if found is None:
                found = self._by_rows(arrays, size[1])
        return found

    def others(self, size) -> list[list[np.ndarray]]:
        """The answers that count beside the program's own: onnxruntime's, and those of its twin."""
        twin = expected(self.twin, self.twin.net(), size)[:1] if self.twin is not None else []
        return [a for a in (self.meant(size), *twin) if a is not None]

    def _is_spoilt(self, T: int) -> bool:
        """Whether the file allows a length, and means something else than PyTorch at it."""
        own = (T, self.program.B)
        here, truths = self.onnxruntime(self.program.arrays(*own)), expected(self.program, self.net, own)
        return here is not None and bool(truths) and all(differ(here, t, self.program.tolerance) for t in truths)

    def _by_rows(self, arrays: dict, batch: int) -> list[np.ndarray] | None:
        """onnxruntime's answers for as many rows at a time as the file wants, joined; None if no axis is the rows'."""
        own, parts = self.program.B, []
        for start in range(0, batch, own):
            rows = np.arange(start, start + own) % batch
            cut = {
                i.name: arrays[i.name].take(rows, i.axes.index("B")) if "B" in i.axes else arrays[i.name]
                for i in self.program.inputs
            }
            parts.append(self.onnxruntime(cut))
        if None in parts:
            return None
        joined = []
        for outputs in zip(*parts, strict=True):
            axis = next((k for k, d in enumerate(outputs[0].shape) if d == own), None)
            if axis is None:
                return None
            joined.append(np.concatenate(outputs, axis).take(np.arange(batch), axis))
        return joined

    def answer(self, size, truths) -> Answer:
        """The verdict at a size; truths: the answers that count, `expected` makes them."""
        import fastrnn

        if self.failure is not None:
            return self.failure
        try:
            got = self.model.run(**self.feeds(size))
        except fastrnn.FastRNNError as e:
            return Answer("refused", f"{type(e).__name__}: {e}")
        except Exception as e:
            return Answer("error", f"{type(e).__name__}: {e}")
        found = [differ(got, want, self.program.tolerance) for want in truths]
        if None in found:
            return Answer("right")
        meant, more = self.meant(size), ""
        if meant is not None:
            if differ(got, meant, self.program.tolerance) is None:
                return Answer("right", "as onnxruntime, not as PyTorch")
            more = f"; onnxruntime: {differ(got, meant, self.program.tolerance)}"
        if self.twin is not None and any(
            differ(got, want, self.program.tolerance) is None for want in expected(self.twin, self.twin.net(), size)
        ):
            return Answer("twin")
        if self.program.noted and any(self.program.noted in note for note in self.model.notes):
            return Answer("noted")
        numbers = [d for d in found if isinstance(d, float)]
        return Answer("wrong", ("" if numbers else str(found[0])) + more, min(numbers, default=None))
