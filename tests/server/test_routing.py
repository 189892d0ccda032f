"""The order of requests of a server with several workers, without its processes."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")

from fastrnn.serving.server.hosted import Reply, Request
from fastrnn.serving.server.routing import Router

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
