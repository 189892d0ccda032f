"""Sequences that outlive their server: bits, steps and last answers come back, and nothing wrong is answered silently.
Bits are a lone stream's."""

import asyncio
import queue
import subprocess
import time

import numpy as np
import pytest

pytest.importorskip("fsspec", reason="no fsspec: pip install 'fastrnn[serve]'")
pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
from store_nodes import Node, first, refused

import fastrnn
from fastrnn.serving.server.faults import Fault
from fastrnn.serving.server.sequence import Call
from fastrnn.serving.store import key_of

pytestmark = pytest.mark.any_isa


def test_the_next_server_goes_on_after_an_orderly_end(run, model, frames, alone, url):
    async def main():
        async with Node(model, url) as one:
            for id in (42, "42", "café/../x"):
                for t in range(7):
                    await one.step(id, frames[t], start=t == 0)
        async with Node(model, url) as two:
            for id in (42, "42", "café/../x"):
                answer = await two.step(id, frames[7])
                assert (answer.first, answer.done) == ((7,), (8,))
                assert np.array_equal(first(answer), alone[7])
            assert np.array_equal(await two.y(42, frames[8:40]), alone[8:40])
            assert two.vault.restored == 3

    run(main())


def test_an_answer_is_given_again_after_a_restart(run, model, frames, alone, url):
    async def main():
        async with Node(model, url) as one:
            await one.step(1, frames[:4], start=True, index=0)
            got = await one.step(1, frames[4:9], index=4)
        async with Node(model, url) as two:
            again = await two.step(1, frames[4:9], index=4)
            assert (again.first, again.done) == ((4,), (9,))
            assert np.array_equal(first(again), first(got))
            assert np.array_equal(first(again), alone[4:9])
            assert np.array_equal(await two.y(1, frames[9], index=9), alone[9])

    run(main())


def test_after_a_kill_the_last_checkpoint_counts_and_the_client_is_told(run, model, frames, alone, url):
    async def main():
        one = Node(model, url)
        async with one:
            for t in range(5):
                await one.step(1, frames[t], start=t == 0, index=t)
            await one.written(1, 5)
            one.s.keeper._loop_task.cancel()
            for t in range(5, 8):
                await one.step(1, frames[t], index=t)  # acknowledged, and never written
            await one.kill()
        async with Node(model, url, patience=0.1) as two:
            await refused(two, 1, frames[8], "expects step_index 5, got 8", "FAILED_PRECONDITION", 409, index=8)
            for t in range(4, 60):  # it replays, from the last answer that was written
                assert np.array_equal(await two.y(1, frames[t], index=t), alone[t])

    run(main())


def test_a_client_without_step_index_is_not_answered_from_an_old_state(run, model, frames, alone, url):
    async def main():
        one = Node(model, url)
        async with one:
            await one.step(1, frames[:6], start=True)
            await one.written(1, 6)
            await one.kill()
        async with Node(model, url, patience=0.1) as two:
            text = "goes on from a checkpoint after 6 steps.*send step_index from 6 on"
            await refused(two, 1, frames[6], text, "FAILED_PRECONDITION", 409)
            assert np.array_equal(await two.y(1, frames[6], index=6), alone[6])
            assert np.array_equal(await two.y(1, frames[7]), alone[7])  # it has shown that it knows
            assert np.array_equal(await two.y(1, frames[0], start=True), alone[0])

    run(main())


def test_killed_before_the_first_checkpoint(run, model, frames, alone, url):
    async def main():
        one = Node(model, url, checkpoint_seconds=1000.0)
        async with one:
            await one.step(1, frames[:6], start=True, index=0)
            await one.kill()
        async with Node(model, url, patience=0.1) as two:
            await refused(two, 1, frames[6], "expects step_index 0, got 6", "FAILED_PRECONDITION", 409, index=6)
            assert np.array_equal(await two.y(1, frames[:6], index=0), alone[:6])

    run(main())


def test_an_older_generation_never_comes_back(run, model, frames, alone, url):
    """START takes the record over before it is answered, so a kill right after it can't revive the sequence before."""

    async def main():
        async with Node(model, url) as zero:
            await zero.step(1, frames[:50], start=True)
        one = Node(model, url, checkpoint_seconds=1000.0)
        async with one:
            assert np.array_equal(await one.y(1, frames[0], start=True), alone[0])
            await one.kill()
        async with Node(model, url, patience=0.1) as two:
            await refused(two, 1, frames[1], "after 0 steps", "FAILED_PRECONDITION", 409)
            assert np.array_equal(await two.y(1, frames[:3], index=0), alone[:3])

    run(main())


