"""What a server counts, as Prometheus and OpenMetrics read it: everything is read when it is asked for, nothing is
counted twice, and no step pays for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, make_asgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString
from starlette.routing import Route

from .engine import Engine
from .hosted import Hosted

REASONS = ("client", "idle", "restarted", "evicted", "moved", "shutdown")  # ends of sequences
OF_TICKS = {  # metric -> its histogram in a batcher's stats(), what it says
    "batch_size": ("batch_size", "Requests of sequences that one tick answered; a row of many counts as one."),
    "queue_wait_seconds": ("queue_wait_seconds", "Seconds that the first request of a tick waited for it."),
    "compute_seconds": ("tick_seconds", "Seconds that a tick took on the engine's thread."),
}
OF_STORE = {
    "snapshot_seconds": "Seconds that the store took to write the state of a sequence.",
    "snapshot_bytes": "Bytes of the states that were written to the store.",
}


def route(engine: Engine) -> Route:
    """GET /metrics, in the format that the Accept header names."""
    registry = registry_of(Collector(engine))
    return Route("/metrics", _App(engine, make_asgi_app(registry)), methods=["GET"])


def registry_of(collector: Any) -> CollectorRegistry:
    """A registry of the server's own: the default one is the program's."""
    registry = CollectorRegistry()
    registry.register(collector)
    return registry


def text_of(engine: Engine) -> str:
    """This worker's metrics, for the others."""
    return generate_latest(registry_of(Collector(engine))).decode()


class _App:
    """An ASGI application that is an object: Starlette takes a function for an endpoint of its own kind."""

    def __init__(self, engine: Engine, app: Any):
        self._engine, self._app = engine, app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        app, peers = self._app, self._engine.peers
        if peers is not None:  # a Fault if one is missing: a scrape that fails is a gap, a smaller sum is a lie
            app = make_asgi_app(registry_of(Sum([text_of(self._engine), *await peers.others("metrics")])))
        await app(scope, receive, send)


class Sum:
    """Makes the metrics of all workers together. texts : of each worker."""

    def __init__(self, texts: list[str]):
        self.texts = texts

    def describe(self) -> list[Metric]:
        """Nothing in advance."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Each sample is the sum of theirs."""
        metrics: dict[str, Metric] = {}
        sums: dict[tuple[str, str, tuple], float] = {}
        for text in self.texts:
            for metric in text_string_to_metric_families(text):
                metrics.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    key = metric.name, sample.name, tuple(sample.labels.items())
                    sums[key] = sums.get(key, 0.0) + sample.value
        for (name, sample_name, labels), value in sums.items():
            metrics[name].add_sample(sample_name, dict(labels), value)
        yield from metrics.values()


class Collector:
    """Makes the metrics of the models of an engine each time they are collected."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def describe(self) -> list[Metric]:
        """Nothing in advance."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        models = list(self.engine)
        yield _gauge("sequences", "Live sequences.", models, lambda h: len(h.sequences.live))
        yield _gauge("state_bytes", "Bytes of state of the streams that are open.", models, state_bytes)
        yield _counter("sequence_starts", "Sequences that were started.", models, lambda h: h.sequences.starts)
        yield _counter("steps", "Steps of sequences that were answered.", models, lambda h: h.sequences.steps)
        yield _by_reason(
            "sequence_ends",
            "Sequences that ended, by reason.",
            {h.name: dict.fromkeys(REASONS, 0) | dict(h.sequences.ends) for h in models},
        )
        yield _by_reason(
            "rejected",
            "Requests that were refused or failed, by reason; those of models that don't exist have no model.",
            self.engine.rejected,
        )
        ticks = {h.name: ticks_of(h) for h in models}
        for name, (key, text) in OF_TICKS.items():
            found = {model: stats[key] for model, stats in ticks.items()}
            yield _histogram(name, text, found, whole=key == "batch_size")
        failures = "Writes of states to the store that failed."
        yield _counter("snapshot_failures", failures, models, failed)
        for name, text in OF_STORE.items():
            yield _histogram(name, text, {h.name: written(h, name) for h in models}, whole=name == "snapshot_bytes")


def written(hosted: Hosted, name: str) -> dict[str, Any]:
    """A histogram of a model's writes to the store; an empty one without a store."""
    keeper = hosted.sequences.keeper
    return merged([] if keeper is None else [getattr(keeper, name).as_dict()])


def failed(hosted: Hosted) -> int:
    """A model's writes to the store that failed; 0 without a store."""
    keeper = hosted.sequences.keeper
    return 0 if keeper is None else keeper.snapshot_failures


def state_bytes(hosted: Hosted) -> int:
    """Bytes of the states of a model's open streams."""
    return sum(lane.state_bytes for lane in hosted.sequences.lanes.values())


def ticks_of(hosted: Hosted) -> dict[str, dict[str, Any]]:
    """The histograms of a model's ticks, all versions together."""
    found = [lane.stats() for lane in hosted.sequences.lanes.values()]
    return {key: merged([stats[key] for stats in found]) for key, _ in OF_TICKS.values()}


def merged(histograms: list[dict[str, Any]]) -> dict[str, Any]:
    """One histogram of several with the same bounds: count, sum, and buckets of [upper bound, values up to it]."""
    if not histograms:  # of a model that runs whole sequences alone
        return {"count": 0, "sum": 0.0, "buckets": []}
    buckets = [[bound, 0] for bound, _ in histograms[0]["buckets"]]
    for one in histograms:
        for i, (_, count) in enumerate(one["buckets"]):
            buckets[i][1] += count
    total = {key: sum(one[key] for one in histograms) for key in ("count", "sum")}
    return {**total, "buckets": buckets}


def _gauge(name: str, text: str, models: list[Hosted], read: Callable[[Hosted], int]) -> Metric:
    metric = GaugeMetricFamily(f"fastrnn_{name}", text, labels=["model"])
    for hosted in models:
        metric.add_metric([hosted.name], read(hosted))
    return metric


def _counter(name: str, text: str, models: list[Hosted], read: Callable[[Hosted], int]) -> Metric:
    metric = CounterMetricFamily(f"fastrnn_{name}", text, labels=["model"])
    for hosted in models:
        metric.add_metric([hosted.name], read(hosted))
    return metric


def _by_reason(name: str, text: str, counts: dict[str, dict[str, int]] | dict[str, Counter[str]]) -> Metric:
    """A counter with the label reason. counts: model -> reason -> number."""
    metric = CounterMetricFamily(f"fastrnn_{name}", text, labels=["model", "reason"])
    for model, reasons in counts.items():
        for reason, count in sorted(reasons.items()):
            metric.add_metric([model, reason], count)
    return metric


def _histogram(name: str, text: str, found: dict[str, dict[str, Any]], *, whole: bool) -> Metric:
    """A histogram. whole: of whole numbers, whose buckets count those below a bound; the format's count up to it."""
    metric = HistogramMetricFamily(f"fastrnn_{name}", text, labels=["model"])
    for model, histogram in found.items():
        bounds = [(bound - 1 if whole else bound, count) for bound, count in histogram["buckets"]]
        buckets = [(floatToGoString(f"{bound:.9g}"), count) for bound, count in bounds]
        metric.add_metric([model], [*buckets, ("+Inf", histogram["count"])], histogram["sum"])
    return metric
