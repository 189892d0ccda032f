"""Streams and bulk scoring on many machines, with Ray: pip install 'fastrnn[ray]'.

words.py        errors, refusals, the shard of an id
host.py         an actor's side: shards, steps exactly once, epochs, leases
keeping.py      how it takes shards and writes checkpoints; shards.py: what it works with
idle.py         the streams of gateways that it ends
answers.py      the answers that it keeps, to give them again
checkpoints.py  checkpoints as bytes
caller.py       a gateway's side: step indexes, one call a tick and actor; calls.py: what it needs
table.py        its streams; log.py: its replay buffer
recovery.py     what it does after a loss; losses.py: what is gone for good

None of these imports Ray, reads a clock or waits by itself, so that a simulation runs them as they are. The rest does:

store.py        checkpoints, epochs and owners in a folder or behind a URL
engine.py       the streams of a host in a pool
actor.py        what Ray runs: a host, its threads and its clock
transport.py    calls to actors; messages.py: their arrays in pieces that Ray sends fast
placement.py    which shard belongs where
cluster.py      StreamCluster; inputs.py: what its steps take
each.py         steps that succeed or fail one by one
gateway.py      sequences of the Open Inference Protocol as streams of a cluster; hosted.py: their model
watch.py        how many there are, and which are idle
deployment.py   `ingress`: the protocol in Ray Serve
scoring.py      `score`: bulk scoring of datasets and files
"""

from importlib import import_module
from typing import TYPE_CHECKING

_LAZY = {
    "StepsLost": "words",
    "StreamCluster": "cluster",
    "add_GRPCInferenceServiceServicer_to_server": "deployment",
    "fence": "store",
    "ingress": "deployment",
    "score": "scoring",
}

if TYPE_CHECKING:
    from .cluster import StreamCluster
    from .deployment import add_GRPCInferenceServiceServicer_to_server, ingress
    from .scoring import score
    from .store import fence
    from .words import StepsLost
else:

    def __getattr__(name):
        if name not in _LAZY:
            raise AttributeError(f"module 'fastrnn.ray' has no attribute {name!r}")
        value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value


__all__ = [
    "StepsLost",
    "StreamCluster",
    "add_GRPCInferenceServiceServicer_to_server",
    "fence",
    "ingress",
    "score",
]
