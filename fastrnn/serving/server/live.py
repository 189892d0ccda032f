"""The live page at /, and GET /live, the numbers that it shows. Both are read when they are asked for.

The page is static files of this package: no build step, nothing from elsewhere. Its policy lets it load and reach this
server alone, and texts of clients are never HTML.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .engine import Engine
from .hosted import Hosted
from .metrics import OF_TICKS, merged, state_bytes, ticks_of
from .sequence import shown

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
PAGES = ("index.html", "page.css", "page.js", "plots.js", "talk.js", "sound.js", "worklet.js")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-cache",
}
MOST_EVENTS = 30  # that an answer has
EXPECTED_SECONDS = 0.05  # of measuring that a profile may take


def routes(engine: Engine, expected: Expected) -> list[Route]:
    """The page, its files and its numbers."""

    async def numbers(request: Request) -> Response:
        expected.begin()
        told = snapshot(engine, expected)
        if engine.peers is not None:  # a Fault if one is missing, as for /metrics
            told = together([told, *await engine.peers.others("live")])
        return JSONResponse(told, headers={"cache-control": "no-store"})

    found = [Route("/live", numbers, methods=["GET"])]
    for name in PAGES:
        data = files("fastrnn.serving.server").joinpath("page", name).read_bytes()
        path = "/" if name == "index.html" else f"/page/{name}"
        found.append(Route(path, _static(data, KINDS[name.rpartition(".")[2]]), methods=["GET"]))
    return found


def _static(data: bytes, kind: str) -> Any:
    async def answer(request: Request) -> Response:
        return Response(data, media_type=kind, headers=HEADERS)

    return answer


class Expected:
    """What a step of each model should cost here, by the performance model; found out when the page is first opened.

    Parameters
    ----------
    engine : Engine
    profile : fastrnn.profile, or None

    Attributes
    ----------
    found : name of a model -> ([(batch, seconds of a call)], why there are none)
    """

    def __init__(self, engine: Engine, profile: Callable[..., Any] | None):
        self._engine, self._profile = engine, profile
        self.found: dict[str, tuple[list[tuple[int, float]], str]] = {}
        self._task: asyncio.Task | None = None

    def begin(self) -> None:
        """Start, once."""
        if self._task is None and self._profile is not None:
            self._task = asyncio.get_running_loop().create_task(self._find())

    async def _find(self) -> None:
        for hosted in self._engine:
            self.found[hosted.name] = await asyncio.to_thread(self._costs, hosted.models[hosted.latest])

    def _costs(self, model: Any) -> tuple[list[tuple[int, float]], str]:
        assert self._profile is not None
        if not model.streamable:
            return [], "it does not run step by step"
        try:
            growth = self._profile(model, seconds=EXPECTED_SECONDS).by_batch
        except Exception as error:  # the page says why, and goes on
            return [], str(error) or type(error).__name__
        return [(g.batch, g.predicted_ns / 1e9) for g in growth], ""

    def of(self, name: str) -> dict[str, Any]:
        """What the page is told of a model."""
        waiting = "not asked for" if self._profile is None else "being worked out"
        calls, why = self.found.get(name, ([], waiting))
        return {"calls": calls, "why": why}


def snapshot(engine: Engine, expected: Expected) -> dict[str, Any]:
    """All numbers of now. Those that only grow are since the server's start: the reader takes differences."""
    told = engine.metadata()
    return {
        "time": time.time(),
        "started": engine.since,
        "version": told["version"],
        "live": engine.live(),
        "ready": engine.ready(),
        "models": [_model(engine, hosted, expected) for hosted in engine],
        "events": _events(engine),
    }


def together(workers: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of all workers of a server as one: those of the first, with what they count added up."""
    told = dict(workers[0])
    told["started"] = min(one["started"] for one in workers)
    told["live"], told["ready"] = (all(one[key] for one in workers) for key in ("live", "ready"))
    told["models"] = [_added(list(same)) for same in zip(*(one["models"] for one in workers), strict=True)]
    events = [event for one in workers for event in one["events"]]
    told["events"] = sorted(events, key=lambda event: -event["time"])[:MOST_EVENTS]
    return told


def _added(same: list[dict[str, Any]]) -> dict[str, Any]:
    """A model's numbers of several workers."""
    found = dict(same[0])
    for key in ("sequences", "max_sequences", "starts", "steps", "waiting", "state_bytes"):
        found[key] = sum(one[key] for one in same)
    for key in ("ends", "rejected"):
        found[key] = dict(sum((Counter(one[key]) for one in same), Counter()))
    for key in OF_TICKS:
        found[key] = merged([one[key] for one in same])
    calls = [one["calls"] for one in same]
    found["calls"] = {key: sum(one[key] for one in calls) for key in ("calls", "steps")}
    found["calls"]["seconds"] = merged([one["seconds"] for one in calls])
    return found


def _model(engine: Engine, hosted: Hosted, expected: Expected) -> dict[str, Any]:
    sequences = hosted.sequences
    ticks = ticks_of(hosted)
    return {
        "name": hosted.name,
        "versions": sorted(hosted.models),
        "sequences": len(sequences.live),
        "max_sequences": hosted.options.max_sequences,
        "starts": sequences.starts,
        "steps": sequences.steps,
        "waiting": sum(len(lane.batcher) for lane in sequences.lanes.values()),
        "state_bytes": state_bytes(hosted),
        "ends": dict(sequences.ends),
        "rejected": dict(engine.rejected.get(hosted.name, {})),
        **{name: ticks[key] for name, (key, _) in OF_TICKS.items()},
        "calls": _calls(hosted),
        "expected": expected.of(hosted.name),
        "stream": _stream(hosted),
    }


def _calls(hosted: Hosted) -> dict[str, Any]:
    """What calls of the engine cost: all calls and steps so far, and the seconds of those that were timed."""
    told = [model.stats()["stream"] for model in hosted.models.values()]
    found: dict[str, Any] = {key: sum(one[key] for one in told) for key in ("calls", "steps")}
    return {**found, "seconds": merged([one["seconds"] for one in told])}


def _stream(hosted: Hosted) -> dict[str, Any]:
    """What a WebSocket of the latest version takes, or why it takes nothing."""
    lane = hosted.sequences.lanes.get(hosted.latest)
    if lane is None:
        streams = hosted.models[hosted.latest].streamable
        why = "the size of a step is open: load the model with it, as by --size size=512"
        return {"why": why if streams else "it does not run step by step"}
    if len(lane.inputs) != 1 or lane.inputs[0].dtype != "float32" or len(lane.inputs[0].features) != 1:
        return {"why": "it takes more than one row of float32 numbers a step"}
    return {
        "features": int(lane.inputs[0].features[0]),
        "outputs": [[a.name, [d if isinstance(d, int) else -1 for d in a.features]] for a in lane.outputs],
    }


def _events(engine: Engine) -> list[dict[str, Any]]:
    """The newest refusals, and ends that clients did not ask for; newest first."""
    found = [(at, model, "refused", reason, text) for at, model, reason, text in engine.recent]
    for hosted in engine:
        for at, id, reason, text in hosted.sequences.ended.recent:
            found.append((at, hosted.name, "ended", reason, f"sequence {shown(id)} {text}"))
    found.sort(key=lambda event: -event[0])
    names = ("time", "model", "kind", "reason", "text")
    return [dict(zip(names, event, strict=True)) for event in found[:MOST_EVENTS]]