def test_move_there_and_back(run, model, frames, alone, url):
    async def main():
        async with Node(model, url) as one, Node(model, url) as two:
            await one.step(5, frames[:10], start=True)
            assert await one.engine.move("m", 5) == {"steps_done": 10, "epoch": 1}
            fault = await refused(one, 5, frames[10], "was moved", "NOT_FOUND", 404)
            assert "must specify the START flag" in str(fault)
            assert np.array_equal(await two.y(5, frames[10:20]), alone[10:20])
            await refused(one, 5, frames[20], "was moved", "NOT_FOUND", 404)
            assert await two.engine.move("m", 5) == {"steps_done": 20, "epoch": 2}
            assert np.array_equal(await one.y(5, frames[20:30]), alone[20:30])
            await refused(two, 5, frames[30], "was moved", "NOT_FOUND", 404)
            assert one.s.ends == two.s.ends == {"moved": 1}
            with pytest.raises(Fault, match="must specify the START flag"):
                await two.engine.move("m", 5)
            with pytest.raises(Fault, match="neither 0 nor empty"):
                await two.engine.move("m", None)

    run(main())


def test_requests_that_wait_when_a_sequence_moves_are_refused_or_run(run, model, frames, alone, folder):
    async def main():
        async with Node(model, folder) as one, Node(model, folder) as two:
            await one.step(5, frames[0], start=True)
            calls = [asyncio.ensure_future(one.step(5, frames[t])) for t in range(1, 20)]
            await asyncio.sleep(0)
            moved = await one.engine.move("m", 5)
            results = await asyncio.gather(*calls, return_exceptions=True)
            ran = [r for r in results if not isinstance(r, Fault)]
            assert len(ran) + 1 == moved["steps_done"]
            assert all(r.code == "NOT_FOUND" for r in results[len(ran) :])
            for t, answer in enumerate(ran, 1):
                assert np.array_equal(first(answer), alone[t])
            at = moved["steps_done"]
            assert np.array_equal(await two.y(5, frames[at:60]), alone[at:60])

    run(main())


def test_without_a_store_nothing_moves(run, model, frames):
    async def main():
        async with Node(model, None) as one:
            await one.step(5, frames[0], start=True)
            with pytest.raises(Fault, match="no store") as caught:
                await one.engine.move("m", 5)
            assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "no_store")

    run(main())


def test_a_fenced_server_ends_its_sequence(run, model, frames, alone, url):
    """Another server has taken it over, as after a partition: the old one finds out at its next write."""

    async def main():
        async with Node(model, url) as one, Node(model, url, patience=0.1) as two:
            await one.step(5, frames[:10], start=True, index=0)
            await one.written(5, 10)
            for task in one.vault.neighbours._tasks:
                task.cancel()  # it hears nobody
            assert np.array_equal(await two.y(5, frames[10], index=10), alone[10])
            if 5 in one.s.live:
                await one.step(5, frames[10], index=10)
            while 5 in one.s.live:
                await asyncio.sleep(0.01)
            await refused(one, 5, frames[11], "was moved", "NOT_FOUND", 404, index=11)
            assert one.s.ends == {"moved": 1}
            assert np.array_equal(await two.y(5, frames[11:30]), alone[11:30])
            one.s.keeper._forget(time.monotonic() + 1)  # as 5 s later
            assert np.array_equal(await one.y(5, frames[30:40]), alone[30:40])  # it asks for it

    run(main())


def test_ends_are_known_to_the_next_server(run, model, frames, alone, url):
    async def main():
        async with Node(model, url) as one:
            await one.step(1, frames[0], start=True, end=True)
            await one.step(2, frames[:3], start=True)
            await one.s.evict(2)
            await one.step(3, frames[0], start=True)
        async with Node(model, url) as two:
            await refused(two, 1, frames[0], "was ended by its client, after 1 steps", "INVALID_ARGUMENT", 400)
            await refused(two, 2, frames[0], "was evicted, after 3 steps", "NOT_FOUND", 404)
            await refused(two, 9, frames[0], "this server started at", "INVALID_ARGUMENT", 400)
            assert np.array_equal(await two.y(1, frames[0], start=True), alone[0])
            assert np.array_equal(await two.y(3, frames[1]), alone[1])

    run(main())


def test_a_record_that_nobody_held_expires(run, model, frames, url):
    async def main():
        async with Node(model, url) as one:
            await one.step(1, frames[:2], start=True)
        await asyncio.sleep(0.1)
        async with Node(model, url, idle_timeout=0.05) as two:
            await refused(two, 1, frames[2], "expired after 0.05 s idle, after 2 steps", "NOT_FOUND", 404)

    run(main())


