"""What a caller finds gone after a loss: steps that were answered and that no checkpoint and no log has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .log import Log
    from .table import Table


class Losses:
    """The part of `Recovery` that compares what streams expect with what their caller was answered."""

    table: Table
    log: Log
    counts: dict[str, int]
    _losses: dict[int, range]

    def _returned(self, row: int, expected: int, since: int, ended: int) -> None:
        """A stream comes back from another caller, which took it at the step `ended` and stepped it up to `since`.

        Steps that were not taken by then follow those of the other caller.
        """
        gone = self._unknown(row, expected, ended) if since != self.table.since[row] else range(0)
        self.table.since[row] = since
        cursor = expected
        for entry in list(self.log.entries.values()):
            at = np.flatnonzero((entry.rows == row) & entry.alive)
            if not len(at):
                continue
            i = at[0]
            steps = int(entry.steps()[i])
            if entry.done[i]:
                self.log.drop(entry, at)
                continue
            unsent = not entry.ambiguous or 0 <= ended <= entry.first[i]
            if unsent and not entry.explicit:
                entry.first = entry.first.copy()
                entry.first[i] = max(entry.first[i], cursor)
            cursor = max(cursor, int(entry.first[i]) + steps)
        self.table.next[row] = cursor
        if gone:
            self._lose(row, gone, expected)

    def _unknown(self, row: int, expected: int, ended: int) -> range:
        """The answered steps of this caller that a stream lacks although another caller had it since, and so they
        can't be sent again. ended : the step at which that one took it; -1: the host does not know"""
        began = int(self.table.since[row])
        answered = self.log.taken(row, int(self.table.next[row]))
        if ended >= began:  # it may have been gone already when the other caller took it
            return range(ended, answered)
        if answered > began:  # the shard came back from before this caller had the stream
            return range(expected if expected < answered else began, answered)
        return range(0)

    def _went(self, row: int, expected: int, ended: int) -> None:
        """Another caller has a stream, and this one wants nothing of it now."""
        if gone := self._unknown(row, expected, ended):
            self._lose(row, gone, expected)
            self.table.since[row] = expected

    def _remove(self, row: int) -> None:
        """A stream is no longer there."""
        self.table.remove(row)
        self._losses.pop(row, None)

    def _settle_losses(self, rows: np.ndarray, expected: np.ndarray) -> None:
        """Tell what can't be sent again."""
        lost = self.log.after(expected)[rows] < self.table.next[rows] - expected[rows]
        for row in rows[lost].tolist():
            end = self.log.taken(row, int(self.table.next[row]))
            self._lose(row, range(int(expected[row]), end), int(expected[row]))

    def _lose(self, row: int, span: range, expected: int) -> None:
        """Steps of a row are gone. What has no answer yet is not taken, and the stream goes on at `expected`."""
        self.counts["lost_steps"] += len(span)
        before = self._losses.get(row, span)  # of which nobody has heard yet, or not for sure
        told = self._losses[row] = range(min(before.start, span.start), max(before.stop, span.stop))
        for entry in list(self.log.entries.values()):
            at = np.flatnonzero((entry.rows == row) & entry.alive)
            if not len(at):
                continue
            if not entry.done[at[0]]:
                entry.lost[row] = told
            self.log.drop(entry, at)
            if not entry.left:
                self.log.settle(entry)
        self.table.next[row] = expected
