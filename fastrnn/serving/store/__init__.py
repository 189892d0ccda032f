"""Where the states of live sequences outlive their server: `open_store(url)`, the stores, and the record of a sequence.

`base` has the interface and its rules, `opening` the URLs, `files` and `redis` the two stores, `record` the bytes of a
sequence.
"""

from .base import Fenced, Held, Store, StoreError, key_of
from .opening import open_store
from .record import Record

__all__ = ["Fenced", "Held", "Record", "Store", "StoreError", "key_of", "open_store"]
