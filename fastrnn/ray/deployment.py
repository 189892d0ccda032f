"""The ingress of Ray Serve: the Open Inference Protocol over HTTP and gRPC, in front of StreamClusters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ..errors import ShapeError
from ..serving.server.options import Options
from .cluster import StreamCluster

ONGOING = 1024  # requests of a replica at once: Ray's own default of 5 would leave nothing to put into one call
UNARY = (
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "RepositoryIndex",
    "ModelStatistics",
    "ModelInfer",
)


def ingress(
    clusters: dict[str, StreamCluster],
    *,
    idle_timeout: float = 60.0,
    max_sequences: int = 10_000,
    max_delay: float = 0.002,
    queue_size: int = 32,
    strict_sequences: bool = False,
    **deployment: Any,
) -> Any:
    """An application of Ray Serve that speaks the Open Inference Protocol, with sequences, for the streams of clusters.

    app = fastrnn.ray.ingress({"words": cluster}, num_replicas=2)
    serve.run(app)

    HTTP works at once. For gRPC, start Serve with
    `grpc_servicer_functions=["fastrnn.ray.add_GRPCInferenceServiceServicer_to_server"]`.

    Each replica makes handles of its own for the clusters. The shards own the streams, so any replica answers for any
    sequence, and replicas may come and go.

    Parameters
    ----------
    clusters : name of a model -> StreamCluster
    idle_timeout : seconds after the last step of a sequence until it is ended
    max_sequences : live sequences of a model. Replicas count once a second, so several of them may start a few more
    max_delay : seconds that a request waits for others, whose steps then cross Ray in one call
    queue_size : requests of one sequence that may wait in a replica behind the one that runs
    strict_sequences : START of a live sequence is refused, instead of a new beginning
    deployment : options of `serve.deployment`, such as num_replicas, autoscaling_config or ray_actor_options

    Raises
    ------
    ImportError : Ray Serve, or what `fastrnn serve` needs, is not installed. ShapeError : of an argument.
    """
    serve = _serve()
    if not isinstance(clusters, dict) or not clusters:
        raise ShapeError(f"ingress takes clusters by names of models, {{name: cluster}}, got {clusters!r:.60}")
    for name, cluster in clusters.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise ShapeError(f"the name of a model is a text without '/', got {name!r:.60}")
        if not isinstance(cluster, StreamCluster):
            raise ShapeError(f"ingress: {name} must be a StreamCluster, got {cluster!r:.60}")
    options = {
        "idle_timeout": idle_timeout,
        "max_sequences": max_sequences,
        "max_delay": max_delay,
        "queue_size": queue_size,
        "strict_sequences": strict_sequences,
    }
    Options(**options)  # type: ignore[arg-type]
    made = serve.deployment(serve.ingress(_App())(Replica))
    chosen = {"name": "fastrnn", "max_ongoing_requests": ONGOING, **deployment}
    return made.options(**chosen).bind({name: _recipe(c) for name, c in clusters.items()}, options)


def _serve() -> Any:
    try:
        from ray import serve

        from ..serving.server import grpc, http  # noqa: F401
    except ImportError as error:
        raise ImportError(f"fastrnn.ray.ingress needs {error.name}: pip install 'fastrnn[ray,serve]'") from error
    return serve


def _recipe(cluster: StreamCluster) -> dict[str, Any]:
    """What a replica makes its own handle from. The model is in the store."""
    return {"shards": cluster.shards, "store": cluster._store.url, "name": cluster.name} | {
        "actors": cluster._most,
        "replay_steps": cluster.replay_steps,
        "cpus": cluster.cpus,
    }


class _App:
    """The ASGI application of whichever replica runs it: Serve copies it before there is one."""

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        from ray import serve

        await serve.get_replica_context().servable_object.application(scope, receive, send)


class Aborted(Exception):
    """A call of gRPC ends here; its context has the code."""


class _Context:
    """What the server's methods ask of gRPC's context, over the one that Serve passes around."""

    def __init__(self, inner: Any):
        self._inner = inner
        self.peer, self.auth_context = inner.peer, inner.auth_context

    def set_trailing_metadata(self, metadata: tuple) -> None:
        self._inner.set_trailing_metadata(list(metadata))

    async def abort(self, code: Any, text: str) -> None:
        self._inner.set_code(code)
        self._inner.set_details(text)
        raise Aborted


class _Nothing:
    """The message of a call that was aborted."""

    def SerializeToString(self) -> bytes:
        return b""


class Replica:
    """One process of the ingress.

    Parameters
    ----------
    recipes : name of a model -> how to make the handle of its cluster
    options : of `Options`
    """

    async def __init__(self, recipes: dict[str, dict[str, Any]], options: dict[str, Any]):  # type: ignore[misc]
        from ..serving.server.engine import Engine
        from ..serving.server.grpc import methods_of
        from ..serving.server.http import Application
        from ..serving.server.limits import Limits
        from .actor import loaded
        from .hosted import ClusterHosted
        from .store import ObjectStore

        clusters = {}
        for name, recipe in recipes.items():
            model = loaded(ObjectStore(recipe["store"], recipe["name"]).model(), recipe["cpus"])
            clusters[name] = {1: StreamCluster(model, **recipe)}
        self.engine = Engine(clusters, Options(**options), Limits(), ClusterHosted)
        self.application = Application(self.engine)
        self._methods = methods_of(self.engine)
        await self.engine.start()

    async def check_health(self) -> None:
        """For Serve, which starts a replica anew that is not well."""
        if not self.engine.live():
            raise RuntimeError("the loop of the ingress does not answer")

    async def _unary(self, name: str, data: bytes, context: Any) -> Any:
        method = self._methods[name]
        try:
            return await method.unary_unary(method.request_deserializer(data), _Context(context))
        except Aborted:
            return _Nothing()

    async def ModelStreamInfer(self, requests: AsyncIterator[bytes], grpc_context: Any) -> AsyncIterator[Any]:
        method = self._methods["ModelStreamInfer"]
        parsed = (method.request_deserializer(data) async for data in requests)
        try:
            async for answer in method.stream_stream(parsed, _Context(grpc_context)):
                yield answer
        except Aborted:
            return


def _method(name: str) -> Any:
    """A method of `Replica` that Serve's proxies call."""

    async def method(self: Replica, request: bytes, grpc_context: Any) -> Any:
        return await self._unary(name, request, grpc_context)

    method.__name__, method.__qualname__ = name, f"Replica.{name}"
    return method


for _name in UNARY:
    setattr(Replica, _name, _method(_name))


def add_GRPCInferenceServiceServicer_to_server(servicer: Any, server: Any) -> None:
    """Tell Serve's gRPC proxies of the methods of `inference.GRPCInferenceService`: an item of
    `grpc_servicer_functions` of `serve.config.gRPCOptions`.

    Messages cross the proxy as bytes, and replicas parse them: so their classes need not be those of a module, and no
    two libraries with the same messages meet in a proxy.
    """
    import grpc

    from ..serving.server.messages import SERVICE

    async def stream(requests: Any, context: Any) -> None:
        """What a Ray runs that routes no streams; others put their own in its place."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this Ray passes no streams on: send ModelInfer")

    def unary(requests: Any, context: Any) -> None:
        raise NotImplementedError  # Serve puts its own in its place

    methods = {name: grpc.unary_unary_rpc_method_handler(unary) for name in UNARY}
    methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
