"""What callers step: one stream, or many in one slab.

stream.py     Stream: state and nothing else; PacedStream, if outputs don't come one per step
pool.py       StreamPool: many streams by slot; PacedPool
_stream.pyx   the fast path of a stream
_pool.pyx     slots, lock, steps and ragged chunks
"""
