"""A model as the protocol shows it: what it takes, what it answers, and which part of the server runs a request."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ...errors import ShapeError
from ...records import dataclass
from . import tensors
from .faults import Fault, brief, invalid
from .lane import Lane
from .options import Options
from .sequence import Answer, Call, checked_id, number_of
from .sequences import Sequences
from .turns import check_outputs
from .whole import WholeRuns

PLATFORM = "fastrnn_rnn"
MANY = ("SEQUENCE_IDS", "SEQUENCE_START", "SEQUENCE_END", "STEP_INDEX")  # inputs that make a request one of many


def versions_of(models: dict[str, Any]) -> dict[str, dict[int, Any]]:
    """name -> version -> Model, of models with and without versions. ShapeError: they are something else."""
    if not models:
        raise ShapeError("Server takes at least one model, as {name: model}")
    found = {}
    for name, item in models.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise ShapeError(f"the name of a model is a text without '/', got {name!r:.60}")
        versions = item if isinstance(item, dict) else {1: item}
        for version, model in versions.items():
            if type(version) is not int or version < 1:
                raise ShapeError(f"{name}: a version is a whole number from 1 on, got {version!r:.60}")
            if not hasattr(model, "pool"):
                raise ShapeError(f"{name}: expected a Model or {{version: Model}}, got {model!r:.60}")
        if not versions:
            raise ShapeError(f"{name}: expected a Model or {{version: Model}}, got an empty dict")
        found[name] = versions
    return found


@dataclass(frozen=True)
class Request:
    """An inference request, as every protocol reads it.

    version, id : texts, "" if not given. outputs : the names that are wanted; () for all. client : its name or address.
    """

    model: str
    version: str
    id: str
    parameters: dict[str, Any]
    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...]
    client: str


@dataclass(frozen=True)
class Reply:
    """Its answer. computed : seconds of the tick or run that finished it."""

    version: str
    outputs: dict[str, np.ndarray]
    parameters: dict[str, Any]
    computed: float = 0.0


class Hosted:
    """One model by its name, in one or several versions.

    Parameters
    ----------
    name : str
    models : version -> Model
    options : Options
    """

    def __init__(self, name: str, models: dict[int, Any], options: Options):
        self.name, self.models, self.options = name, models, options
        self.whole = {v: WholeRuns(m, options.max_delay) for v, m in models.items()}
        reasons = {v: _no_sequences(name, m) for v, m in models.items()}
        self.stateless = {v: why for v, why in reasons.items() if why}  # versions without sequences, and why
        self.sequences = self._sequences()
        self.outputs = {v: [o[0] for o in self._tensors(v)[1]] for v in models}  # version -> names

    def _sequences(self) -> Any:
        """What runs the requests of sequences."""
        models = {v: m for v, m in self.models.items() if v not in self.stateless}
        lanes = {v: Lane(m, v, self.options.max_delay, self.options.tick_rows) for v, m in models.items()}
        return Sequences(self.name, lanes, self.options)

    @property
    def latest(self) -> int:
        """The highest version, on which new sequences start."""
        return max(self.models)

    def version(self, text: str) -> int:
        """A version that a client named; the latest for "". Fault NOT_FOUND: there is none."""
        if not text:
            return self.latest
        version = number_of(text)
        if version is None or version not in self.models:
            have = ", ".join(map(str, sorted(self.models)))
            raise Fault("NOT_FOUND", "version", f"'{self.name}' has no version {brief(text)}: it has {have}")
        return version

    def no_sequences(self, text: str) -> Fault:
        """Why a version, as a client named it, runs no sequence."""
        return invalid(self.stateless[self.version(text)], "not_streamable")

    # -- requests --
    async def infer(self, request: Request) -> Reply:
        """Run a request. Fault: it is refused, or failed."""
        call = self._call(request)
        if call is not None:
            return self._reply(request, call, await self.sequences.run(call))
        version = self.version(request.version)
        whole = self.whole[version]
        outputs = await whole.run(request.inputs, _timeout(request.parameters), request.client)
        return _only(Reply(str(version), outputs, {}, whole.seconds), request.outputs)

    def post(self, request: Request, tell: Callable[[Reply | Fault], None]) -> Callable[[], None] | None:
        """`infer` without a task, for requests of sequences that are here and may take their time: `tell` gets the
        Reply, or the Fault, once. Returns what withdraws the request; None, without an effect, for any other request.

        Raises
        ------
        Fault : it is refused at once; tell is not called then.
        """
        call = self._call(request)
        if call is None or call.timeout is not None or self.sequences.must_look(call):
            return None
        if self.sequences.finding is not None and self.sequences.finding.needed(call):
            return None

        def told(answer: Answer | Fault) -> None:
            tell(answer if isinstance(answer, Fault) else self._reply(request, call, answer))

        return partial(self.sequences.withdraw, self.sequences.post(call, told))

    async def check(self, request: Request) -> int:
        """The version on which a request of many sequences would run. Fault: it would be refused."""
        call = self._call(request)
        assert call is not None
        return await self.sequences.check(call)

    def _call(self, request: Request) -> Call | None:
        """The steps that a request asks for; None: of no sequence. Fault: it is wrong."""
        given = request.parameters
        check_parameters(given)
        many = "SEQUENCE_IDS" in request.inputs
        id = checked_id(given.get("sequence_id", 0))
        if many or id is None:
            _without_sequence(given, many)
        if id is None and not many:
            check_outputs(self.outputs[self.version(request.version)], request.outputs)
            return None
        if not self.sequences.lanes or (request.version and self.version(request.version) in self.stateless):
            raise self.no_sequences(request.version)
        return self._one(request, id) if id is not None and not many else self._many(request)

    def _reply(self, request: Request, call: Call, answer: Answer) -> Reply:
        outputs, parameters = answer.outputs, {}
        if call.many:
            outputs = {**outputs, "STEP_INDEX": np.array(answer.first, np.int64)}
        else:
            parameters = {"sequence_id": call.ids[0], "step_index": answer.first[0], "steps_done": answer.done[0]}
        return _only(Reply(str(answer.version), outputs, parameters, answer.computed), request.outputs)

    def _one(self, request: Request, id: int | str) -> Call:
        given = request.parameters
        return Call(
            ids=(id,),
            starts=(_flag(given, "sequence_start"),),
            ends=(_flag(given, "sequence_end"),),
            inputs=request.inputs,
            indexes=_index(given),
            version=self.version(request.version) if request.version else None,
            timeout=_timeout(given),
            client=request.client,
            wanted=request.outputs,
        )

    def _many(self, request: Request) -> Call:
        ids = ids_of(request.inputs["SEQUENCE_IDS"])
        n = len(ids)
        inputs = {name: v for name, v in request.inputs.items() if name not in MANY}
        indexes = request.inputs.get("STEP_INDEX")
        return Call(
            ids=ids,
            starts=_flags(request.inputs, "SEQUENCE_START", n),
            ends=_flags(request.inputs, "SEQUENCE_END", n),
            inputs=inputs,
            many=True,
            indexes=None if indexes is None else _indexes(indexes, n),
            version=self.version(request.version) if request.version else None,
            timeout=_timeout(request.parameters),
            client=request.client,
            wanted=request.outputs,
        )

    # -- description --
    def metadata(self, text: str) -> dict[str, Any]:
        """What ModelMetadata answers."""
        version = self.version(text)
        inputs, outputs = self._tensors(version)
        return {
            "name": self.name,
            "versions": [str(v) for v in sorted(self.models)],
            "platform": PLATFORM,
            "inputs": [{"name": n, "datatype": d, "shape": [-1, *s]} for n, d, s in inputs],
            "outputs": [{"name": n, "datatype": d, "shape": [-1, *s]} for n, d, s in outputs],
        }

    def config(self, text: str) -> dict[str, Any]:
        """What ModelConfig answers."""
        inputs, outputs = self._tensors(self.version(text))
        return {
            "name": self.name,
            "platform": PLATFORM,
            "backend": "fastrnn",
            "max_batch_size": 1,
            "input": [{"name": n, "data_type": f"TYPE_{d}", "dims": s} for n, d, s in inputs],
            "output": [{"name": n, "data_type": f"TYPE_{d}", "dims": s} for n, d, s in outputs],
            "sequence_batching": {
                "max_sequence_idle_microseconds": round(self.options.idle_timeout * 1e6),
                "oldest": {
                    "max_candidate_sequences": self.options.max_sequences,
                    "max_queue_delay_microseconds": round(self.options.max_delay * 1e6),
                },
            },
        }

    def _tensors(self, version: int) -> tuple[list, list]:
        """(name, datatype, features) of the inputs and outputs of a step; -1 for a size that is open."""
        lane = self.sequences.lanes.get(version)
        if lane is not None:
            sides = [[(a.name, a.dtype, a.features) for a in side] for side in (lane.inputs, lane.outputs)]
        else:
            whole = self.whole[version]
            features = lambda i: [d for d in i.dims if d not in ("batch", "time")]  # noqa: E731
            sides = [[(i.name, i.dtype, features(i)) for i in side] for side in (whole.inputs, whole.outputs)]
        plain = lambda dims: [d if isinstance(d, int) else -1 for d in dims]  # noqa: E731
        inputs, outputs = ([(n, tensors.name_of(d), plain(s)) for n, d, s in side] for side in sides)
        return inputs, outputs

    async def close(self) -> None:
        """End its threads."""
        await self.sequences.close()
        for whole in self.whole.values():
            await whole.close()


def _no_sequences(name: str, model: Any) -> str:
    """Why a model has no sequences; "" if it has."""
    if not model.streamable:
        return f"'{name}' can't run step by step, so it has no sequences: send whole sequences without a sequence_id"
    sizes = model._core._stream_sizes
    if not sizes:
        return ""
    # The first stream of a pool fixes its sizes: one client would decide for all others.
    options, arguments = " ".join(f"--size {n}=N" for n in sizes), ", ".join(f"{n!r}: N" for n in sizes)
    return (
        f"'{name}' leaves {' and '.join(map(repr, sizes))} of a step open, so it has no sequences: start the server "
        f"with {options}, or load the model with sizes={{{arguments}}}"
    )


def _only(reply: Reply, wanted: tuple[str, ...]) -> Reply:
    """The outputs that a request names."""
    if not wanted:
        return reply
    outputs = {n: reply.outputs[n] for n in wanted if n in reply.outputs}
    return Reply(reply.version, outputs, reply.parameters, reply.computed)


def check_parameters(parameters: dict[str, Any]) -> None:
    """Check what a client may send and this server has no use for: Triton's priority, as no model has levels of it."""
    value = parameters.get("priority", 0)
    if type(value) is not int or value < 0:
        raise invalid(f"priority must be a whole number from 0 on, got {brief(value)}")