def test_a_record_of_a_version_that_is_not_here(run, model, two_ends, frames, alone, folder):
    W, R = (np.ones((24, n), np.float32) for n in (5, 8))
    other = fastrnn.from_arrays("gru", W=W, R=R, order="zrh", threads=1)

    async def main():
        async with Node(model, folder) as one:
            await one.step(1, frames[:2], start=True)
        async with Node({2: model}, folder) as two:
            text = "sequence 1 is of version 1 of 'm', and this server has version 2"
            await refused(two, 1, frames[2], text, "INVALID_ARGUMENT", 400)
        async with Node({1: other}, folder) as two:
            await refused(two, 1, frames[2], "another model as version 1: fingerprint", "INVALID_ARGUMENT", 400)
        async with Node({1: model, 2: other}, folder) as two:  # the record is still there
            assert np.array_equal(await two.y(1, frames[2]), alone[2])
            assert (await two.step(7, frames[0], start=True)).version == 2

    run(main())


def test_records_that_are_damaged_or_foreign(run, model, frames, alone, folder, tmp_path):
    async def main():
        async with Node(model, folder) as one:
            for id in (1, 2, 3):
                await one.step(id, frames[:2], start=True)
        file = lambda id: next((tmp_path / "store" / key_of("m", id)).iterdir())  # noqa: E731
        file(2).write_bytes(file(2).read_bytes()[:-7])
        file(3).write_bytes(file(3).read_bytes()[:32] + file(1).read_bytes()[32:])
        async with Node(model, folder) as two:
            await refused(two, 2, frames[2], "checksum is wrong.*start the seq", "FAILED_PRECONDITION", 409)
            await refused(two, 3, frames[2], "it is of sequence 1 of the model 'm'", "FAILED_PRECONDITION", 409)
            assert np.array_equal(await two.y(1, frames[2]), alone[2])
            assert np.array_equal(await two.y(2, frames[0], start=True), alone[0])

    run(main())


def test_many_sequences_of_one_request_come_back_together(run, model, frames, alone, folder):
    async def main():
        ids = tuple(range(1, 60))
        none = (False,) * len(ids)
        name = model.inputs[0].name

        def call(t, starts=none):
            return Call(ids, starts, none, {name: np.repeat(frames[t : t + 1], len(ids), 0)}, many=True)

        async with Node(model, folder) as one:
            await one.s.run(call(0, (True,) * len(ids)))
            await one.s.run(call(1))
        async with Node(model, folder) as two:
            for t in range(2, 6):
                (y,) = (await two.s.run(call(t))).outputs.values()
                assert np.array_equal(y, np.repeat(alone[t : t + 1], len(ids), 0))

    run(main())


def test_a_draining_server_hands_over_and_takes_nothing(run, model, frames, alone, folder):
    async def main():
        async with Node(model, folder) as one, Node(model, folder) as two:
            await one.step(1, frames[0], start=True)
            await one.engine.drain()
            await refused(one, 1, frames[1], "draining|ended", "UNAVAILABLE", 503)
            await refused(one, 8, frames[1], "draining", "UNAVAILABLE", 503)
            assert np.array_equal(await two.y(1, frames[1]), alone[1])
            assert one.s.ends == {"shutdown": 1}

    run(main())


def test_max_sequences_holds_for_those_that_come_back(run, model, frames, alone, folder):
    async def main():
        async with Node(model, folder) as one:
            await one.step(1, frames[0], start=True)
        async with Node(model, folder, max_sequences=1) as two:
            await two.step(2, frames[0], start=True)
            await refused(two, 1, frames[1], "of at most 1", "UNAVAILABLE", 503)
            await two.step(2, frames[1], end=True)
            assert np.array_equal(await two.y(1, frames[1]), alone[1])

    run(main())


def test_the_idle_clock_runs_on_beside_checkpoints(run, model, frames, folder):
    async def main():
        async with Node(model, folder, idle_timeout=0.3) as one:
            await one.step(1, frames[:2], start=True)
            end = time.monotonic() + 60
            while 1 in one.s.live:
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
            await refused(one, 1, frames[2], "expired after 0.3 s idle, after 2 steps", "NOT_FOUND", 404)
        async with Node(model, folder) as two:
            await refused(two, 1, frames[2], "expired after 0.3 s idle, after 2 steps", "NOT_FOUND", 404)

    run(main())


