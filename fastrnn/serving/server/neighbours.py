"""The other servers on a store: whether they are alive, and how one asks another for a sequence.

Each server writes the time under `servers/<holder>`, and reads `wanted/<holder>`, to which others add what they want.
So servers need no addresses and no passwords of each other. A server that is asked gives the sequence up in order, and
no step is lost; one that doesn't answer is taken for dead, and its last checkpoint counts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ..store import Fenced, StoreError

if TYPE_CHECKING:
    from .vault import Vault

logger = logging.getLogger("fastrnn")

BEAT_SECONDS = 2.0  # between two writes of the time
DEAD_SECONDS = 10.0  # without one after which a server is dead; clocks of servers may differ by less
PATIENCE_SECONDS = 3.0  # after which a server that was asked, and lives by all signs, is dead
KNOWN_SECONDS = 0.5  # that an answer to `alive` holds
GATHER_SECONDS = 0.005  # in which wishes of one server are written together
MOST_WISHES = 10_000  # that are kept for a server
TRIES = 50  # to add to a list that others add to


class Neighbours:
    """The servers on a store, seen from one.

    Parameters
    ----------
    vault : Vault of this server
    give : called with (model, id) of a sequence that another server wants
    poll : seconds between two looks at what others want
    """

    def __init__(self, vault: Vault, give: Callable[[str, int | str], Awaitable[None]], poll: float):
        self.vault, self.give, self.poll = vault, give, poll
        self.patience = PATIENCE_SECONDS + 3 * poll
        self._alive: dict[str, tuple[float, bool]] = {}  # holder -> (when it was looked at, whether it is alive)
        self._wishes: dict[str, list] = {}  # that are not written yet
        self._tasks: set[asyncio.Task] = set()
        self._given = 0  # the last wish that was granted

    def start(self) -> None:
        """Show this server to the others, and look at what they want."""
        for loop in (self._beat(), self._listen()):
            self._spawn(loop)

    async def stop(self) -> None:
        """This server has given all that it had."""
        for task in list(self._tasks):
            task.cancel()
        with suppress(StoreError, asyncio.TimeoutError):  # the others find out
            await asyncio.wait_for(self._show(0.0), 1.0)

    async def alive(self, holder: str) -> bool:
        """Whether a server lives, as far as one can know. StoreError."""
        if holder == self.vault.holder:
            return True
        now = time.monotonic()
        when, alive = self._alive.get(holder, (-KNOWN_SECONDS, False))
        if now - when >= KNOWN_SECONDS:
            entry = await self.vault.read(f"servers/{holder}")
            alive = entry is not None and _lives(entry.data)
            self._alive[holder] = now, alive
        return alive

    def silent(self, holder: str) -> None:
        """A server did not answer: it is dead for `DEAD_SECONDS`."""
        self._alive[holder] = time.monotonic() + DEAD_SECONDS, False

    async def ask(self, holder: str, model: str, id: int | str) -> None:
        """Ask a server for a sequence."""
        self._wishes.setdefault(holder, []).append([time.time(), model, id])
        if len(self._wishes[holder]) == 1:
            await asyncio.sleep(GATHER_SECONDS)
            await self._add(holder, self._wishes.pop(holder))

    async def _add(self, holder: str, wishes: list) -> None:
        key = f"wanted/{holder}"
        for _ in range(TRIES):
            entry = await self.vault.read(key)
            epoch, old = (0, []) if entry is None else (entry.epoch, _list(entry.data))
            recent = [wish for wish in old if time.time() - wish[1] < DEAD_SECONDS]
            numbered = [[epoch + 1, *wish] for wish in wishes]
            try:
                await self.vault.claim(key, epoch, json.dumps([*recent, *numbered][-MOST_WISHES:]).encode())
                return
            except Fenced:
                await asyncio.sleep(0)
        logger.warning("another server could not be asked for %d sequences: too many ask it", len(wishes))

    # -- this server --
    async def _beat(self) -> None:
        while True:
            with suppress(StoreError):  # the vault says so
                await self._show(time.time())
            await asyncio.sleep(BEAT_SECONDS)

    async def _show(self, moment: float) -> None:
        data = json.dumps([moment, _machine(), os.getpid()]).encode()
        await self.vault.show(f"servers/{self.vault.holder}", data)

    async def _listen(self) -> None:
        while True:
            await asyncio.sleep(self.poll)
            try:
                entry = await self.vault.store.read(f"wanted/{self.vault.holder}")
            except Exception:  # of a store that may not be ours; a read that fails ten times a second is not counted
                await asyncio.sleep(1.0)
                continue
            if entry is None or entry.epoch == self._given:
                continue
            wishes, seen = _list(entry.data), self._given
            self._given = entry.epoch
            for number, _, model, id in wishes:
                if number > seen:
                    self._spawn(self.give(model, id))

    def _spawn(self, coroutine) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a sequence that another server wants could not be given", exc_info=task.exception())


def _lives(data: bytes) -> bool:
    """Whether the server that wrote this lives: the time is recent, and the process exists if it is on this machine."""
    try:
        moment, machine, pid = json.loads(data)
        if abs(time.time() - moment) >= DEAD_SECONDS:
            return False
        if machine == _machine() and machine:
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _machine() -> str:
    """Names this boot of this machine and its numbering of processes; "" if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _list(data: bytes) -> list:
    """Wishes; those of another form are dropped."""
    try:
        found = json.loads(data)
        return [
            [number, moment, model, id]
            for number, moment, model, id in found
            if type(number) is int and type(moment) is float and type(model) is str and type(id) in (int, str)
        ]
    except (ValueError, TypeError):
        return []
