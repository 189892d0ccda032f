"""stats() of models, pools and batchers, and their export to Prometheus and OpenTelemetry."""

import asyncio
import gc
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastrnn
from fastrnn import metrics
from fastrnn.aio import Batcher
from fastrnn.runtime._meter import Histogram

pytestmark = pytest.mark.any_isa


def gru(name="cell"):
    model = fastrnn.from_arrays("gru", W=np.ones((6, 1)), R=np.ones((6, 2)))
    model.name = name
    return model


class TestHistogram:
    @given(st.lists(st.integers(1, 1 << 40), min_size=1, max_size=200))
    def test_quantiles_and_sums(self, values):
        found = Histogram()
        for value in values:
            found.add(value)
        values.sort()
        shown = found.as_dict()
        assert shown["count"] == len(values)
        assert shown["sum"] == sum(values)
        for share, key in ((0.5, "p50"), (0.99, "p99")):
            assert shown[key] == pytest.approx(values[int(share * len(values))], rel=0.13, abs=0.5)
        for bound, count in shown["buckets"]:
            assert count == sum(v < bound for v in values)

    def test_nothing_yet(self):
        shown = Histogram().as_dict()
        assert (shown["count"], shown["p50"], shown["p99"]) == (0, None, None)
        assert all(count == 0 for _, count in shown["buckets"])


class TestStats:
    def test_a_pool(self):
        pool = gru().pool(8)
        slots = [pool.open() for _ in range(5)]
        for _ in range(33):
            pool.step(slots, np.zeros((5, 1), np.float32))
        pool.close(slots.pop())
        pool.step(slots, [[0.0]] * 4)  # the general path
        pool.step([], np.zeros((0, 1), np.float32))
        stats = pool.stats()
        assert {k: stats[k] for k in ("capacity", "open", "opened", "closed")} == {
            "capacity": 8,
            "open": 4,
            "opened": 5,
            "closed": 1,
        }
        assert (stats["step"]["calls"], stats["step"]["rows"]) == (35, 33 * 5 + 4)
        assert stats["step"]["seconds"]["count"] == 1  # every 64th call
        assert stats["step"]["batch_size"]["p50"] == pytest.approx(5, rel=0.13)
        assert json.loads(json.dumps(stats)) == stats

    def test_a_model_counts_runs_and_the_steps_of_its_streams(self):
        model = gru()
        assert model.stats()["run"]["calls"] == 0
        model(np.zeros((3, 7, 1), np.float32))
        stream = model.stream()
        stream.step(np.zeros(1, np.float32))
        stream.push(np.zeros((4, 1), np.float32))
        stats = model.stats()
        assert (stats["run"]["calls"], stats["run"]["rows"], stats["run"]["steps"]) == (1, 3, 21)
        assert stats["stream"]["steps"] == 5
        assert stats["memory_bytes"] > 0
        assert json.loads(json.dumps(stats)) == stats

    def test_a_batcher(self):
        pool = gru().pool(4)

        async def main():
            async with Batcher(pool, max_delay=0) as batcher:
                slot = await batcher.open()
                for _ in range(5):
                    await batcher.step(slot, np.zeros(1, np.float32))
                return batcher.stats()

        stats = asyncio.run(main())
        assert (stats["steps"], stats["waiting"], stats["timeouts"], stats["refused"]) == (5, 0, 0, 0)
        assert stats["tick_seconds"]["count"] == stats["ticks"] == 5
        assert json.loads(json.dumps(stats)) == stats

    def test_a_step_with_counters_allocates_nothing(self):
        """Objects are only made by stats()."""
        import tracemalloc

        stream, x, y = gru().stream(), np.zeros(1, np.float32), np.zeros(2, np.float32)
        stream.step(x, y)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(100):
                stream.step(x, y)
            assert tracemalloc.get_traced_memory()[0] - before < 500
        finally:
            tracemalloc.stop()


class TestPrometheus:
    def collected(self, *objects, **options):
        client = pytest.importorskip("prometheus_client")
        registry = client.CollectorRegistry()
        metrics.register(*objects, registry=registry, **options)
        return registry

    def test_what_is_exported(self):
        client = pytest.importorskip("prometheus_client")
        model = gru("vad")
        pool = model.pool(3)
        for _ in range(20):
            pool.step([pool.open()], np.zeros((1, 1), np.float32)) if len(pool) < 3 else None
        registry = self.collected(model, pool)
        assert registry.get_sample_value("fastrnn_pool_open", {"name": "vad"}) == 3
        assert registry.get_sample_value("fastrnn_pool_opened_total", {"name": "vad"}) == 3
        assert registry.get_sample_value("fastrnn_pool_step_calls_total", {"name": "vad"}) == 3
        assert registry.get_sample_value("fastrnn_model_stream_steps_total", {"name": "vad"}) == 3
        assert registry.get_sample_value("fastrnn_pool_step_seconds_count", {"name": "vad"}) == 1
        assert registry.get_sample_value("fastrnn_pool_step_seconds_bucket", {"name": "vad", "le": "+Inf"}) == 1
        text = client.exposition.generate_latest(registry).decode()
        assert 'fastrnn_pool_capacity{name="vad"} 3.0' in text

    def test_names_and_objects_that_are_gone(self):
        first, second = gru().pool(1), gru().pool(2)
        registry = self.collected(first, second, names=["a", "b"])
        assert registry.get_sample_value("fastrnn_pool_capacity", {"name": "b"}) == 2
        del second
        gc.collect()
        assert registry.get_sample_value("fastrnn_pool_capacity", {"name": "b"}) is None
        assert registry.get_sample_value("fastrnn_pool_capacity", {"name": "a"}) == 1

    def test_one_description_of_each_metric(self):
        """Two calls, and two pools of one model: each metric is described once, and no label is there twice."""
        client = pytest.importorskip("prometheus_client")
        model = gru("vad")
        first, second = model.pool(1), model.pool(2)
        registry = self.collected(first)
        with pytest.raises(fastrnn.ShapeError, match=r"the pool 'vad' is registered already: .* by names="):
            metrics.register(second, registry=registry)
        with pytest.raises(fastrnn.ShapeError, match=r"two objects of the kind pool have the name 'vad': .* by names="):
            metrics.register(first, second, registry=client.CollectorRegistry())
        metrics.register(second, registry=registry, names=["other"])
        text = client.exposition.generate_latest(registry).decode()
        assert text.count("# TYPE fastrnn_pool_capacity gauge") == 1
        assert registry.get_sample_value("fastrnn_pool_capacity", {"name": "other"}) == 2

    def test_wrong_arguments(self):
        with pytest.raises(fastrnn.ShapeError, match="takes models, pools and batchers, got int"):
            metrics.register(7)
        with pytest.raises(fastrnn.ShapeError, match="2 labels for 1 objects"):
            metrics.register(gru(), names=["a", "b"])


def test_without_prometheus_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"needs prometheus_client: pip install 'fastrnn\[metrics\]'"):
        metrics.register(gru("vad"))


def test_opentelemetry():
    sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    meter = sdk.MeterProvider(metric_readers=[reader]).get_meter("test")
    pool = gru("vad").pool(3)
    pool.open()
    assert metrics.register(pool, meter=meter) is None
    found = {
        metric.name: metric.data.data_points
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    (point,) = found["fastrnn.pool.open"]
    assert (point.value, dict(point.attributes)) == (1, {"name": "vad"})
    assert "fastrnn.pool.step_seconds.count" in found
