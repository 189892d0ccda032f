"""A model whose sequences are in a cluster, as the protocols of the server take it."""

from __future__ import annotations

from typing import Any

from ..serving.server.faults import invalid
from ..serving.server.hosted import Hosted
from ..serving.server.options import Options
from .cluster import StreamCluster
from .gateway import ClusterSteps, Gateway


class ClusterHosted(Hosted):
    """A model whose sequences are in a cluster; whole sequences run here.

    Parameters
    ----------
    name : str
    versions : version -> StreamCluster; one
    options : Options
    """

    def __init__(self, name: str, versions: dict[int, StreamCluster], options: Options):
        self._clusters = versions
        super().__init__(name, {v: cluster.model for v, cluster in versions.items()}, options)

    def _sequences(self) -> Gateway:
        ((version, cluster),) = self._clusters.items()
        return Gateway(self.name, ClusterSteps(cluster, version), self.options)

    async def check(self, request: Any) -> int:
        """Only servers with several workers ask."""
        raise invalid("a cluster does not say beforehand whether it would run a request")
