"""One live sequence, one request for it, and its answer."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from ...records import dataclass
from .faults import Fault, invalid
from .lane import Lane

logger = logging.getLogger("fastrnn")

MOST_ID_BYTES = 1024
HELD = object()


@dataclass(frozen=True)
class Call:
    """A request as a protocol read it.

    ids : of the sequences; more than one only if `many`
    starts, ends : a flag each
    inputs : by name; [1, F...] or [1, T, F...] of one sequence, [B, F...] if many
    many : one step of each of several sequences
    indexes : the step_index each expects, or None
    version : the version that was asked for; None: any
    timeout : seconds within which a tick must take it; None: any time
    client : the name or address of the client
    wanted : the names of the outputs that the answer shall have; () for all
    checked : (the lane, its inputs as `Lane.steps_of` returns them, steps) if its maker has checked them already
    """

    ids: tuple[int | str, ...]
    starts: tuple[bool, ...]
    ends: tuple[bool, ...]
    inputs: dict[str, np.ndarray]
    many: bool = False
    indexes: tuple[int, ...] | None = None
    version: int | None = None
    timeout: float | None = None
    client: str = ""
    wanted: tuple[str, ...] = ()
    checked: tuple[Lane, list[np.ndarray], int] | None = None


@dataclass(frozen=True)
class Answer:
    """outputs : the model's, by name, with the leading axes of the inputs. first : step_index of each sequence's first
    step. done : its next index. version : that ran. computed : seconds of the tick that finished it."""

    outputs: dict[str, np.ndarray]
    first: tuple[int, ...]
    done: tuple[int, ...]
    version: int
    computed: float = 0.0


Tell: TypeAlias = Callable[[Answer | Fault], None]


class Sequence:
    """A sequence, from its START to its end: an object is one generation, and a later START of its id makes another.

    slot : of its lane's pool; None until it is open, and again after its end
    steps : taken so far
    waiting : requests, in their order; running : the one that the engine has, or HELD: none may begin
    ending : a request with END was admitted, and nothing may follow it; over : it has run
    last : (step_index, steps of a chunk or 0, outputs) of the last request with a step_index, to answer it again
    epoch : under which the store has it; 0: not yet. lock : of what is written to the store
    """

    __slots__ = (
        "client", "ending", "epoch", "id", "lane", "last", "lock", "over", "running", "slot", "steps", "waiting"
    )  # fmt: skip

    def __init__(self, id: int | str, lane: Lane, client: str):
        self.id, self.lane, self.client = id, lane, client
        self.slot: int | None = None
        self.steps = 0
        self.waiting: deque[Work] = deque()
        self.running: Work | object | None = None
        self.ending = self.over = False
        self.last: tuple[int, int, Any] | None = None
        self.epoch = 0
        self.lock = asyncio.Lock()

    @property
    def at_rest(self) -> bool:
        """Nothing waits and nothing runs."""
        return self.running is None and not self.waiting and self.slot is not None


class LiveSequences(dict):
    """Id -> live sequence. It counts those of each client."""

    def __init__(self):
        super().__init__()
        self.by_client: Counter[str] = Counter()

    def __setitem__(self, id: int | str, sequence: Sequence) -> None:
        self.pop(id, None)
        super().__setitem__(id, sequence)
        self.by_client[sequence.client] += 1

    def __delitem__(self, id: int | str) -> None:
        client = self[id].client
        super().__delitem__(id)
        self.by_client[client] -= 1
        if not self.by_client[client]:
            del self.by_client[client]

    def pop(self, id: int | str, *default: Any) -> Any:
        if id not in self and default:
            return default[0]
        sequence = self[id]
        del self[id]
        return sequence


class Work:
    """A request that was admitted: it runs when it is the first of each of its sequences.

    rows : its sequences; arrays : checked inputs; request : what the batcher has
    steps : of a chunk; 0 for one step, NO_STEP for none
    tell : called once with the Answer or the Fault, on the event loop; settled : it was, or the request was withdrawn
    then : called with (this, result, error) when the engine has run it; CancelledError: `cancel`

    It is also the future of the batcher's request: an asyncio.Future, whose callbacks the loop calls one by one later,
    would cost as much as the step of a small model.
    """

    __slots__ = ("_ran", "_watcher", "arrays", "call", "request", "rows", "settled", "steps", "tell", "then")

    def __init__(self, call: Call, rows: list[Sequence], arrays: list[np.ndarray], steps: int, tell: Tell):
        self.call, self.rows, self.arrays, self.steps, self.tell = call, rows, arrays, steps, tell
        self.request: Any = None
        self.then: Callable[[Work, Any, BaseException | None], None] | None = None
        self.settled = self._ran = False
        self._watcher: asyncio.Future | None = None

    def settle(self, result: Answer | Fault | None) -> None:
        """Tell the caller; only the first time. None: it does not want to know."""
        if self.settled:
            return
        self.settled = True
        if self._watcher is not None:
            self._watcher.set_result(None)
        if result is not None:
            try:
                self.tell(result)
            except Exception:
                logger.exception("an answer could not be passed on")

    def watcher(self) -> asyncio.Future:
        """A future that is done when the request is settled."""
        if self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_future()
            if self.settled:
                self._watcher.set_result(None)
        return self._watcher

    # -- for the batcher --
    def done(self) -> bool:
        """Whether it ran, or is not wanted any more."""
        return self._ran

    def set_result(self, result: Any) -> None:
        """It ran."""
        self._end()
        assert self.then is not None
        try:
            self.then(self, result, None)
        except Exception:  # the answers of a tick's other requests must not wait for ever
            logger.exception("the end of a step failed")

    def set_exception(self, error: BaseException) -> None:
        """It failed."""
        self._end()
        asyncio.get_running_loop().call_soon(self.then, self, None, error)

    def cancel(self) -> None:
        """No tick has to take it."""
        if not self._ran:
            self._end()
            asyncio.get_running_loop().call_soon(self.then, self, None, asyncio.CancelledError())

    def _end(self) -> None:
        """The batcher's request, which has this as its future, is no longer known here: thousands of such cycles a
        second would be left to Python's garbage collector, which stops the steps of all for milliseconds."""
        self._ran, self.request = True, None

    @property
    def count(self) -> int:
        """The steps that it takes of each sequence."""
        return max(self.steps, 0) if self.steps else 1

    @property
    def taken(self) -> bool:
        """Whether states may change by it at any time, or have."""
        request = self.request
        return self._ran if request is None else bool(request.taken or getattr(request, "at", 0))


def pass_answer(future: asyncio.Future, result: Any) -> None:
    """A result, or a Fault, is that of a future, if it is still wanted."""
    if future.done():
        return
    if isinstance(result, Fault):
        future.set_exception(result)
    else:
        future.set_result(result)


def checked_id(value: Any) -> int | str | None:
    """A sequence's id as it is used here; None for 0 and "", which mean none. The integer 5 is not the string "5"."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise invalid(f"sequence_id must be an integer or a string, got {type(value).__name__}")
    if isinstance(value, int):
        if not 0 <= value < 1 << 64:
            raise invalid(f"sequence_id must be from 0 to 2**64 - 1, got {value}")
    elif len(value.encode("utf-8", "surrogatepass")) > MOST_ID_BYTES:
        raise invalid(f"sequence_id is longer than {MOST_ID_BYTES} bytes")
    return value or None


def number_of(text: str) -> int | None:
    """A whole number of at most 20 digits that a client wrote; None: it is something else. `int` raises ValueError
    above 4,300 digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def shown(id: int | str) -> str:
    """An id in a message: control characters of it can't change a terminal or a log."""
    return str(id) if isinstance(id, int) else repr(id)[1:-1][:100]
