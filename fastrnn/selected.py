"""SelectedModel: a file in which inputs select a branch of an `If`. Each value of them has a model of its own.

Silero VAD is the example: its input `sr` selects a network for 16 kHz or one for 8 kHz.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, Protocol

import numpy as np

from . import tables
from .errors import FastRNNError, FastRNNWarning, ModelFormatError, ShapeError, UnsupportedError
from .graph import DTYPES, Graph
from .graph.casts import as_dtype
from .infos import TensorInfo
from .machine import forks
from .model import Model
from .records import dataclass
from .runtime._runs import BranchCore
from .runtime.compiled import Compiled
from .serving.pool import StreamPool
from .serving.stream import Stream
from .typing import Array, Input, Integers, Outputs, Precision

KEPT_VALUES = 8  # models of as many values of the selectors are kept
MOST_TRIES = 8  # values that are tried when the file is loaded


@dataclass(frozen=True)
class Choice:
    """An input that selects a branch. candidates : arrays of its dims, the likeliest first."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    candidates: tuple[np.ndarray, ...]

    def typed(self, value) -> np.ndarray:
        """The value as an array of this input; one number may have any axes of one. ShapeError otherwise."""
        array = as_dtype(value, self.dtype, f"input {self.name}")
        if array.size == 1 and self.dims in ((), (1,)):
            array = array.reshape(self.dims)
        if array.shape != self.dims:
            raise ShapeError(f"input {self.name}: {list(self.dims)} expected, got {list(array.shape)}")
        return array


class Reader(Protocol):
    """Gives the graph of a file at values of its selectors. nbytes : what it keeps in memory for that."""

    @property
    def nbytes(self) -> int: ...

    def __call__(self, values: dict[str, np.ndarray], /) -> Graph: ...


