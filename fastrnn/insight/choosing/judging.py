"""Errors of a model in reduced precision beside the float32 one, on the caller's data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...model import Model
from ...passes import set_precision
from ...records import dataclass
from ..analysis.figures import ErrorFigures
from ..analysis.runner import Arrays, Runner
from ..verification.comparison import difference


@dataclass(frozen=True)
class OutputError:
    """One output beside float32's.

    error : largest |difference| / largest |float32's element|, as `verify` compares reduced precision; inf if one has a
        NaN or an infinity that the other does not have. None for integers and bools.
    decisions_changed : share of the decisions that differ, as `analyze` defines them; None if the output decides
        nothing.
    """

    name: str
    error: float | None
    decisions_changed: float | None


Errors = tuple[OutputError, ...]


class Judge:
    """Runs models on the data, and compares them with the float32 one. Each combination is run once."""

    def __init__(self, runner: Runner, x: Arrays, tolerance: float):
        self.runner, self.x, self.tolerance = runner, x, tolerance
        self.clean = runner.run(x)
        dtypes = [info.dtype for info in runner.outputs]
        self.figures = [ErrorFigures([y], [dtype]) for y, dtype in zip(self.clean, dtypes, strict=True)]
        self.exact = [dtype not in ("float32", "float64") for dtype in dtypes]
        self.known: dict[tuple, Errors] = {}

    def model(self, wanted: Mapping[str, str]) -> Model:
        """The model with these layers in these formats, the others in float32."""
        model = self.runner.model
        return Model(set_precision(model.graph, wanted), model.threads) if wanted else model

    def errors(self, wanted: Mapping[str, str]) -> Errors:
        """Errors of that model, one for each output."""
        key = tuple(sorted(wanted.items()))
        if key not in self.known:
            got = self.runner.run(self.x, self.model(wanted)) if wanted else self.clean
            names = self.runner.output_names
            self.known[key] = tuple(self._error(i, name, y) for i, (name, y) in enumerate(zip(names, got, strict=True)))
        return self.known[key]

    def _error(self, at: int, name: str, got: np.ndarray) -> OutputError:
        with np.errstate(all="ignore"):  # infinities: `difference` compares them
            changed = self.figures[at].errors([got])[2]
        if self.exact[at]:
            return OutputError(name, None, changed)
        return OutputError(name, difference(name, got, self.clean[at], self.tolerance, "", True).relative, changed)

    def fits(self, errors: Errors) -> bool:
        """Whether every output is within the tolerance."""
        return self.worst(errors) <= self.tolerance

    def worst(self, errors: Errors) -> float:
        """The largest error or share of changed decisions of any output."""
        return max((v for e in errors for v in (e.error, e.decisions_changed) if v is not None), default=0.0)
