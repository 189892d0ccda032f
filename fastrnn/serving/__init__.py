"""What callers step: one stream, or many in one slab.

stream.py         Stream: state and nothing else
stream_paced.py   the stream of a model whose outputs don't come one a step
pool.py           StreamPool: many streams by slot
pool_paced.py     that of models whose outputs don't come one a step
_pool.pyx         slots, lock, steps and ragged chunks
"""
