"""`fastrnn.records.dataclass` against the standard library's: the same classes, made both ways."""

import copy
import dataclasses
import inspect
import pickle
from dataclasses import FrozenInstanceError, field

import pytest

from fastrnn import records

pytestmark = pytest.mark.any_isa


def _made(dataclass):
    @dataclass(frozen=True)
    class Point:
        """A point."""

        x: int
        y: "int" = 2
        tags: list = field(default_factory=list)
        label: str = field(default="", repr=False, compare=False)

        def __post_init__(self):
            object.__setattr__(self, "x", int(self.x))

        @property
        def far(self):
            return self.x + self.y

    @dataclass
    class Open:
        a: int
        b: tuple = ()

    @dataclass(eq=False)
    class Plain:
        a: int

        def __repr__(self):
            return "its own"

    return Point, Open, Plain


KINDS = [_made(dataclasses.dataclass), _made(records.dataclass)]


@pytest.mark.parametrize("make", [
    lambda p, o, n: repr(p("3")).split(".")[-1],
    lambda p, o, n: repr(o(1, (2,))).split(".")[-1],
    lambda p, o, n: repr(n(1)),
    lambda p, o, n: (p(1) == p(1), p(1) == p(2), p(1, label="a") == p(1, label="b"), p(1) == 1, p(1) != p(1)),
    lambda p, o, n: (o(1) == o(1), n(1) == n(1), o(1) == n(1)),
    lambda p, o, n: hash(p(1, 2, tags=())) == hash(p(1, 2, tags=(), label="x")),
    lambda p, o, n: (o.__hash__, isinstance(hash(n(1)), int)),
    lambda p, o, n: dataclasses.asdict(p(1)),
    lambda p, o, n: dataclasses.astuple(dataclasses.replace(p(1), y=5, label="z")),
    lambda p, o, n: [(f.name, f.type) for f in dataclasses.fields(p)],
    lambda p, o, n: (p.__match_args__, p.__doc__, dataclasses.is_dataclass(p(1))),
    lambda p, o, n: list(inspect.signature(p).parameters),
    lambda p, o, n: p(1).tags is not p(1).tags,
    lambda p, o, n: (copy.copy(p(1, 4)) == p(1, 4), copy.deepcopy(p(1, tags=[1])) == p(1, tags=[1]), p(1).far),
])  # fmt: skip
def test_same_as_the_standard_library(make):
    standard, own = (make(*kinds) for kinds in KINDS)
    assert own == standard


@pytest.mark.parametrize("call", [
    lambda p, o, n: p(),
    lambda p, o, n: p(1, 2, [], "", 5),
    lambda p, o, n: p(1, other=2),
    lambda p, o, n: setattr(p(1), "x", 2),
    lambda p, o, n: setattr(p(1), "new", 2),
    lambda p, o, n: delattr(p(1), "x"),
    lambda p, o, n: hash(o(1)),
    lambda p, o, n: hash(p(1)),  # its tags are a list
])  # fmt: skip
def test_same_errors(call):
    with pytest.raises((TypeError, FrozenInstanceError)) as standard:
        call(*KINDS[0])
    with pytest.raises(type(standard.value)) as own:
        call(*KINDS[1])
    last = str(standard.value).rsplit(".", 1)[-1]
    assert str(own.value).endswith(last)


@records.dataclass(frozen=True)
class Pickled:
    own: tuple = ()
    known: str = "b"


def test_pickles():
    assert pickle.loads(pickle.dumps(Pickled((1,)))) == Pickled((1,), "b")


def test_fields_that_may_change_do():
    item = KINDS[1][1](1)
    item.a = 7
    assert item == KINDS[1][1](7)
