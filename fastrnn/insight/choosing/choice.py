"""What `choose_precision` returns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

from ... import tables
from ...model import Model
from ...records import dataclass
from .judging import Errors


@dataclass(frozen=True)
class LayerTrial:
    """A layer in a format.

    ns : of its ops in one call, NaN if it can't have the format; gain_ns : ns that it saves against float32
    bytes : of its constants
    verdict : "chosen", or why not
    errors : of the model with this layer alone in the format; None if that was not measured, because it is not faster
    """

    layer: str
    precision: str
    ns: float
    gain_ns: float
    bytes: int
    verdict: str = ""
    errors: Errors | None = None


@dataclass(frozen=True)
class PrecisionChoice:
    """What `choose_precision` returns. `print` shows it as text, a notebook as a table.

    model : with the chosen formats; the given model itself if all layers stay float32
    precision : layer -> format, for all layers that could have another one than float32
    tolerance, data, rows, steps : what it was judged by
    outputs : the error of each output, of the model as a whole on all of the data
    batch, call_steps : of the call that was timed
    before_ns, after_ns : ns of that call in float32 and as chosen
    bytes_before, bytes_after : of the constants of these layers
    trials : every layer in every format
    notes : other facts
    """

    columns: ClassVar[tuple[str, ...]] = (
        "layer", "format", "float32", "time", "error", "decisions changed", "bytes", "why",
    )  # fmt: skip
    numbers: ClassVar[tuple[str, ...]] = ("float32", "time", "error", "decisions changed", "bytes")

    model: Model
    precision: Mapping[str, str]
    tolerance: float
    data: str
    rows: int
    steps: int
    outputs: Errors
    batch: int
    call_steps: int
    before_ns: float
    after_ns: float
    bytes_before: int
    bytes_after: int
    trials: tuple[LayerTrial, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, model: Model, found: Model, chosen: Mapping[str, str], trials: Sequence[LayerTrial], errors: Errors,
        notes: Sequence[str], **facts,
    ) -> PrecisionChoice:  # fmt: skip
        """The choice from the trials; facts: the fields that it takes as they are. found: `model` as chosen."""
        judged = tuple(replace(t, verdict=_verdict(t, chosen, facts["tolerance"], bool(notes))) for t in trials)
        precision = {t.layer: chosen.get(t.layer, "float32") for t in trials}
        before = sum(t.bytes for t in judged if t.precision == "float32")
        after = sum(t.bytes for t in judged if t.precision == precision[t.layer])
        if not trials:
            notes = (*notes, "no layer has products whose weights could be in another format")
        if chosen:
            found = _noted(found, chosen, errors, **facts)
        return cls(found, precision, outputs=errors, bytes_before=before, bytes_after=after, trials=judged,
                   notes=tuple(notes), **facts)  # fmt: skip

    @property
    def table(self) -> list[tuple[str, ...]]:
        """A row of texts for each layer, below `columns`: what its format gained and cost. The error is that of the
        model with this layer alone in its format, the largest of all outputs."""
        plain = {t.layer: t for t in self.trials if t.precision == "float32"}
        found = []
        for layer, precision in self.precision.items():
            mine = next(t for t in self.trials if t.layer == layer and t.precision == precision)
            error, changed = _worst(mine.errors or ())
            why = "" if precision != "float32" else _why([t for t in self.trials if t.layer == layer])
            size = tables.size(plain[layer].bytes) + (f" -> {tables.size(mine.bytes)}" if why == "" else "")
            times = [tables.seconds(1e-9 * t.ns) for t in (plain[layer], mine)]
            found.append((layer, precision, *times, share(error), share(changed), size, why))
        return found

    @property
    def summary(self) -> list[tuple[str, str]]:
        """The choice as a whole, as rows of label and text."""
        error, changed = _worst(self.outputs)
        call = "step" if self.call_steps == 1 else f"call of {self.call_steps} steps"
        before, after = (tables.seconds(1e-9 * ns) for ns in (self.before_ns, self.after_ns))
        told = [("data", f"{self.data}; {rows(self.rows)} of {self.steps} steps")]
        told.append(("tolerance", f"{share(self.tolerance)} of each output's largest element, and of decisions"))
        decisions = "" if changed is None else f"; decisions changed {share(changed)}"
        told.append(("error", f"{share(error) or 'none'} at most{decisions}"))
        gain = f"{self.before_ns / self.after_ns:.2f} times as fast"
        told.append((f"a {call}", f"{before} -> {after}, {gain}; {rows(self.batch)}"))
        told.append(("weights", f"{tables.size(self.bytes_before)} -> {tables.size(self.bytes_after)}"))
        return told + [("note" if i == 0 else "", text) for i, text in enumerate(self.notes)]

    def as_dict(self) -> dict[str, Any]:
        """The same without the model, as dicts, lists, strings and numbers; what is not finite is None."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "model"}
        record |= {"trials": [asdict(t) for t in self.trials], "outputs": [asdict(e) for e in self.outputs]}
        return _plain(record)

    def to_json(self) -> str:
        """`as_dict` as JSON text."""
        return json.dumps(self.as_dict())

    def __str__(self) -> str:
        width = max(len(label) for label, _ in self.summary)
        lines = [f"precision of {self.model.name}"]
        lines += [f"  {label:<{width}}  {text}" for label, text in self.summary]
        for layer, precision, before, after, error, changed, size, why in self.table:
            cost = why or f"{before} -> {after}, error {error}{f', decisions {changed}' if changed else ''}, {size}"
            lines.append(f"  {layer}: {precision}; {cost}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        listed = tables.table(self.columns, self.table, numbers=self.numbers)
        return tables.block(f"Precision of {self.model.name}", tables.pairs(self.summary), listed)


def _verdict(trial: LayerTrial, chosen: Mapping[str, str], tolerance: float, slower: bool) -> str:
    """ "chosen", or why a layer does not get a format."""
    if chosen.get(trial.layer, "float32") == trial.precision:
        return "chosen"
    if trial.verdict or trial.precision == "float32":
        return trial.verdict or f"{chosen[trial.layer]} is faster"
    if trial.errors is None:
        return "not faster than float32"
    worst = max((v for v in _worst(trial.errors) if v is not None), default=0.0)
    if not worst <= tolerance:
        return f"beyond the tolerance: {share(worst)}"
    if slower:
        return "not faster in the model as a whole"
    other = chosen.get(trial.layer)
    return f"{other} is chosen" if other else "beyond the tolerance together with other layers"


def _why(trials: Sequence[LayerTrial]) -> str:
    """Why a layer stays float32: what stands against the format that would save most."""
    refused = [t for t in trials if t.precision != "float32"]
    if not refused:
        return ""
    best = max(refused, key=lambda t: -math.inf if math.isnan(t.gain_ns) else t.gain_ns)
    if best.errors is None and not math.isnan(best.ns):
        return "no format is faster"
    return f"{best.precision}: {best.verdict}"


def _worst(errors: Errors) -> tuple[float | None, float | None]:
    """The largest error and share of changed decisions of all outputs."""
    error = max((e.error for e in errors if e.error is not None), default=None)
    return error, max((e.decisions_changed for e in errors if e.decisions_changed is not None), default=None)


def _noted(model: Model, chosen: Mapping[str, str], errors: Errors, **facts) -> Model:
    """The model with a note on how its formats were chosen, which its file keeps."""
    error, _ = _worst(errors)
    note = (
        f"formats of {len(chosen)} layers were chosen on {rows(facts['rows'])} of {facts['steps']} steps with "
        f"tolerance {facts['tolerance']:g}: largest error {share(error) or 'none'}"
    )
    return Model(model.graph.replace(notes=(*model.graph.notes, note)), model.threads)


def share(value: float | None) -> str:
    """ "12 %", "0.031 %"; nothing for None or NaN."""
    if value is None or value != value:
        return ""
    return f"{100 * value:.3g} %"


def rows(count: int) -> str:
    """ "1 row", "2 rows"."""
    return f"{count:,} row{'' if count == 1 else 's'}"


def _plain(value):
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
