"""An ONNX file becomes a Model; a SelectedModel if the values of inputs select its branches."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import FastRNNError
from .graph import Graph
from .model import Model
from .records import dataclass
from .selected import Choice, SelectedModel
from .streaming.caches import streamed
from .streaming.conditions import problems
from .streaming.live import lengths_of
from .typing import Precision

_LIVE = "a stream does not ask for {}, the lengths of the rows: every step that it takes is live"


def read_graph(source, *, strict=True, thaw=True, policy=None, **options) -> Graph:
    """The graph of an ONNX file. options: those of `import_onnx`."""
    from .importers.onnx import import_onnx  # onnx takes 100 ms to import
    from .importers.onnx.sizes.evidence import Policy

    policy = policy or Policy(thaw, strict)
    graph = import_onnx(source, streams=lambda graph: not problems(streamed(graph)), policy=policy, **options)
    dropped = lengths_of(graph)
    return graph.replace(notes=(*graph.notes, *(_LIVE.format(name) for name in dropped))) if dropped else graph


@dataclass(frozen=True)
class _Branch:
    """Reads one branch of an ONNX file that was read already, for `SelectedModel`. options: of `read_graph`."""

    read: tuple  # importers.onnx.reading.files.Read
    options: dict
    sizes: Mapping[str, int]

    def __call__(self, values: dict) -> Graph:
        options = {**self.options, "bind": {**(self.options.get("bind") or {}), **values}}
        return read_graph(self.read, sizes=self.sizes, **options)

    @property
    def nbytes(self) -> int:
        return self.read[0].ByteSize()

    def __reduce__(self):
        model, where, folder = self.read
        return _branch_of_bytes, (model.SerializeToString(), where, folder, self.options, self.sizes)


def _branch_of_bytes(blob: bytes, where: str, folder, options: dict, sizes: Mapping[str, int]) -> _Branch:
    from .importers.onnx.reading.files import Read, read_model

    return _Branch(Read(read_model(blob).model, where, folder), options, sizes)


def model_of(
    source,
    options: dict,
    threads: int | None,
    sizes: Mapping[str, int],
    precision: Precision | None = None,
) -> Model:
    """The model of an ONNX file: a `SelectedModel` if inputs that are not bound select a branch of an `If`."""
    from .importers.onnx import UndecidedError
    from .importers.onnx.reading.files import read_model, whole

    read = read_model(source)
    try:
        return Model(read_graph(read, sizes=sizes, **options), threads, precision)
    except UndecidedError as error:
        bound, given = options.get("bind") or {}, {t.name for t in read.model.graph.initializer}
        names = tuple(v.name for v in read.model.graph.input if v.name not in bound and v.name not in given)
        choices = tuple(Choice(s.name, s.dtype, s.dims, s.candidates) for s in error.selectors)
        try:
            return SelectedModel(names, choices, _Branch(whole(read), options, sizes), threads, precision)
        except FastRNNError:
            if error.only_undecided:
                raise
            raise error from None
