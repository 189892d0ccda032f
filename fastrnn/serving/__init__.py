"""Streams that callers step: one, or many in one slab.

stream.py           Stream: only state; PacedStream, if outputs don't come one per step
pool.py             StreamPool: many streams by slot; PacedPool
_stream.pyx         the fast path of a stream
_slots.pyx          slots, their memory, and the lock of a pool
_pool.pyx           its steps and ragged chunks
pool_snapshots.py   snapshots of all slots, in slices, and increments
_queues.pyx         requests of many callers for a pool, in fair queues
rounds.py           the calls of a pool that answer them
idle.py             ends streams that are not stepped
"""
