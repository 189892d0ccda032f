"""All models of a server, whatever protocol asks: the requests, what the server says of itself, its health."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ...errors import StreamError
from ..store import open_store
from .faults import Fault, brief, invalid
from .hosted import Hosted, Reply, Request
from .limits import Clients, Limits
from .options import Options
from .peers import Peers
from .routing import Router
from .vault import KEEP_SECONDS, Vault

if TYPE_CHECKING:
    from .watching import Watch

EXTENSIONS = ("sequence", "sequence(string_id)", "binary_tensor_data", "statistics", "model_configuration")
ELSEWHERE_SECONDS = 0.005  # between two looks whether another worker has room
BEAT_SECONDS = 1.0  # between two looks at the engine threads
DEAD_SECONDS = 10.0  # without an answer after which the server is not live
RECENT = 50  # refusals that are remembered


class Engine:
    """The models of a server.

    Parameters
    ----------
    models : name -> version -> Model
    options : Options
    limits : Limits
    host : makes a Hosted of (name, versions, options)

    Attributes
    ----------
    rejected : model -> reason -> requests that were refused or failed; the model is "" if there is none of that name
    recent : the last of them: (time, model, reason, text)
    watch : makes the access log and the spans; None: neither
    since : when it was made
    """

    def __init__(
        self,
        models: dict[str, dict[int, Any]],
        options: Options,
        limits: Limits,
        host: Callable[[str, dict[int, Any], Options], Hosted] = Hosted,
    ):
        self.options, self.limits = options, limits
        self.clients = Clients(limits)
        self._hosted = {name: host(name, versions, options) for name, versions in models.items()}
        self.rejected: dict[str, Counter[str]] = {name: Counter() for name in models}
        self.recent: deque[tuple[float, str, str, str]] = deque(maxlen=RECENT)
        self.watch: Watch | None = None
        self.since = time.time()
        self.peers: Peers | None = None  # of a server with several workers
        self._routers: dict[str, Router] = {}
        self.started = False
        self.connections: set[Any] = set()  # sessions of WebSockets
        self.vault: Vault | None = None
        if options.store is not None:
            keep = options.idle_timeout + KEEP_SECONDS
            self.vault = Vault(open_store(options.store, keep_seconds=keep), keep)
        self._beat = time.monotonic()
        self._heart: asyncio.Task | None = None

    # -- life --
    async def start(self) -> None:
        """Ready for requests, on this event loop. StreamError: it was started before."""
        if self._heart is not None:
            raise StreamError("this server was started already: make another one")
        self._heart = asyncio.get_running_loop().create_task(self._look_after())
        if self.vault is not None:
            self.vault.start(self._give)
            for hosted in self._hosted.values():
                hosted.sequences.keep(self.vault)
        self.started = True

    async def drain(self) -> None:
        """Start no sequence, finish what waits, and give all sequences to the store."""
        for session in self.connections:
            session.queue()
        await asyncio.gather(*(hosted.sequences.drain() for hosted in self._hosted.values()))
        keepers = [hosted.sequences.keeper for hosted in self._hosted.values()]
        await asyncio.gather(*(keeper.give_up_all() for keeper in keepers if keeper is not None))

    async def close(self) -> None:
        """End the engine threads."""
        self.started = False
        if self._heart is not None:
            self._heart.cancel()
        for hosted in self._hosted.values():
            await hosted.close()
        if self.vault is not None:
            await self.vault.close()

    async def _look_after(self) -> None:
        """The heartbeat: each engine thread answers between its ticks."""
        while True:
            for hosted in self._hosted.values():
                for lane in hosted.sequences.lanes.values():
                    await lane.call(int)
            self._beat = time.monotonic()
            await asyncio.sleep(BEAT_SECONDS)

    def live(self) -> bool:
        """Whether the engine threads still answer."""
        return self.started and time.monotonic() - self._beat < DEAD_SECONDS

    def troubles(self) -> str:
        """What is wrong although the server is ready; "" if nothing."""
        return "" if self.vault is None else self.vault.health()

    def ready(self) -> bool:
        """Whether sequences may start."""
        if self.peers is not None and not self.peers.ready():
            return False
        return self.live() and not any(h.sequences.draining for h in self._hosted.values())

    # -- requests --
    def hosted(self, name: str) -> Hosted:
        """A model by its name. Fault NOT_FOUND: there is none."""
        found = self._hosted.get(name)
        if found is None:
            have = ", ".join(self._hosted)
            raise Fault("NOT_FOUND", "model", f"there is no model {brief(name)}: this server has {have}")
        return found

    @property
    def unwatched(self) -> bool:
        """Whether nothing is done for each single message of a connection: none is logged, traced or paced."""
        return self.watch is None and self.limits.client_rate is None

    async def infer(self, request: Request) -> Reply:
        """Run a request. Fault: it is refused, or failed."""
        hosted = self._runs(request.model)
        return await (hosted.infer(request) if self.watch is None else self.watch.infer(hosted, request))

    def post(self, request: Request, tell: Callable[[Reply | Fault], None]) -> Callable[[], None] | None:
        """`infer` without a task, as `Hosted.post`; only if `unwatched`."""
        return self._runs(request.model).post(request, tell)

    def _runs(self, name: str) -> Hosted | Router:
        """What runs the requests for a model."""
        hosted = self.hosted(name)
        if self.peers is None:
            return hosted
        if name not in self._routers:
            self._routers[name] = Router(hosted, self.peers)
        return self._routers[name]

    def mine(self, id: Any) -> bool:
        """Whether a sequence belongs to this worker, or there is no other."""
        return self.peers is None or type(id) not in (int, str) or self.peers.mine(id)

    def has_room(self, request: Request) -> bool:
        """Whether the sequence of a request may have one more."""
        hosted, id = self._hosted.get(request.model), request.parameters.get("sequence_id")
        if self.peers is not None and not self.mine(id):
            return self.peers.waiting[request.model, id] < self.options.queue_size
        return hosted is None or type(id) not in (int, str) or hosted.sequences.has_room(id)

    async def room(self, request: Request) -> None:
        """Wait until the sequence of a request may have one more."""
        hosted, id = self._hosted.get(request.model), request.parameters.get("sequence_id")
        while not self.mine(id) and not self.has_room(request):
            await asyncio.sleep(ELSEWHERE_SECONDS)
        if hosted is not None and type(id) in (int, str):
            await hosted.sequences.room(id)

    async def move(self, model: str, id: int | str | None) -> dict[str, Any]:
        """Give a sequence to the store, from which another server goes on with it. Fault: it is not live here; or there
        is no store, or it fails."""
        keeper = self.hosted(model).sequences.keeper
        if keeper is None:
            raise Fault("FAILED_PRECONDITION", "no_store", "this server has no store: start it with --store URL")
        if self.peers is not None and id is not None and not self.peers.mine(id):
            return await self.peers.call(self.peers.owner(id), "move", model, id)
        if id is None:
            raise invalid("the id of a sequence is neither 0 nor empty")
        steps, epoch = await keeper.move(id)
        return {"steps_done": steps, "epoch": epoch}

    async def _give(self, model: str, id: int | str) -> None:
        """Another server wants a sequence."""
        hosted = self._hosted.get(model)
        if hosted is not None and hosted.sequences.keeper is not None:
            await hosted.sequences.keeper.give(id)

    def refused(self, fault: Fault, model: str = "") -> None:
        """Count a request that was refused or failed; protocols call it once for each. model: the name in it."""
        if self.watch is not None:
            self.watch.refused(fault)
        if fault.code == "CANCELLED":  # the client has gone
            return
        name = model if model in self._hosted else ""  # clients don't make labels
        self.rejected.setdefault(name, Counter())[fault.reason] += 1
        self.recent.append((time.time(), name, fault.reason, str(fault)))

    # -- description --
    def metadata(self) -> dict[str, Any]:
        """What ServerMetadata answers."""
        return {
            "name": "fastrnn",
            "version": _version(),
            "extensions": list(EXTENSIONS),
        }

    def index(self) -> list[dict[str, str]]:
        """What RepositoryIndex answers."""
        return [
            {"name": name, "version": str(v), "state": "READY", "reason": ""}
            for name, hosted in self._hosted.items()
            for v in sorted(hosted.models)
        ]

    def statistics(self, name: str, text: str) -> list[dict[str, Any]]:
        """What ModelStatistics answers: of one model, or of all for ""."""
        chosen = [self.hosted(name)] if name else list(self._hosted.values())
        found = []
        for hosted in chosen:
            versions = [hosted.version(text)] if text else sorted(hosted.models)
            found += [_statistics(hosted, v) for v in versions]
        return found

    async def all_statistics(self, name: str, text: str) -> list[dict[str, Any]]:
        """`statistics` of all workers together."""
        found = self.statistics(name, text)
        for other in [] if self.peers is None else await self.peers.others("statistics", name, text):
            found = [_summed(a, b) for a, b in zip(found, other, strict=True)]
        return found

    def __iter__(self):
        """The models."""
        return iter(self._hosted.values())


def _version() -> str:
    try:
        return version("fastrnn")
    except PackageNotFoundError:  # a source folder that is not installed
        return "unknown"


def _statistics(hosted: Hosted, version: int) -> dict[str, Any]:
    whole = hosted.whole[version]
    lane = hosted.sequences.lanes.get(version)
    ticks, steps, times = (0, 0, {}) if lane is None else _ticks(lane.stats())
    return {
        "name": hosted.name,
        "version": str(version),
        "inference_count": steps + whole.requests,
        "execution_count": ticks + whole.runs,
        "inference_stats": times,
    }


def _summed(a: Any, b: Any) -> Any:
    """The numbers of two statistics added up."""
    if isinstance(a, dict):
        return {key: _summed(value, b.get(key)) for key, value in a.items()}
    return a + b if isinstance(a, int) and isinstance(b, int) else a


def _ticks(stats: dict[str, Any]) -> tuple[int, int, dict[str, Any]]:
    """(ticks, steps, Triton's durations) of a batcher."""
    names = {"compute_infer": "tick_seconds", "queue": "queue_wait_seconds"}
    durations = {
        name: {"count": stats[key]["count"], "ns": round(stats[key]["sum"] * 1e9)} for name, key in names.items()
    }
    durations["success"] = {
        "count": stats["ticks"],
        "ns": sum(d["ns"] for d in durations.values()),
    }
    return stats["ticks"], stats["steps"], durations
