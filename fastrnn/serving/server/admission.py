"""Whether a request is taken: every check of it before it changes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .faults import Fault, invalid
from .lane import Lane
from .sequence import Answer, Call, Sequence, Work, shown
from .turns import answer_again, check_indexes, checked_inputs, is_last, wrong_index

if TYPE_CHECKING:
    from .sequences import Sequences

BUSY_SECONDS = 1.0  # after which a client may try again


def draining(id: int | str) -> Fault:
    """The server is about to end."""
    text = f"sequence {shown(id)}: this server is draining; try another, or again after {BUSY_SECONDS:g} s"
    return Fault("UNAVAILABLE", "draining", text, retry_after=BUSY_SECONDS)


def queue_full(id: int | str, most: int) -> Fault:
    """A sequence has as many requests waiting as it may."""
    text = f"sequence {shown(id)} has {most} requests waiting: send it again after {BUSY_SECONDS:g} s"
    return Fault("RESOURCE_EXHAUSTED", "queue_full", text, retry_after=BUSY_SECONDS)


def live_already(id: int | str) -> Fault:
    """START of a live sequence, if sequences are strict."""
    return Fault("ALREADY_EXISTS", "strict", f"sequence {shown(id)} is live already: end it first, or start another id")


def late(timeout: float) -> Fault:
    """No tick took a request in its time."""
    text = f"no tick took the request in {timeout:g} s: its state is unchanged, so it can be sent again"
    return Fault("DEADLINE_EXCEEDED", "timeout", text)


def found(sequences: Sequences, call: Call, i: int) -> Sequence | None:
    """The live sequence that a row goes on with; None: it starts one."""
    id = call.ids[i]
    sequence = sequences.live.get(id)
    if call.starts[i]:
        if sequences.draining:
            raise draining(id)
        if sequence is not None and sequences.options.strict_sequences:
            raise live_already(id)
        if call.indexes is not None and call.indexes[i] != 0:
            raise wrong_index(id, 0, call.indexes[i])
        return None
    if sequence is None:
        raise sequences.ended.fault(id)
    if sequence in sequences.unsure and call.indexes is None:
        raise Fault("FAILED_PRECONDITION", "step_index", _unsure(sequence))
    if sequence.ending and not _ends_again(sequence, call, i):
        raise invalid(f"sequence {shown(id)} gets no request after the one that ends it", "unknown_sequence")
    if call.version is not None and call.version != sequence.lane.version:
        raise invalid(
            f"sequence {shown(id)} runs on version {sequence.lane.version} of '{sequences.name}', and the request asks "
            f"for version {call.version}: ask for no version, or start the sequence again",
            "version",
        )
    most = sequences.options.queue_size
    if len(sequence.waiting) >= most:
        raise queue_full(id, most)
    return sequence


def repeated(sequences: Sequences, call: Call) -> Answer | None:
    """The answer to the last request of sequences that it ended, which is sent again; None: it is another request."""
    live, ended = sequences.live, sequences.ended
    if call.indexes is None or True in call.starts or all(id in live for id in call.ids):
        return None
    rows = [live.get(id) or ended.sequence(id) for id in call.ids]
    known = [s for s in rows if s is not None]
    lanes = {s.lane for s in known}
    if len(known) < len(rows) or len(lanes) > 1 or call.version not in (None, known[0].lane.version):
        return None
    arrays, steps = checked_inputs(lanes.pop(), call)
    if not all(is_last(s, index, steps) for s, index in zip(known, call.indexes, strict=True)):
        return None
    return answer_again(Work(call, known, arrays, steps, print))


def room_for(sequences: Sequences, ids: list, client: str) -> None:
    """Refuse sequences beyond the most, of all clients and of this one."""
    live, own = sequences.live, sequences.options.client_sequences
    if own is not None:
        has = live.by_client[client]
        more = [id for id in ids if id not in live or live[id].client != client]
        if more and has + len(more) > own:
            text = f"{client} has {has} live sequences of at most {own}: end one before {shown(more[0])} starts"
            raise Fault("RESOURCE_EXHAUSTED", "client_sequences", text, retry_after=BUSY_SECONDS)
    new = [id for id in ids if id not in live]
    most = sequences.options.max_sequences
    if new and len(sequences.live) + len(new) > most:
        text = (
            f"sequence {shown(new[0])} can't start: '{sequences.name}' has {len(sequences.live)} live sequences of at "
            f"most {most}; try again after {BUSY_SECONDS:g} s"
        )
        raise Fault("UNAVAILABLE", "max_sequences", text, retry_after=BUSY_SECONDS)


def lane_of(sequences: Sequences, call: Call, found: list[Sequence]) -> Lane:
    """The version that runs all rows."""
    lanes = {s.lane for s in found}
    if len(found) < len(call.ids):
        version = max(sequences.lanes) if call.version is None else call.version
        if version not in sequences.lanes:
            have = ", ".join(map(str, sorted(sequences.lanes)))
            text = f"'{sequences.name}' has no version {version}: it has {have}"
            raise Fault("NOT_FOUND", "version", text)
        lanes.add(sequences.lanes[version])
    if len(lanes) > 1:
        versions = " and ".join(str(v) for v in sorted(lane.version for lane in lanes))
        raise invalid(f"the rows run on versions {versions} of '{sequences.name}': send them apart", "version")
    return lanes.pop()


def would_run(sequences: Sequences, call: Call) -> int:
    """The version on which a request would run, if it came now. Fault: it would be refused; nothing has changed."""
    if sequences.closing:
        raise draining(call.ids[0])
    again = repeated(sequences, call)
    if again is not None:
        return again.version
    befores = [found(sequences, call, i) for i in range(len(call.ids))]
    room_for(sequences, [id for id, sequence in zip(call.ids, befores, strict=True) if sequence is None], call.client)
    live = [s for s in befores if s is not None]
    lane = lane_of(sequences, call, live)
    _, steps = checked_inputs(lane, call)
    if call.indexes is not None and all(s.at_rest for s in live):
        rows = [(s, index) for s, index in zip(befores, call.indexes, strict=True) if s is not None]
        check_indexes([s for s, _ in rows], [index for _, index in rows], steps)
    return lane.version


def _ends_again(sequence: Sequence, call: Call, i: int) -> bool:
    """Whether a request is the one that ends its sequence, sent again before it has run: it can't take another step."""
    last = sequence.waiting[-1] if sequence.waiting else sequence.running
    if not isinstance(last, Work) or last.call.indexes is None or call.indexes is None or not call.ends[i]:
        return False
    return last.call.indexes[last.call.ids.index(sequence.id)] == call.indexes[i]


def _unsure(sequence: Sequence) -> str:
    return (
        f"sequence {shown(sequence.id)} goes on from a checkpoint after {sequence.steps} steps, and later ones may be "
        f"lost: send step_index from {sequence.steps} on with the steps from there, or start the sequence again"
    )