class SelectedModel(Model):
    """A model in which inputs select a branch. `fastrnn.load` returns one for such a file, if they are not bound.

    `run` and a call take the selectors like any other input; `stream`, `pool` and `select` fix them with `bind=`. The
    model of each value is compiled when that value is first seen; the last 8 are kept. All methods may be called from
    several threads at once: one compiles, the others that need the same value wait.

    inputs, outputs, states, notes, streamable and delay are those of the value that was tried when the file was loaded;
    `select(sr=8000)` has those of another value. What needs one graph (graph, save, layers, parameters, fingerprint)
    raises UnsupportedError: bind the selectors at load for it.

    Attributes
    ----------
    selectors : tuple of TensorInfo, the inputs that select
    """

    def __init__(
        self,
        names: tuple[str, ...],
        choices: tuple[Choice, ...],
        read: Reader,
        threads: int | None = None,
        precision: Precision | None = None,
    ):
        """names: all inputs in the file's order. read: the graph of the file at these values of the selectors.

        Raises what `read` raises if no candidate gives a graph.
        """
        if isinstance(precision, Mapping):
            text = "a precision for each layer needs one graph: bind the inputs that select a branch, or pass one name"
            raise ModelFormatError(f"{', '.join(c.name for c in choices)}: {text}")
        self._names, self._choices, self._asked, self._precision = names, choices, threads, precision
        self._read: Reader | None = read  # None: closed
        self._models: dict[tuple[bytes, ...], Model] = {}  # values of the selectors -> model, the oldest first
        self._lock = forks.Lock()
        self._warned = False
        self._branches: BranchCore | None = None
        self._values: list[np.ndarray] = []  # of the example
        example = self._first()
        self.threads, self.name = example.threads, example.name
        self.selectors: tuple[TensorInfo, ...] = tuple(TensorInfo(c.name, c.dtype, c.dims) for c in choices)
        known = {info.name: info for info in (*example.inputs, *self.selectors)}
        self._inputs = tuple(known[name] for name in names)
        self._outputs = example.outputs
        self._tried: Model | None = example
        self._runs = self._branches = self._made_branches(example)

    def _made_branches(self, example: Model) -> BranchCore:
        infos = {info.name: info for info in self._inputs}
        inputs = [(name, int(np.dtype(DTYPES[infos[name].dtype]).num)) for name in self._names]
        axes = [len(info.dims) for info in (*self._inputs, *self._outputs)]
        plain = [name for name in self._names if name not in example.graph.states]
        return BranchCore(inputs, axes, plain, {c.name: c.dims for c in self._choices})

    def _first(self) -> Model:
        """The model of the first candidate that gives one."""
        first: FastRNNError | None = None
        for values in itertools.islice(itertools.product(*(c.candidates for c in self._choices)), MOST_TRIES):
            try:
                self._values = list(values)
                return self._at(self._values)
            except FastRNNError as error:
                first = first or error
        assert first is not None
        raise first

    # -- the end --
    def close(self) -> None:
        """As `Model.close`, for the models of all values. A model that `select` returned goes on."""
        with self._lock:
            self._models.clear()
            self._tried = self._read = self._runs = self._branches = None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._read is None

    def __enter__(self) -> SelectedModel:
        super().__enter__()
        return self

    @property
    def _example(self) -> Model:
        """The model of the value that was tried first; FastRNNError if this model is closed."""
        found = self._tried
        if found is None:
            self._refuse_closed()
        return found

    @property
    def _core(self) -> Compiled:
        """Raises UnsupportedError: there is one for each value of the selectors."""
        self.refuse()

    # -- description --
    @property
    def graph(self) -> Graph:
        """Raises UnsupportedError: there is one graph for each value of the selectors."""
        self.refuse()

    def refuse(self) -> NoReturn:
        """Raise the UnsupportedError that says how to load the file as one graph."""
        if self.closed:
            self._refuse_closed()
        pairs = zip(self._choices, self._values, strict=True)
        words = " ".join(f"--bind {choice.name}={value.reshape(-1)[0]}" for choice, value in pairs)
        raise UnsupportedError(
            f"{self.name}: {self._which()} selects a branch of the file, so this model has no single graph; load it "
            f"with {self._hint()}, or {words} in a command"
        )

    @property
    def states(self) -> tuple[TensorInfo, ...]:
        return self._example.states

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._example.notes, f"{self._which()} selects a branch, which is compiled when first seen")

    @property
    def metadata(self) -> dict[str, str]:
        return self._example.metadata

    @property
    def memory_bytes(self) -> int:
        with self._lock:
            models, read = [m for m in self._models.values() if not m.closed], self._read
        if read is None:
            self._refuse_closed()
        shared = {id(a): a.nbytes for m in models for a in m.graph.constants.values()}
        own = sum(m.memory_bytes - sum(a.nbytes for a in m.graph.constants.values()) for m in models)
        return own + sum(shared.values()) + read.nbytes

    @property
    def delay(self) -> int:
        return self._example.delay

    @property
    def streamable(self) -> bool:
        return self._example.streamable

    @property
    def fingerprint(self) -> str:
        self.refuse()

    def _repr_html_(self) -> str:
        if self.closed:
            return tables.block(repr(self))
        kinds = {"inputs": self.inputs, "outputs": self.outputs, "states": self.states}
        rows = [("" if i else kind, str(info)) for kind, infos in kinds.items() for i, info in enumerate(infos)]
        rows += [("" if i else "notes", note) for i, note in enumerate(self.notes)]
        text = (
            f"{self._which()} selects a branch; select({', '.join(f'{c.name}=...' for c in self._choices)}) gives one"
        )
        return tables.block(f"SelectedModel {self.name}", tables.line(text), tables.pairs(rows))

    # -- selection --
    def select(self, /, **values: Input) -> Model:
        """The model of these values of the selectors, which takes the other inputs: `model.select(sr=16000)`.

        Raises
        ------
        ShapeError : a selector is missing, unknown, or of another dtype or shape. What `fastrnn.load` raises, if the
        branch holds what fastrnn does not run.
        """
        return self._at(self._typed(values))

    def _typed(self, values: Mapping) -> list[np.ndarray]:
        if self.closed:
            self._refuse_closed()
        known = [c.name for c in self._choices]
        if not isinstance(values, Mapping) or set(values) != set(known):
            got = sorted(map(str, values)) if isinstance(values, Mapping) else f"{values!r:.60}"
            raise ShapeError(f"{self.name}: {self._which()} selects a branch: pass {self._hint()}, got {got}")
        return [c.typed(values[c.name]) for c in self._choices]

    def _at(self, values: list[np.ndarray]) -> Model:
        key = tuple(v.tobytes() for v in values)
        found = self._models.get(key)
        if found is not None:
            return found
        with self._lock:
            if self._read is None:
                self._refuse_closed()
            if key not in self._models:
                graph = self._read(dict(zip((c.name for c in self._choices), values, strict=True)))
                self._models[key] = Model(self._share(graph), self._asked, self._precision)
                if len(self._models) > KEPT_VALUES:
                    gone = next(iter(self._models))
                    del self._models[gone]
                    if self._branches is not None:
                        self._branches.forget(self._joined(gone))
                    self._warn()
            return self._models[key]

    def _joined(self, key: tuple[bytes, ...]) -> bytes:
        """The bytes of the selectors in the order of the inputs; key: in that of the choices."""
        known = dict(zip((c.name for c in self._choices), key, strict=True))
        return b"".join(known[name] for name in self._names if name in known)

    def _warn(self) -> None:
        """Say once that the selectors have more values than are kept: a counter, for example, has one per call."""
        if not self._warned:
            self._warned = True
            text = f"{self._which()} had more than {KEPT_VALUES} values; each compiles a model"
            warnings.warn(f"{self.name}: {text}, and the oldest is dropped", FastRNNWarning, stacklevel=5)

    def _share(self, graph: Graph) -> Graph:
        """The graph with the arrays of the kept models, if they are equal: branches may share layers."""
        kept: dict[bytes, np.ndarray] = {}
        for model in [m for m in self._models.values() if not m.closed]:
            kept |= {_digest(array): array for array in model.graph.constants.values()}
        return graph.replace(constants={n: kept.get(_digest(a), a) for n, a in graph.constants.items()})

    def _which(self) -> str:
        names = " and ".join(f"the input {c.name!r}" for c in self._choices)
        return names if len(self._choices) == 1 else f"each of {names}"

    def _hint(self) -> str:
        values = {c.name: value.tolist() for c, value in zip(self._choices, self._values, strict=True)}
        return f"bind={values}"

    # -- whole sequences --
    def run(self, /, *arrays: Input, lengths: Integers | None = None, **named: Input) -> tuple[Array, ...]:
        """As `Model.run`; the selectors are inputs like the others."""
        branches = self._branches
        if branches is not None and lengths is None and (found := branches.run_plain(arrays, named)) is not None:
            return found
        if any(isinstance(array, Mapping) for array in arrays):
            raise ShapeError(f"{self.name} takes arrays, by position or by name, and got a dict: pass run(**feeds)")
        if len(arrays) > len(self._names):
            raise ShapeError(f"{self.name} takes {len(self._names)} inputs {list(self._names)}, got {len(arrays)}")
        model, rest = self._split(dict(zip(self._names, arrays, strict=False)), named)
        return model.run(lengths=lengths, **rest)

    def __call__(self, /, *arrays: Input, lengths: Integers | None = None, **named: Input) -> Outputs:
        """As `Model.__call__`; the selectors are inputs like the others."""
        branches = self._branches
        if branches is not None and lengths is None and (found := branches.call_plain(arrays, named)) is not None:
            return found
        plain = [name for name in self._names if name not in self._example.graph.states]
        if len(arrays) > len(plain):
            raise ShapeError(f"{self.name} takes {len(plain)} inputs besides its states, got {len(arrays)}")
        model, rest = self._split(dict(zip(plain, arrays, strict=False)), named)
        return model(lengths=lengths, **rest)

    def _split(self, feeds: dict[str, Any], named: dict[str, Any]) -> tuple[Model, dict[str, Any]]:
        """The model that the feeds select, and the feeds of its own inputs."""
        for name in named:
            if name not in self._names:
                raise ShapeError(f"{self.name} has no input {name!r}; its inputs are {list(self._names)}")
            if name in feeds:
                raise ShapeError(f"input {name} is given twice")
        feeds = feeds | named
        missing = [c.name for c in self._choices if c.name not in feeds]
        if missing:
            raise ShapeError(f"{self.name}: input {', '.join(missing)} is missing")
        values = [c.typed(feeds.pop(c.name)) for c in self._choices]
        model = self._at(values)
        with self._lock:
            key = tuple(v.tobytes() for v in values)
            if self._branches is not None and self._models.get(key) is model:
                self._branches.keep(self._joined(key), model)
        return model, feeds

    # -- streams --
    def stream(
        self,
        batch_size: int | None = None,
        *,
        bind: Mapping[str, Input] | None = None,
        context: int | None = None,
        at_context: Literal["error", "window"] = "error",
    ) -> Stream:
        """As `Model.stream`; bind holds a value for each selector too: `{"sr": 16000}`.

        Raises, besides, ShapeError if bind does not name every selector.
        """
        model, rest = self._of_bind(bind)
        return model.stream(batch_size, bind=rest, context=context, at_context=at_context)

    def pool(
        self,
        capacity: int = 1024,
        *,
        bind: Mapping[str, Input] | None = None,
        context: int | None = None,
        at_context: Literal["error", "window"] = "error",
    ) -> StreamPool:
        """As `Model.pool`; bind: as in `stream`, for all streams of the pool."""
        model, rest = self._of_bind(bind)
        return model.pool(capacity, bind=rest, context=context, at_context=at_context)

    def _of_bind(self, bind: Mapping[str, Input] | None) -> tuple[Model, dict]:
        """The model that the bound selectors select, and the other bound inputs."""
        known = [c.name for c in self._choices]
        if not isinstance(bind, Mapping) or not set(known) <= set(bind):
            return self._at(self._typed({} if bind is None else bind)), {}
        model = self._at(self._typed({name: bind[name] for name in known}))
        return model, {name: value for name, value in bind.items() if name not in known}

    def __reduce__(self) -> tuple[Any, ...]:
        return SelectedModel, (self._names, self._choices, self._read, self._asked, self._precision)


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).digest()
