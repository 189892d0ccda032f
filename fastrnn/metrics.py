"""Exports the counters of models, pools and batchers to Prometheus or OpenTelemetry.

import fastrnn.metrics
fastrnn.metrics.register(model, pool, batcher, names=["vad", "calls", "calls"])
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from .errors import ShapeError

__all__ = ["register"]

PREFIX = "fastrnn"
GAUGES = {"memory_bytes", "capacity", "open", "waiting"}  # the other numbers only grow


class HasStats(Protocol):
    """A model, a pool or a batcher."""

    def stats(self) -> dict[str, Any]:
        """What it has done so far."""


def register(*objects: HasStats, registry: Any = None, meter: Any = None, names: Sequence[str] | None = None) -> Any:
    """Export what `stats()` of these objects returns, read whenever the metrics are collected.

    Every number is a metric `fastrnn_KIND_NAME` with the label `name`, where KIND is model, pool or batcher. Times are
    in seconds. The objects are kept by weak references: one that is gone is no longer exported.

    Parameters
    ----------
    objects : Models, StreamPools, Batchers
    registry : prometheus_client.CollectorRegistry; None: the default one, unless meter is given
    meter : opentelemetry.metrics.Meter, for OpenTelemetry instead of Prometheus
        Histograms are exported as their count, sum and quantiles: observable histograms don't exist there.
    names : the label of each object; default: the model's name

    Returns
    -------
    the registry's collector of fastrnn, the same one at each call; None for OpenTelemetry

    Raises
    ------
    ImportError : prometheus_client is not installed: `pip install 'fastrnn[metrics]'`.
    ShapeError : an object has no `stats`, names are not one per object, or one is in use.
    """
    for item in objects:
        if not callable(getattr(item, "stats", None)):
            raise ShapeError(f"register takes models, pools and batchers, got {type(item).__name__}")
    if names is not None and len(names) != len(objects):
        raise ShapeError(f"names has {len(names)} labels for {len(objects)} objects")
    labels = [_name_of(item) for item in objects] if names is None else list(map(str, names))
    kinds = [(_kind_of(item), label) for item, label in zip(objects, labels, strict=True)]
    twice = next((pair for pair in kinds if kinds.count(pair) > 1), None)
    if twice is not None:
        raise ShapeError(f"two objects of the kind {twice[0]} have the name {twice[1]!r}: give each its own by names=")
    sources = [(_kind_of(item), label, weakref.ref(item)) for item, label in zip(objects, labels, strict=True)]
    if meter is not None:
        _observe(meter, sources)
        return None
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        raise ImportError("exporting to Prometheus needs prometheus_client: pip install 'fastrnn[metrics]'") from None

    registry = REGISTRY if registry is None else registry
    collector = _COLLECTORS.get(registry)
    if collector is None:
        collector = _COLLECTORS[registry] = _Collector([])
        registry.register(collector)
    collector.add(sources)
    return collector


def _kind_of(item) -> str:
    kinds = {"StreamPool": "pool", "PacedPool": "pool", "Batcher": "batcher"}
    return next((kinds[c.__name__] for c in type(item).__mro__ if c.__name__ in kinds), "model")


def _name_of(item) -> str:
    """The model's name."""
    pool = getattr(item, "pool", None)
    model = item if isinstance(getattr(item, "name", None), str) else getattr(pool or item, "model", item)
    return str(getattr(model, "name", "model"))


def _numbers(stats: dict, before: str = "") -> Iterator[tuple[str, Any]]:
    """(name, number or histogram) of all of a dict of `stats`, with the names of inner dicts before theirs."""
    for key, value in stats.items():
        if isinstance(value, dict) and "buckets" not in value:
            yield from _numbers(value, f"{before}{key}_")
        else:
            yield f"{before}{key}", value


def _gathered(sources: Iterable) -> dict[tuple[str, str], list[tuple[str, Any]]]:
    """(kind, name of a number) -> (label, value) of each object that has it."""
    found: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    for kind, label, reference in sources:
        item = reference()
        if item is not None and not getattr(item, "closed", False):
            for name, value in _numbers(item.stats()):
                found.setdefault((kind, name), []).append((label, value))
    return found


# Registry -> its collector: a second one would describe each metric again, which readers reject.
_COLLECTORS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class _Collector:
    """Makes Prometheus's metrics each time they are collected."""

    def __init__(self, sources: list):
        self._sources = sources

    def add(self, sources: list) -> None:
        """Export more objects. A name that is in use is a ShapeError, unless its object is gone."""
        used = {(kind, label) for kind, label, reference in self._sources if reference() is not None}
        twice = next((f"{kind} {label!r}" for kind, label, _ in sources if (kind, label) in used), None)
        if twice is not None:
            raise ShapeError(f"the {twice} is registered already: give each object its own name by names=")
        self._sources = [s for s in self._sources if s[2]() is not None] + sources

    def describe(self) -> list:
        """Nothing in advance: registering must not count."""
        return []

    def collect(self) -> Iterator:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for (kind, name), values in _gathered(self._sources).items():
            full, text = f"{PREFIX}_{kind}_{name}", f"{name} of {kind}.stats() of fastrnn"
            if isinstance(values[0][1], dict):
                histograms = HistogramMetricFamily(full, text, labels=["name"])
                for label, value in values:
                    buckets = [(f"{bound:g}", count) for bound, count in value["buckets"]]
                    histograms.add_metric([label], [*buckets, ("+Inf", value["count"])], value["sum"])
                yield histograms
                continue
            family = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
            metric = family(full, text, labels=["name"])
            for label, value in values:
                metric.add_metric([label], value)
            yield metric


def _observe(meter, sources: list) -> None:
    """Observable instruments for every number that the objects have now."""
    from opentelemetry.metrics import Observation

    def reader(key: tuple[str, str], part: str | None):
        def read(_options) -> list:
            values = _gathered(sources).get(key, [])
            seen = [(label, value if part is None else value[part]) for label, value in values]
            return [Observation(value, {"name": label}) for label, value in seen if value is not None]

        return read

    for key, values in _gathered(sources).items():
        kind, name = key
        for part in ("count", "sum", "p50", "p99") if isinstance(values[0][1], dict) else (None,):
            full = ".".join([PREFIX, kind, name, *([part] if part else [])])
            gauge = name in GAUGES or part in ("p50", "p99")
            make = meter.create_observable_gauge if gauge else meter.create_observable_counter
            make(full, callbacks=[reader(key, part)])
