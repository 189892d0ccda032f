"""A store in Redis: a hash of epoch, holder and bytes for each key; one Lua script compares and sets."""

from __future__ import annotations

from typing import Any

import redis.asyncio as client
from redis.exceptions import RedisError

from .base import Fenced, Held, StoreError, without_password

PREFIX = "fastrnn:"
SECONDS = 5.0  # that a command may take
CONNECTIONS = 16  # commands at once; more wait
# ARGV: what to do, epoch, holder, bytes, milliseconds to keep. Returns {1, epoch}, or {0, the epoch that is there}.
SCRIPT = """
local found = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')
local epoch = tonumber(ARGV[2])
if ARGV[1] == 'claim' then
    if epoch >= 0 and epoch ~= found then return {0, found} end
    epoch = found + 1
elseif found ~= 0 and (found ~= epoch or redis.call('HGET', KEYS[1], 'holder') ~= ARGV[3]) then
    return {0, found}
end
redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', epoch), 'holder', ARGV[3], 'data', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return {1, epoch}
"""


class RedisStore:
    """A store in Redis.

    Parameters
    ----------
    url : redis://, rediss:// or unix://
    keep_seconds : after which an entry that is not written is dropped

    Raises
    ------
    StoreError : the URL is none of Redis.
    """

    def __init__(self, url: str, keep_seconds: float):
        self.url = without_password(url)
        self.poll_seconds = 0.05
        self._keep = round(keep_seconds * 1000)
        try:
            pool = client.BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=SECONDS,
                socket_timeout=SECONDS,
                socket_connect_timeout=SECONDS,
            )
        except ValueError as error:
            raise StoreError(f"store {self.url}: {error}") from None
        self._redis = client.Redis(connection_pool=pool)
        self._script = self._redis.register_script(SCRIPT)

    async def read(self, key: str) -> Held | None:
        """The entry of a key."""
        try:
            epoch, holder, data = await self._redis.hmget(PREFIX + key, ["epoch", "holder", "data"])
        except (RedisError, OSError) as error:
            raise self._failed(error) from error
        if epoch is None:
            return None
        try:
            return Held(int(epoch), holder.decode("ascii"), bytes(data))
        except (ValueError, AttributeError, TypeError):
            raise StoreError(f"{PREFIX}{key} is not an entry of fastrnn") from None

    async def claim(self, key: str, after: int | None, holder: str, data: bytes) -> int:
        """Take a key over."""
        return await self._run(key, "claim", -1 if after is None else after, holder, data)

    async def write(self, key: str, epoch: int, holder: str, data: bytes) -> None:
        """Replace one's own entry."""
        await self._run(key, "write", epoch, holder, data)

    async def sweep(self, seconds: float) -> None:
        """Nothing: entries expire."""

    async def close(self) -> None:
        """End its connections."""
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _run(self, key: str, what: str, epoch: int, holder: str, data: bytes) -> int:
        try:
            done, found = await self._script(keys=[PREFIX + key], args=[what, epoch, holder, data, self._keep])
        except (RedisError, OSError) as error:
            raise self._failed(error) from error
        if not done:
            raise Fenced(key, int(found))
        return int(found)

    def _failed(self, error: Any) -> StoreError:
        return StoreError(f"store {self.url}: {type(error).__name__}: {error}")
