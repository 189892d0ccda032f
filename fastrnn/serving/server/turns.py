"""What happens at the turn of a request: the step index that it expects, its way into the engine and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import numpy as np

from .faults import Fault, brief, invalid
from .lane import Lane, Steps
from .sequence import Answer, Call, Sequence, Work, shown

SLOT, STEPS = attrgetter("slot"), attrgetter("steps")


def checked_inputs(lane: Steps, call: Call) -> tuple[list[np.ndarray], int]:
    """(the inputs in the model's order, checked; the steps of a chunk, or 0)."""
    if call.checked is not None and call.checked[0] is lane:
        return call.checked[1:]
    if call.wanted:
        check_outputs([*(a.name for a in lane.outputs), *(["STEP_INDEX"] if call.many else [])], call.wanted)
    names = [a.name for a in lane.inputs]
    missing = [n for n in names if n not in call.inputs]
    more = [n for n in call.inputs if n not in names]
    if missing or more:
        wrong = (
            f"lacks the input {brief(missing[0])}"
            if missing
            else f"has an input {brief(more[0])}, which is not the model's"
        )
        raise invalid(f"the request {wrong}: the inputs are {', '.join(names)}")
    arrays = [call.inputs[n] for n in names]
    if call.many:
        return lane.rows_of(arrays, len(call.ids)), 0
    return lane.steps_of(arrays, call.ends[0] and not call.starts[0])


def check_outputs(have: list[str], wanted: tuple[str, ...]) -> None:
    """Fault: an output that a request names is not the model's."""
    unknown = [name for name in wanted if name not in have]
    if unknown:
        raise invalid(f"there is no output {brief(unknown[0])}: the outputs are {', '.join(have)}", "output")


def answer_again(work: Work) -> Answer | None:
    """The answer to a request that was sent again; None if it is new. Fault: its step_index is not the next, it follows
    the end of its sequence, or it had no END before, so that its answer lacks what the model holds back."""
    indexes, first = work.call.indexes, work.rows[0]
    if indexes is None:
        return None
    steps = work.count
    if check_indexes(work.rows, indexes, work.steps):
        if work.call.ends[0] and first.lane.late and not first.over:
            text = (
                f"sequence {shown(first.id)} took the steps of step_index {indexes[0]} without its end: ask for their "
                "answer again without sequence_end, then end the sequence by a chunk without a step"
            )
            raise Fault("FAILED_PRECONDITION", "step_index", text)
        outputs = [s.last[2] for s in work.rows if s.last is not None]
        whole = [np.stack(parts) for parts in zip(*outputs, strict=True)] if work.call.many else outputs[0]
        done = tuple(index + steps for index in indexes)
        return Answer(named(work.rows[0].lane, work.call.many, whole), indexes, done, work.rows[0].lane.version)
    for sequence in work.rows:
        if sequence.over:  # such as an END of other steps than the one that has run
            raise invalid(
                f"sequence {shown(sequence.id)} gets no request after the one that ends it", "unknown_sequence"
            )
    return None


def check_indexes(rows: Iterable[Sequence], indexes: Iterable[int], steps: int) -> bool:
    """Whether all are those of the last request of each, which is sent again. Fault: one is not the next either."""
    pairs = list(zip(rows, indexes, strict=True))
    if pairs and all(is_last(sequence, index, steps) for sequence, index in pairs):
        return True
    for sequence, index in pairs:
        if index != sequence.steps:
            raise wrong_index(sequence.id, sequence.steps, index)
    return False


def wrong_index(id: int | str, expected: int, got: int) -> Fault:
    """A request whose step_index is not the next one of its sequence."""
    text = f"sequence {shown(id)} expects step_index {expected}, got {got}"
    return Fault("FAILED_PRECONDITION", "step_index", text)


def is_last(sequence: Sequence, index: int, steps: int) -> bool:
    """Whether these are the step_index and the steps of the last request of a sequence."""
    return sequence.last is not None and sequence.last[:2] == (index, steps)


def begin(work: Work, done: Callable[[Work, Any, BaseException | None], None]) -> None:
    """Give a request to the engine."""
    rows, call, work.then = work.rows, work.call, done
    slots = [*map(SLOT, rows)]
    work.request = rows[0].lane.submit(slots, work, work.arrays, work.steps, many=call.many, ends=call.ends[0])
    for sequence in rows:
        sequence.running = work


def answer_of(work: Work, result: Any) -> Answer:
    """The answer to a request that ran. Its sequences count their steps, and keep it if they have step indexes."""
    steps, outputs = work.count, list(result) if isinstance(result, tuple) else [result]
    if not work.rows[0].lane.even:
        outputs = [np.empty(0, np.float32) if v is None else v for v in outputs]
    first = tuple(map(STEPS, work.rows))
    for sequence in work.rows:
        sequence.steps += steps
    if True in work.call.ends:
        for sequence, ends in zip(work.rows, work.call.ends, strict=True):
            sequence.over = ends
    if work.call.indexes is not None:
        for i, sequence in enumerate(work.rows):
            own = [v[i].copy() for v in outputs] if work.call.many else outputs
            sequence.last = first[i], work.steps, own
    lane, done = work.rows[0].lane, tuple(map(STEPS, work.rows))
    return Answer(named(lane, work.call.many, outputs), first, done, lane.version, lane.tick_seconds)


def going_on(rows: list[Any]) -> Lane | None:
    """The lane of sequences, if all are live (not None), open, on one lane, and take further requests."""
    lane = None if rows[0] is None else rows[0].lane
    for sequence in rows:
        if sequence is None or sequence.ending or sequence.slot is None or sequence.lane is not lane:
            return None
    return lane


def idle(rows: list[Sequence]) -> bool:
    """Whether nothing runs or waits for any of these sequences, so that a request for them runs at once. Whatever else
    may hold a request back has to be tested here as well."""
    for sequence in rows:  # noqa: SIM110  100,000 rows a second leave no time for more: `all` takes 4 times as long
        if sequence.running is not None or sequence.waiting:
            return False
    return True


def named(lane: Steps, many: bool, outputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name, with the batch axis of the inputs. A value over all steps that does not exist yet is missing."""
    if len(outputs) == 1:
        (argument,), (v,) = lane.outputs, outputs
        if argument.timed or v.size:
            return {argument.name: v if many or not argument.batched else v[None]}
        return {}
    return {
        a.name: v if many or not a.batched else v[None]
        for a, v in zip(lane.outputs, outputs, strict=True)
        if a.timed or v.size
    }
