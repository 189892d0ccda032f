"""Reading ahead and writing behind: threads beside the one that scores, with bounded queues between them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from . import parts
from .sources import Unit

AHEAD = (
    2  # batches that are read but not begun, that run besides the next one to be written, and that wait to be written
)


class Channel:
    """A bounded queue between two threads. Either side can end it."""

    def __init__(self, most: int):
        self._items: deque = deque()
        self._most, self._ended = most, False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, item: Any) -> bool:
        """Wait until there is room for an item; False if the channel has ended, and then the item is dropped."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._items) < self._most)
            if not self._ended:
                self._items.append(item)
                self._changed.notify_all()
            return not self._ended

    def end(self, error: BaseException | None = None, drop: bool = False) -> None:
        """No item comes any more. Those that wait can still be taken, unless `drop`; `error` is raised after them."""
        with self._changed:
            if drop:
                self._items.clear()
            if not self._ended:
                self._ended, self._error = True, error
            self._changed.notify_all()

    def __iter__(self) -> Channel:
        return self

    def __next__(self) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            raise StopIteration if self._error is None else self._error


def ahead(items: Iterable) -> Generator:
    """The items, of which a thread reads the next ones meanwhile."""
    ready = Channel(AHEAD)

    def read() -> None:
        try:
            for item in items:
                if not ready.put(item):
                    return
            ready.end()
        except BaseException as error:
            ready.end(error)

    reader = threading.Thread(target=read, name="fastrnn-read", daemon=True)
    reader.start()
    try:
        yield from ready
    finally:
        ready.end(drop=True)
        reader.join()


class Answers(NamedTuple):
    """The answers to a batch; last : of its part."""

    unit: Unit
    batch: pa.RecordBatch
    last: bool


class _Stopped(Exception):
    """The part that is being written will not be whole."""


class Behind:
    """Writes parts in a thread, in the order in which their answers are put.

    On an error in the `with` block, parts whose answers are all there are still written, and what there is of another
    one is removed.

    Parameters
    ----------
    folder, schema, options : where and how, as of `parts.Folder.write`
    check : called with each unit before its file gets its name; if it raises, there is no such file
    """

    def __init__(self, folder: parts.Folder, schema: pa.Schema, options: dict[str, Any], check: Callable[[Unit], None]):
        self._folder, self._schema, self._options, self._check = folder, schema, options, check
        self._waiting = Channel(AHEAD)
        self._error: BaseException | None = None
        self._writer = threading.Thread(target=self._write, name="fastrnn-write", daemon=True)

    def __enter__(self) -> Behind:
        self._writer.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._waiting.end(_Stopped() if error is not None else None)
        self._writer.join()
        if error is None and self._error is not None:
            raise self._error

    def put(self, answers: Answers) -> None:
        """Write these next; waits if many are not written yet. Raises what went wrong in the thread."""
        if not self._waiting.put(answers):
            assert self._error is not None  # nothing else ends the channel before `__exit__`
            raise self._error

    def _write(self) -> None:
        try:
            for first in self._waiting:
                self._folder.write(first.unit.name, self._schema, self._part(first), self._options)
        except _Stopped:
            pass
        except BaseException as error:
            self._error = error
            self._waiting.end(drop=True)

    def _part(self, first: Answers) -> Iterator[pa.RecordBatch]:
        """The answers of the part that begins with these."""
        yield first.batch
        if not first.last:
            for answers in self._waiting:
                yield answers.batch
                if answers.last:
                    break
        self._check(first.unit)
