"""What a caller finds gone after a loss: steps that were answered and that no checkpoint and no log has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .words import UNKNOWN_END, StepsLost

if TYPE_CHECKING:
    from .log import Log
    from .table import Table


class Losses:
    """The part of `Recovery` that compares what streams expect with what their caller was answered."""

    table: Table
    log: Log
    epochs: np.ndarray
    counts: dict[str, int]
    # row -> its steps that are gone. It takes no step until a call says the index, and so knows what was lost.
    _losses: dict[int, range]

    def _tell_losses(self, rows: np.ndarray) -> None:
        """StepsLost if steps of these rows are gone. Calls that were made before the caller heard of it must not be
        taken from the restored step as if nothing had happened."""
        gone = [row for row in rows.tolist() if row in self._losses] if self._losses else []
        if gone:
            raise StepsLost({self.table.ids[row]: self._losses[row] for row in gone})

    def _said(self, rows: np.ndarray) -> None:
        """A call says the next index of these rows, and so knows what was lost."""
        self.table.said[rows] = self.epochs[self.table.shard[rows]]
        for row in rows.tolist() if self._losses else ():
            self._losses.pop(row, None)

    def _doubtful(self, row: int, expected: int, epoch: int) -> None:
        """The shard of a stream was restored in this epoch, and the caller of the stream never sent again what it
        lacks: nobody knows which steps are gone."""
        if self.table.said[row] >= epoch or row in self._losses:
            return
        for entry in self.log.open.values():
            at = np.flatnonzero((entry.rows == row) & entry.alive & ~entry.done)
            if len(at):
                if entry.explicit and entry.first[at[0]] == expected:
                    self.table.said[row] = epoch
                    return
                break
        self._lose(row, range(expected, UNKNOWN_END), expected)

    def _untold(self, shards: np.ndarray) -> np.ndarray:
        """The slots of streams that are gone back, and no call has said their index since. shards : int64 [k]"""
        rows = np.array([row for row in self._losses if self.table.live[row]], np.int64)
        return self.table.slot[rows[np.isin(self.table.shard[rows], shards)]] if len(rows) else rows

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
        self.counts["lost_steps"] += len(span) if span.stop < UNKNOWN_END else 0
        before = self._losses.get(row, span)  # of which nobody has heard yet, or not for sure
        self.table.said[row] = 0
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
