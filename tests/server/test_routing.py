"""The order of requests of a server with several workers, without its processes."""

import asyncio
import contextlib
import gc
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")

from fastrnn.serving.server.engine import Engine
from fastrnn.serving.server.faults import Fault
from fastrnn.serving.server.hosted import Reply, Request
from fastrnn.serving.server.limits import Limits
from fastrnn.serving.server.options import Options
from fastrnn.serving.server.peers import Peers
from fastrnn.serving.server.routing import Router
from fastrnn.serving.server.sequence import Work

pytestmark = pytest.mark.any_isa


class Worker:
    """Both a model and the other workers of a router. `ran` has the ids of the requests, as they come."""

    index = 0

    def __init__(self):
        self.ran, self.checked = [], asyncio.Event()

    def owner(self, id):
        return id % 2

    async def check(self, *_):
        await self.checked.wait()
        return 1

    async def infer(self, *args):
        request = args[-1]
        ids = request.inputs.get("SEQUENCE_IDS", ())
        self.ran.append(request.id)
        return Reply("1", {"y": np.zeros(len(ids))}, {})


def test_nobody_overtakes_who_waits_for_a_check(run):
    """A request that comes in the moment in which the check of another one is over must not run before those that
    waited for it: it may be a later step of their sequence."""

    def single(name):
        return Request("m", "", name, {"sequence_id": 1}, {}, (), "")

    async def main():
        worker = Worker()
        router = Router(worker, worker)
        many = Request("m", "", "many", {}, {"SEQUENCE_IDS": np.array([1, 2])}, (), "")
        tasks = [asyncio.ensure_future(router.infer(many))]
        await asyncio.sleep(0)
        tasks.append(asyncio.ensure_future(router.infer(single("first"))))
        await asyncio.sleep(0)
        worker.checked.set()
        for k in range(20):  # one comes in every turn of the loop
            tasks.append(asyncio.ensure_future(router.infer(single(f"later {k}"))))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return worker.ran

    ran = run(main())
    assert ran == ["many", "many", "first", *(f"later {k}" for k in range(20))]


def test_a_request_without_a_task_waits_as_well(run):
    async def main():
        worker = SimpleNamespace(index=0, owner=lambda id: 0, post=lambda request, tell: "posted")
        router = Router(worker, worker)
        one = Request("m", "", "", {"sequence_id": 1}, {}, (), "")
        assert router.post(one, print) == "posted"

        async def wait():
            async with router.turn():
                pass

        async with router.turn():
            waits = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            assert router.post(one, print) is None
        assert router.post(one, print) is None, "the turn of another one has come, and it has not run yet"
        await waits
        assert router.post(one, print) == "posted"

    run(main())


def requests_that_are_kept():
    gc.collect()
    return sum(type(o) is Work for o in gc.get_objects())  # isinstance would ask each object for its __class__


def test_a_worker_keeps_nothing_of_what_it_answered(run, model, frames, tmp_path):
    """Steps that were taken before and wrong indexes are answered at once, before anything could wait for them."""

    def step(index):
        given = {"sequence_id": 1, "sequence_start": index == 0, "step_index": index}
        return Request("m", "", "", given, {"x": frames[None, index % 400]}, (), "")

    async def main():
        engines = [Engine({"m": {1: model}}, Options(), Limits()) for _ in range(2)]
        peers = [Peers(tmp_path, k, 2) for k in range(2)]
        for engine, its in zip(engines, peers, strict=True):
            await engine.start()
            await its.start(engine)
        try:
            await peers[0].met()
            for t in range(3):
                await peers[0].infer(1, step(t))
            before = requests_that_are_kept()
            for _ in range(50):
                again = await peers[0].infer(1, step(2))
                assert again.parameters["steps_done"] == 3
                with pytest.raises(Fault, match="expects step_index 3"):
                    await peers[0].infer(1, step(10**6))
                left = asyncio.ensure_future(peers[0].infer(1, step(2)))
                await asyncio.sleep(0)
                left.cancel()  # the client goes before its answer
                with contextlib.suppress(asyncio.CancelledError):
                    await left
            await peers[0].infer(1, step(3))
            return requests_that_are_kept() - before
        finally:
            for engine, its in zip(engines, peers, strict=True):
                await its.close()
                await engine.close()

    assert run(main()) <= 2