def test_a_websocket_goes_on_with_a_sequence_of_the_store(model, frames, alone, url, serve):
    client = pytest.importorskip("websockets.sync.client", reason="no websockets: pip install 'fastrnn[serve]'")

    def answers(server, query, x):
        address = f"ws://127.0.0.1:{server.http}/v2/models/m/stream?output=binary&sequence_id=call-7&{query}"
        with client.connect(address) as socket:
            found = []
            for frame in x:
                socket.send(frame.tobytes())
                found.append(np.frombuffer(socket.recv(), np.float32))
            return np.stack(found)

    with serve({"m": model}, store=url) as one:
        assert np.array_equal(answers(one, "sequence_start=1", frames[:5]), alone[:5])
    with serve({"m": model}, store=url) as two:
        assert np.array_equal(answers(two, "sequence_start=0", frames[5:9]), alone[5:9])
        assert np.array_equal(answers(two, "sequence_start=0", frames[9:12]), alone[9:12])


def test_a_server_that_is_asked_gives_a_live_sequence_up_with_every_step(run, model, frames, alone, url):
    """As after a restart behind a proxy that hashes: the sequence follows its requests, without step_index."""

    async def main():
        async with Node(model, url, checkpoint_seconds=1000.0) as one, Node(model, url) as two:
            for id in range(1, 40):
                await one.step(id, frames[:10], start=True)
            got = await asyncio.gather(*(two.y(id, frames[10]) for id in range(1, 40)))
            assert all(np.array_equal(y, alone[10]) for y in got)
            assert one.s.ends == {"moved": 39}
            assert np.array_equal(await one.y(1, frames[11]), alone[11])
            assert np.array_equal(await two.y(2, frames[11:30]), alone[11:30])

    run(main())


def test_two_servers_want_one_sequence(run, model, frames, alone, url):
    """Whoever gets a step, its bits are right and no step is taken twice."""

    async def main():
        async with Node(model, url) as one, Node(model, url) as two, Node(model, url) as three:
            await one.step(1, frames[0], start=True, index=0)
            nodes, at = [one, two, three], 1
            for _ in range(12):
                results = await asyncio.gather(
                    *(n.step(1, frames[at], index=at) for n in nodes), return_exceptions=True
                )
                answers = [r for r in results if not isinstance(r, BaseException)]
                assert all(isinstance(r, Fault) for r in results if isinstance(r, BaseException)), results
                assert all(np.array_equal(first(a), alone[at]) for a in answers)
                at += bool(answers)
            assert at > 1

    run(main())


def test_a_server_whose_process_has_gone_is_dead_at_once(run, model, frames, alone, folder, monkeypatch):
    async def main():
        one = Node(model, folder)
        async with one:
            await one.step(1, frames[:5], start=True, index=0)
            await one.written(1, 5)
            with subprocess.Popen(["true"]) as gone:
                pass
            monkeypatch.setattr("fastrnn.serving.server.neighbours.os.getpid", lambda: gone.pid)
            await one.vault.neighbours._show(time.time())
            await one.kill()
        monkeypatch.undo()
        async with Node(model, folder, patience=1000.0) as two:
            assert np.array_equal(await two.y(1, frames[5], index=5), alone[5])

    run(main())


def test_a_grpc_stream_goes_on_with_a_sequence_of_the_store(model, frames, alone, folder, serve):
    """Requests that come while it is looked for keep their order."""
    grpc = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install 'fastrnn[test]'")

    def answers(server, steps, start):
        got = queue.Queue()
        with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
            client.start_stream(lambda result, error: got.put((result, error)))
            for t in steps:
                tensor = grpc.InferInput("x", [1, 5], "FP32").set_data_from_numpy(frames[t : t + 1])
                client.async_stream_infer("m", [tensor], sequence_id=3, sequence_start=start and t == 0)
            results = [got.get(timeout=60) for _ in steps]
            client.stop_stream()
        assert [e for _, e in results] == [None] * len(results)
        return np.concatenate([r.as_numpy(r.get_response().outputs[0].name) for r, _ in results])

    with serve({"m": model}, store=folder) as one:
        assert np.array_equal(answers(one, range(20), True), alone[:20])
    with serve({"m": model}, store=folder) as two:
        assert np.array_equal(answers(two, range(20, 60), False), alone[20:60])


def test_a_server_that_is_asked_before_it_has_the_sequence_is_asked_again(run, model, frames, alone, folder):
    async def main():
        async with Node(model, folder) as one, Node(model, folder, patience=100.0) as two:
            await one.step(1, frames[:5], start=True)
            sequence, asked = one.s.live.pop(1), asyncio.Event()  # as while it is restored there
            give = one.vault.neighbours.give

            async def noted(*wish):
                await give(*wish)
                asked.set()

            one.vault.neighbours.give = noted
            step = asyncio.ensure_future(two.y(1, frames[5]))
            await asked.wait()
            one.s.live[1] = sequence
            assert np.array_equal(await step, alone[5])

    run(main())
