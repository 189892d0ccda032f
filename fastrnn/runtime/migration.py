"""Whether a model takes a snapshot, and how: the same model as it is, another one with the same states if the caller
asks for it (`migrate=True`)."""

from __future__ import annotations

import warnings

import numpy as np

from ..errors import FastRNNWarning, StateError
from ._parts import StreamParts
from .compiled import Compiled
from .kept import KeptState
from .layout import MOST_STEPS, StateLayout
from .snapshots import Snapshot

MOST_TOLD = 8  # differences in one message


class Fitting:
    """How a snapshot, in one part or several, becomes states of a model.

    migrate : whether it may be of another model with the same states
    found : what differs, for the warning
    """

    def __init__(self, parts: list[Snapshot], model: Compiled, migrate: bool):
        self.model, self.own, self.migrate = model, model.identity, migrate
        self.found: list[str] = []
        self.where = parts[0].where if parts else "snapshot"
        known: tuple[str, ...] = ()
        for taken in parts:
            if taken.of.models == known:  # as the part before
                continue
            known = taken.of.models
            if taken.named is not None:
                self._of_format_1(taken)
            elif not set(taken.of.models) & set(self.own.models):
                self._of_another(taken)

    def _of_format_1(self, taken: Snapshot) -> None:
        if not self.migrate:
            text = "written in format 1, which names files, not models: restore(..., migrate=True) takes it"
            raise StateError(f"{taken.where}: {text}, with the states of the same names")
        if taken.of.models[0] != self.model.former_fingerprint:
            self._note("it is of format 1, which does not say whether the weights are the same")

    def _of_another(self, taken: Snapshot) -> None:
        theirs, own = taken.of, self.own
        differ = _different_layers(theirs.layers, own.layers)
        if not self.migrate:
            names = f"{theirs.name!r:.80} (fingerprint {theirs.models[0]:.12})"
            text = f"it belongs to the model {names}, not to {own.name!r} (fingerprint {own.models[0]:.12})"
            hint = "load that model, or restore with migrate=True if the states mean the same"
            raise StateError(f"{taken.where}: {text}: {differ}; {hint}")
        self._note(differ)

    def _note(self, text: str) -> None:
        if text not in self.found:
            self.found.append(text)

    def fit(
        self, taken: Snapshot, what: str, parts: StreamParts, bound: dict[str, np.ndarray] | None
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """(last inputs without time, slab rows) of one part, for a stream or pool (`what`) with such parts."""
        taken = taken.in_order(parts.still)
        taken.check(what, parts.sizes, parts.still, parts.timetable is not None)
        self._check_bound(taken, bound)
        return taken.still, self._rows(taken, parts.layout)

    def _check_bound(self, taken: Snapshot, values: dict[str, np.ndarray] | None) -> None:
        """StateError if an input is bound to another value here: what follows would be of another sequence."""
        own = self.model._bound_names(values)
        places = [k for k, name in taken.bound.items() if own.get(k, name) != name]
        if places:
            text = f"input number {places[0]} was bound to another value (bind=)"
            if not self.migrate:
                raise StateError(f"{taken.where}: {text}: bind the same one, or restore with migrate=True")
            self._note(text)

    def _rows(self, taken: Snapshot, layout: StateLayout) -> np.ndarray:
        """The states as slab rows. StateError if they are not those of this layout."""
        n = len(taken.steps)
        if taken.named is not None:
            rows = np.empty((n, layout.size), np.float32)
            layout.load_rows(rows, self._renamed(taken, layout))
            return rows
        pairs = self._pairs(taken, layout.kept)
        rows = taken.rows
        if any(old.at != new.at for old, new in pairs) or rows.shape[1] != layout.size:
            rows = np.empty((n, layout.size), np.float32)
            for old, new in pairs:
                rows[:, new.at : new.at + new.floats] = taken.rows[:, old.at : old.at + old.floats]
        for _, new in pairs:
            if new.kind == "count" and n:
                counts = np.ascontiguousarray(rows[:, new.at : new.at + new.floats]).view(np.int64)
                if not (0 <= counts.min() and counts.max() <= MOST_STEPS):
                    raise StateError(f"{taken.where}: state {new.name}: it counts steps, got {counts.min()}..")
        return rows

    def _renamed(self, taken: Snapshot, layout: StateLayout) -> dict[str, np.ndarray]:
        """States of format 1 by their names here: the same ones, or the only ones of their shapes."""
        named = taken.named
        assert named is not None
        wanted = {s.name: (tuple(layout.row_dims(s)), np.dtype(s.dtype)) for s in layout.shown}
        if set(named) == set(wanted):
            return named
        forms = {name: (a.shape[1:], a.dtype) for name, a in named.items()}
        match = {new: [old for old in named if forms[old] == form] for new, form in wanted.items()}
        if (
            len(named) != len(wanted)
            or len(set(forms.values())) != len(forms)
            or any(len(m) != 1 for m in match.values())
        ):
            text = f"states are {sorted(wanted)}, got {sorted(named)}, of which the shapes don't tell which is which"
            raise StateError(f"{taken.where}: {text}: take the snapshot again from a model with these names")
        self._note(f"its states {sorted(named)} are taken as {sorted(wanted)}, by their shapes")
        return {new: named[old[0]] for new, old in match.items()}

    def _pairs(self, taken: Snapshot, own: tuple[KeptState, ...]) -> list[tuple[KeptState, KeptState]]:
        """(state of the snapshot, state here): by what they mean; in the order of the dataflow if that differs."""
        theirs = taken.states
        by_key = {s.key: s for s in theirs}
        pairs = [(by_key.pop(s.key), s) for s in own if s.key in by_key]
        done = {s.key for _, s in pairs}
        rest = [s for s in own if s.key not in done]
        left = [s for s in theirs if s.key in by_key]
        if rest and not self.found:  # the same model: a cell that is the only one of its weights is the same cell
            for state in [s for s in rest if s.own]:
                same = [s for s in left if s.own == state.own]
                if len(same) == 1 and sum(s.own == state.own for s in rest) == 1:
                    pairs.append((same[0], state))
                    rest.remove(state)
                    left.remove(same[0])
        if rest or left:
            if not self.migrate or len(rest) != len(left):
                raise StateError(f"{taken.where}: {_other_states(left, rest)}")
            if not self.found:
                self._note("its states are computed in another way")
            pairs += zip(left, rest, strict=True)
        for old, new in pairs:
            if old.form != new.form or old.floats != new.floats:
                raise StateError(f"{taken.where}: {_other_states([old], [new])}")
        return pairs

    def warn(self) -> None:
        """Say what differed, once the states are taken."""
        if self.found:
            text = f"{self.where}: {self.own.name} goes on from states of another model: {'; '.join(self.found)}"
            warnings.warn(text, FastRNNWarning, stacklevel=4)


def _different_layers(theirs: tuple, own: tuple) -> str:
    """Which layers differ, as text."""
    left = [name for _, name in theirs]
    other = []
    for name, meaning in own:
        if meaning in left:
            left.remove(meaning)
        else:
            other.append(name)
    where = [b[0] for a, b in zip(theirs, own, strict=False) if a[1] != b[1]]
    if not other and not left:
        places = f"the layers {_listed(where)} are in other places"
        return places if where else "its layers are the same, connected in another way or with other outputs"
    if len(theirs) != len(own):
        more = f"; {_listed(other)} not among them" if other else ""
        return f"it has {len(theirs)} layers with weights, not {len(own)}{more}"
    return f"other weights or settings in {_listed(other)}"


def _other_states(theirs: list[KeptState], own: list[KeptState]) -> str:
    return f"states that differ: it has {_listed(theirs) or 'none'}, this model {_listed(own) or 'none'} in their place"


def _listed(items: list) -> str:
    more = f" and {len(items) - MOST_TOLD} more" if len(items) > MOST_TOLD else ""
    return ", ".join(map(str, items[:MOST_TOLD])) + more