def _without_sequence(parameters: dict[str, Any], many: bool) -> None:
    """Refuse parameters of one sequence in a request of none or of many: dropping them would lose a state silently."""
    names = [n for n in ("sequence_start", "sequence_end") if _flag(parameters, n)]
    names += ["step_index"] if parameters.get("step_index") is not None else []
    if many and checked_id(parameters.get("sequence_id", 0)) is not None:
        names.insert(0, "sequence_id")
    if names:
        what = "a request with SEQUENCE_IDS: use the inputs SEQUENCE_START, SEQUENCE_END and STEP_INDEX"
        if not many:
            what = "a request without a sequence: send a sequence_id other than 0 and an empty text"
        raise invalid(f"the parameter {names[0]} has no meaning in {what}")


def _flag(parameters: dict[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if isinstance(value, bool) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise invalid(f"{name} must be true or false, got {brief(value)}")


def _index(parameters: dict[str, Any]) -> tuple[int] | None:
    value = parameters.get("step_index")
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise invalid(f"step_index must be a whole number from 0 on, got {brief(value)}")
    return (value,)


def _timeout(parameters: dict[str, Any]) -> float | None:
    """Seconds. The parameter is Triton's, in microseconds; 0 means none."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise invalid(f"timeout must be a whole number of microseconds below 2**64, got {brief(value)}")
    return value / 1e6 if value else None


def ids_of(array: np.ndarray) -> tuple[int | str, ...]:
    """The ids of a request for many sequences."""
    if array.ndim != 1 or not array.size or (array.dtype != object and array.dtype.kind not in "iu"):
        shape = list(array.shape)
        raise invalid(f"SEQUENCE_IDS must be INT64, UINT64 or BYTES [sequences], got {array.dtype} {shape}")
    if array.dtype != object and array.min() > 0:  # what checked_id asks of each
        numbers = array.tolist()
        if len(set(numbers)) == len(numbers):
            return tuple(numbers)
    try:
        values = [v.decode() if isinstance(v, bytes) else v for v in array.tolist()]
    except UnicodeDecodeError as error:
        raise invalid(f"SEQUENCE_IDS has an id that is not UTF-8: {error}") from None
    ids = [checked_id(v) for v in values]
    if None in ids:
        raise invalid(f"SEQUENCE_IDS[{ids.index(None)}] is 0 or empty, which is no id")
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1) if len(ids) < 1000 else "an id"
        raise invalid(f"SEQUENCE_IDS has {twice} twice: a request takes one step of each sequence")
    return tuple(i for i in ids if i is not None)


def _flags(inputs: dict[str, np.ndarray], name: str, n: int) -> tuple[bool, ...]:
    array = inputs.get(name)
    if array is None:
        return (False,) * n
    if array.dtype != bool or array.shape != (n,):
        raise invalid(f"{name} must be BOOL [{n}], one for each of SEQUENCE_IDS, got {array.dtype} {list(array.shape)}")
    return tuple(array.tolist())


def _indexes(array: np.ndarray, n: int) -> tuple[int, ...]:
    if array.dtype.kind not in "iu" or array.shape != (n,) or (array < 0).any():
        shape = list(array.shape)
        raise invalid(f"STEP_INDEX must be INT64 [{n}] from 0 on, one for each sequence, got {array.dtype} {shape}")
    return tuple(int(v) for v in array)
