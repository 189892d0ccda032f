"""Which store a URL names."""

from __future__ import annotations

from typing import Any

from ...errors import ShapeError
from .base import Store, StoreError, without_password


def open_store(url: Any, *, keep_seconds: float = 86_400.0) -> Store:
    """A store by its URL.

    Parameters
    ----------
    url : "redis://host:6379/0" or "rediss://..." (TLS); a folder, "memory://name", "s3://bucket/folder" or another
        URL of fsspec; or an object that is a store already, which is returned
    keep_seconds : after which Redis drops an entry that is not written

    Raises
    ------
    ShapeError : url is something else. StoreError : its library is missing, or the file system can't create a file
    only if it is absent, which taking over needs. Servers that are down don't raise here.
    """
    if not isinstance(url, str):
        if all(callable(getattr(url, name, None)) for name in ("read", "claim", "write", "sweep", "close")):
            return url
        raise ShapeError(f"store must be a URL or a folder, got {type(url).__name__}")
    if not url:
        raise ShapeError("store is an empty text: pass a folder, or a URL such as redis://localhost:6379/0")
    try:
        if url.startswith(("redis://", "rediss://", "unix://")):
            from .redis import RedisStore

            return RedisStore(url, keep_seconds)
        from .files import FileStore

        return FileStore(url)
    except ImportError as error:
        ours = error.name in ("fsspec", "redis")  # of others fsspec itself says what to install
        text = f"{error.name} is missing: pip install 'fastrnn[serve]'" if ours else str(error)
        raise StoreError(f"store {without_password(url)}: {text}") from None
