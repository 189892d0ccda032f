"""Streams that change hands, at a host: what it says to flush, and to whom it gives old answers."""

import numpy as np
from simulated import Memory, Streams

from fastrnn.ray.host import Host, finish
from fastrnn.ray.words import ADOPT, FOUND, MOVED, OPEN, OWED, RECOVER, STALE, TAKEN, WAITING


def made(store=None):
    host = Host(1, Streams(), store or Memory(), lambda: 0.0, 3.0)
    assert finish(host.acquire(0))
    return host


def asked(host, caller, mode):
    """The row of an attach: code, slot, next index, generation, where the caller began, where it ended, doubt."""
    return host.attach(caller, mode, np.array([0]), ["s"], np.array([1]), np.array([0]))[3][:, 0].tolist()


def step(host, slot, caller, index, since, x=5, said=0, number=1):
    rows = np.array([[slot], [index], [since], [1], [said]], np.int64)
    return host.step(caller, number, 0, np.array([[0], [1]]), rows, [np.array([x], np.uint64)])


def flush(host):
    for _ in range(2):
        finish(host.write(host.capture(0)))


def test_only_the_process_in_which_a_stream_was_found_can_say_that_its_checkpoints_know_the_caller():
    """One of the same name that lost the shard owes nothing, and said so: no checkpoint knew the new caller, and a
    restored shard took the former one for the stream's."""
    store = Memory()
    old = made(store)
    asked(old, 1, OPEN)
    new = made(store)
    assert asked(new, 1, RECOVER)[0] == FOUND
    new.beat(1, np.array([[0], [2]]), np.zeros(0, np.int64))
    assert asked(new, 2, ADOPT)[0] == FOUND
    head = np.array([[0], [2]])
    assert new.owing(head) == {0: OWED}
    assert old.owing(head) == {0: STALE}
    old.release(0)
    assert old.owing(head) == {0: MOVED}
    flush(new)
    assert new.owing(head) == {}


def test_a_caller_that_has_not_heard_of_its_return_learns_where_it_lost_the_stream_first():
    """Its step at index 1 was not taken: another caller took the stream there. It got the stream back without hearing
    of it, and lost it again at 2. If it heard of 2 alone, it would take the other's step at 1 for its own."""
    host = made()
    slot = asked(host, 1, OPEN)[1]
    assert step(host, slot, 1, 0, 0)[0] == "done"
    assert asked(host, 2, ADOPT)[0] == FOUND
    assert step(host, slot, 2, 1, 1)[0] == "done"
    assert asked(host, 1, ADOPT)[2:6] == [2, 1, 2, 1]  # the answer is lost
    assert asked(host, 2, ADOPT)[0] == FOUND
    assert asked(host, 1, RECOVER)[0] == TAKEN
    assert asked(host, 1, ADOPT)[2:6] == [2, 1, 2, 1]
    assert step(host, slot, 1, 2, 2)[0] == "done"
    assert asked(host, 2, ADOPT)[0] == FOUND
    assert asked(host, 1, ADOPT)[5] == 3  # it stepped it meanwhile


def test_an_old_answer_goes_to_the_caller_that_got_it_or_to_one_that_says_the_index():
    host = made()
    slot = asked(host, 1, OPEN)[1]
    _, (first,), _ = step(host, slot, 1, 0, 0)
    assert asked(host, 2, ADOPT)[0] == FOUND
    kind, rows, expected = step(host, slot, 2, 0, 1)
    assert (kind, rows.tolist(), expected.tolist()) == ("rows", [0], [1])
    kind, (again,), _ = step(host, slot, 2, 0, 1, said=1)
    assert kind == "done"
    assert (again == first).all()
    assert asked(host, 1, ADOPT)[0] == FOUND
    kind, (again,), _ = step(host, slot, 1, 0, 1)
    assert kind == "done"
    assert (again == first).all()


def test_an_open_that_comes_once_more_makes_no_new_stream_of_one_that_was_stepped():
    """Its shard was restored from before it. Another caller would have begun at step 0 again."""
    store = Memory()
    old = made(store)
    slot = asked(old, 1, OPEN)[1]
    assert step(old, slot, 1, 0, 0)[0] == "done"
    new = made(store)
    assert asked(new, 1, OPEN)[0] == FOUND  # the message of before
    assert asked(new, 2, ADOPT)[0] == WAITING
    assert asked(new, 1, RECOVER)[0] == FOUND
    new.beat(1, np.array([[0], [2]]), np.zeros(0, np.int64))  # it has sent its steps again
    assert asked(new, 2, ADOPT)[0] == FOUND
