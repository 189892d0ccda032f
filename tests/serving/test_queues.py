"""FairQueues against a plain model: whatever is put, cancelled, taken and put back, nothing is lost or out of order."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrnn.serving._queues import MORE, FairQueues, Push, Step, deliver

pytestmark = pytest.mark.any_isa


class Future:
    """What the queues need of one."""

    def __init__(self):
        self.over, self.result = False, None

    def done(self):
        return self.over

    def set_result(self, result):
        self.over, self.result = True, result

    set_exception = set_result


ACTIONS = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 4)),
    st.tuples(st.just("cancel"), st.integers(0, 100)),
    st.tuples(st.just("take"), st.one_of(st.none(), st.integers(1, 6))),
    st.tuples(st.just("back"), st.integers(0, 10)),
)


@given(st.lists(ACTIONS, max_size=80), st.integers(1, 12), st.integers(1, 4))
def test_nothing_is_lost_or_out_of_order(actions, most, most_per_stream):
    queues = FairQueues(most, most_per_stream)
    waiting = defaultdict(list)  # slot -> its requests, in order
    tick, returned = [], 0

    for action, number in actions:
        if action == "put":
            request = Step(number, Future(), [])
            waiting[number].append(request)
            queues.put(request)
        elif action == "cancel":
            every = [r for requests in waiting.values() for r in requests]
            if every:
                every[number % len(every)].future.over = True
        elif action == "take":
            rounds = queues.take(number)
            tick = [r for some in rounds for r in some]
            assert all(len({r.slot for r in some}) == len(some) for some in rounds)
            assert number is None or len(tick) <= number
            for request in tick:
                assert not request.future.done()
                assert request.taken
                queue = waiting[request.slot]
                while queue[0].future.done():
                    queue.pop(0)
                assert queue.pop(0) is request
        else:
            unfinished, tick = tick[len(tick) - number :] if number else [], []
            queues.put_back(unfinished)
            returned += len(unfinished)
            for request in reversed(unfinished):
                assert not request.taken
                waiting[request.slot].insert(0, request)
        assert len(queues) <= most + returned  # requests that are put back have had their room
        for slot, requests in waiting.items():
            if any(not r.future.done() for r in requests):
                assert slot in queues

    rest = [r for r in queues.clear() if not r.future.done()]
    assert sorted(map(id, rest)) == sorted(id(r) for q in waiting.values() for r in q if not r.future.done())
    assert len(queues) == 0


def test_streams_take_turns():
    """With fewer places in a tick than streams, those that were left out come first."""
    queues = FairQueues(100, 10)
    for _ in range(3):
        for slot in range(5):
            queues.put(Step(slot, Future(), []))
    taken = [[r.slot for some in queues.take(2) for r in some] for _ in range(7)]
    assert taken == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [0, 1], [2, 3]]


def test_bounds_of_a_stream_and_of_all():
    queues = FairQueues(5, 2)
    for slot in (0, 0, 0, 1, 1, 2, 3):
        queues.put(Step(slot, Future(), []))
    assert (len(queues), queues.pressed) == (5, True)
    assert not queues.has_room(3)
    assert [[r.slot for r in some] for some in queues.take(None)] == [[0, 1, 2], [0, 1]]
    assert [[r.slot for r in some] for some in queues.take(None)] == [[0, 3]]
    assert queues.has_room(3)


def test_deliver_skips_callers_that_have_gone():
    steps, answers = [Step(i, Future(), []) for i in range(4)], [1, ValueError("x"), MORE, 4]
    steps[3].future.over = True
    assert deliver(steps, answers) == 2  # the last one was taken as well
    assert [s.future.result for s in steps] == [1, answers[1], None, None]
    push = Push(0, Future(), [], 70)
    assert deliver([push], ["y"]) == 70
