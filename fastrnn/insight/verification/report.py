"""What `verify` returns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Any

import numpy as np

from ... import tables
from ...records import dataclass
from .lengths import LongRuns


@dataclass(frozen=True)
class OutputDifference:
    """One output: its largest differences over all runs, and where the absolute one was seen.

    absolute : largest |got - expected|; inf if one has a NaN or an infinity that the other does not have.
    relative : largest over the runs of (largest |got - expected| of the run) / (largest |expected| of the run).
    """

    name: str
    absolute: float
    relative: float
    ok: bool
    where: str


@dataclass(frozen=True)
class ReducedError:
    """Errors of an output against float64's answers of the model before its weights were rounded.

    Each is largest |got - expected| / largest |expected|, on one run of random inputs.

    reduced : of the model; float32 : of the same model in float32
    onnxruntime_int8 : of onnxruntime's `quantize_dynamic` of the same file; None if it did not run
    """

    name: str
    reduced: float
    float32: float
    onnxruntime_int8: float | None

    def __str__(self) -> str:
        theirs = "" if self.onnxruntime_int8 is None else f", onnxruntime in int8 {self.onnxruntime_int8:.2e}"
        return f"{self.name}: error against float64 {self.reduced:.2e}, float32 {self.float32:.2e}{theirs}"


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` returns.

    ok : every element of every output is within `tolerance` * (1 + |expected|), every shape is equal; in `long` too.
    against : the other engine, and its version.
    outputs : one `OutputDifference` per output, in the model's order.
    runs : the sizes of the inputs of each run; skipped : runs that the other engine rejected, and why.
    notes : other facts, such as that only one length could be compared, or that a free length is an assumption.
    compared : the compared values of each free size of the model: "batch" and "time" -> ascending numbers.
    long : longer sequences against the float64 reference, if the model has a recurrence in parallel form, which fails
        in float32 after some steps; else None.
    reduced : the errors of a model in reduced precision against float64, one for each output, if the file that it was
        made from is known.
    """

    model: str
    against: str
    ok: bool
    tolerance: float
    seed: int
    outputs: tuple[OutputDifference, ...]
    runs: tuple[str, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    compared: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    long: LongRuns | None = None
    reduced: tuple[ReducedError, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether all outputs agree with the other engine's, regardless of `long`."""
        return all(out.ok for out in self.outputs)

    @property
    def sizes(self) -> str:
        """What was compared, in words."""
        if not self.compared:
            return "compared at the one size that the model takes"
        parts = (f"{name} {', '.join(map(str, values))}" for name, values in self.compared.items())
        return f"compared at {'; '.join(parts)}"

    def as_dict(self) -> dict[str, Any]:
        """The same as dicts, lists, strings and numbers; an infinite difference is the text "inf"."""
        record = asdict(self)
        for output in record["outputs"]:
            for key in ("absolute", "relative"):
                if not np.isfinite(output[key]):
                    output[key] = "inf"
        for error in record["reduced"]:
            for key in ("reduced", "float32", "onnxruntime_int8"):
                if error[key] is not None and not np.isfinite(error[key]):
                    error[key] = "inf"
        if self.long is not None and not np.isfinite(self.long.difference):
            record["long"]["difference"] = "inf"
        return record

    def to_json(self) -> str:
        """`as_dict` as JSON text."""
        return json.dumps(self.as_dict())

    def _repr_html_(self) -> str:
        verdict = "answers like" if self.agrees else "does NOT answer like"
        rows = [
            ("ok" if out.ok else "FAIL", out.name, f"{out.absolute:.2e}", f"{out.relative:.2e}", out.where)
            for out in self.outputs
        ]
        told = [("compared", f"{self.sizes}; {len(self.runs)} runs, tolerance {self.tolerance:g}")]
        told += [("long runs", str(self.long))] if self.long is not None else []
        told += [("precision", str(error)) for error in self.reduced]
        told += [("skipped", text) for text in self.skipped] + [("note", text) for text in self.notes]
        columns = ("", "output", "absolute", "relative", "largest difference")
        return tables.block(
            f"{self.model} {verdict} {self.against}",
            tables.table(columns, rows, numbers=("absolute", "relative")),
            tables.pairs(told),
        )

    def __str__(self) -> str:
        verdict = "answers like" if self.agrees else "does NOT answer like"
        lines = [f"{self.model} {verdict} {self.against} ({len(self.runs)} runs, tolerance {self.tolerance:g})"]
        for out in self.outputs:
            mark = "ok  " if out.ok else "FAIL"
            figures = f"largest difference {out.absolute:.2e} absolute, {out.relative:.2e} relative"
            lines.append(f"  {mark} {out.name}: {figures}" + ("" if out.ok else f" ({out.where})"))
        lines.append(f"  {self.sizes}")
        if self.long is not None:
            lines.append(f"  {'ok  ' if self.long.ok else 'FAIL'} {self.long}")
        lines += [f"  {error}" for error in self.reduced]
        lines += [f"  skipped {text}" for text in self.skipped]
        lines += [f"  note: {text}" for text in self.notes]
        return "\n".join(lines)
