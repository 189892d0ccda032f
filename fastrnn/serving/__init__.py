"""Streams that callers step: one, or many in one slab.

stream.py     Stream: only state; PacedStream, if outputs don't come one per step
pool.py       StreamPool: many streams by slot; PacedPool
_stream.pyx   the fast path of a stream
_pool.pyx     slots, lock, steps and ragged chunks
_queues.pyx   requests of many callers for a pool, in fair queues
rounds.py     the calls of a pool that answer them
idle.py       ends streams that are not stepped
"""
