"""`fastrnn serve --workers 3`: an unmodified client reaches every sequence at one port, whatever worker has it."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from running import ask, until
from test_streaming import answers, request, values

import fastrnn

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
pytest.importorskip("grpc", reason="no grpc: pip install 'fastrnn[serve]'")
websockets = pytest.importorskip("websockets", reason="no websockets: pip install 'fastrnn[serve]'")
from websockets.sync.client import connect  # noqa: E402

pytestmark = pytest.mark.any_isa

ROOT = Path(__file__).resolve().parents[2]


class Served:
    """The command, with several workers."""

    def __init__(self, model, *more, workers=3):
        command = [sys.executable, "-m", "fastrnn", "serve", f"m={model}", "--workers", str(workers), "--json"]
        command += ["--http-port", "0", "--grpc-port", "0", *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        told = json.loads(self.process.stdout.readline())
        self.http, self.grpc = (int(told[name].rpartition(":")[2]) for name in ("http", "grpc"))
        until(self.ready, "the workers did not find each other", 60)

    def ready(self):
        """Whether all workers reach each other: many connections ask, and any worker answers each."""
        try:
            return all(ask(self, "GET", "/v2/health/ready")[0] == 200 for _ in range(30))
        except OSError:
            return False

    @property
    def workers(self):
        """The processes."""
        pid = self.process.pid
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def stop(self):
        """The exit code after SIGTERM, and what it wrote to stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, text = self.process.communicate(timeout=60)
        return self.process.returncode, text

    def step(self, id, x, **given):
        """(status, JSON of the answer) of a step on a connection of its own, which any worker takes."""
        head = {"parameters": {"sequence_id": id, **given}}
        head["inputs"] = [{"name": "x", "datatype": "FP32", "shape": [1, *x.shape], "data": x.reshape(-1).tolist()}]
        status, found, _ = ask(self, "POST", "/v2/models/m/infer", json.dumps(head))
        return status, found

    def many(self, ids, x, **flags):
        """(status, outputs by name) of a step of many."""
        kind = "BYTES" if isinstance(ids[0], str) else "INT64"
        tensors = [("x", "FP32", x.shape, x.reshape(-1).tolist()), ("SEQUENCE_IDS", kind, [len(ids)], list(ids))]
        tensors += [(n, "INT64" if n == "STEP_INDEX" else "BOOL", [len(ids)], v) for n, v in flags.items()]
        inputs = [{"name": n, "datatype": k, "shape": list(s), "data": v} for n, k, s, v in tensors]
        status, found, _ = ask(self, "POST", "/v2/models/m/infer", json.dumps({"inputs": inputs}))
        if status != 200:
            return status, found["error"]
        return status, {o["name"]: np.array(o["data"], np.float32).reshape(o["shape"]) for o in found["outputs"]}


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("workers") / "m.fastrnn"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def served(file):
    server = Served(file)
    yield server
    assert server.stop() == (0, "")


def output(found):
    (y,) = found["outputs"]
    return np.array(y["data"], np.float32).reshape(y["shape"])[0]


def test_every_connection_reaches_every_sequence(served, frames, alone):
    ids = [*range(1, 9), "a", "b", "5", "café"]
    for t in range(6):
        for id in ids:
            status, found = served.step(id, frames[t], sequence_start=t == 0, sequence_end=t == 5)
            assert status == 200, found
            assert found["parameters"]["step_index"] == t
            assert np.array_equal(output(found), alone[t])
    status, found = served.step("a", frames[6])
    assert status == 400
    assert "sequence a was ended by its client, after 6 steps" in found["error"]


def test_a_stream_of_grpc_carries_sequences_of_all_workers(served, frames, alone):
    ids = range(1001, 1013)
    asked = [request(frames[t][None], sequence_id=id, sequence_start=t == 0) for t in range(40) for id in ids]
    for i, answer in enumerate(answers(served, asked)):
        assert np.array_equal(values(answer), alone[i // 12])
    late = answers(served, [request(frames[40][None], sequence_id=id) for id in (*ids, 77)])
    assert [bool(a.error_message) for a in late] == [False] * 12 + [True]
    assert late[-1].error_message.startswith("INVALID_ARGUMENT: inference request for sequence 77 to model 'm' must")


def test_many_sequences_are_split_and_joined(served, frames, alone):
    for ids in ([*range(2001, 2041)], [f"s{i}" for i in range(40)]):
        n = len(ids)
        for t in range(5):
            status, found = served.many(ids, frames[t][None].repeat(n, 0), SEQUENCE_START=[t == 0] * n)
            assert status == 200, found
            assert np.array_equal(found["y"], alone[t][None].repeat(n, 0))
            assert found["STEP_INDEX"].tolist() == [t] * n
        back = ids[::-1]  # the rows keep their order
        x = frames[5 : 5 + n]
        status, found = served.many(back, x, STEP_INDEX=[5] * n)
        assert np.array_equal(found["y"][0], alone[5])
        again = served.many(back, x, STEP_INDEX=[5] * n)
        assert np.array_equal(again[1]["y"], found["y"])


def test_requests_that_are_sent_at_once_keep_their_order(served, frames, alone):
    """Those for sequences of several workers are checked first: what comes behind them does not overtake them."""
    ids = np.arange(2501, 2521, dtype=np.int64)

    def many(t, **flags):
        made = request(frames[t][None].repeat(20, 0))
        made.inputs.add(name="SEQUENCE_IDS", datatype="INT64", shape=[20])
        made.raw_input_contents.append(ids.tobytes())
        for name in flags:
            made.inputs.add(name=name, datatype="BOOL", shape=[20])
            made.raw_input_contents.append(b"\1" * 20)
        return made

    asked = [many(0, SEQUENCE_START=True)]
    for t in range(1, 20, 2):
        asked.append(many(t))
        asked += [request(frames[t + 1][None], sequence_id=int(id)) for id in ids]
    asked.append(many(21, SEQUENCE_END=True))
    found = iter(answers(served, asked))

    def rows(answer):
        assert not answer.error_message, answer.error_message
        return np.frombuffer(answer.infer_response.raw_output_contents[0], np.float32).reshape(20, 8)

    assert np.array_equal(rows(next(found)), alone[0][None].repeat(20, 0))
    for t in range(1, 20, 2):
        assert np.array_equal(rows(next(found)), alone[t][None].repeat(20, 0))
        for _ in ids:
            assert np.array_equal(values(next(found)), alone[t + 1])
    assert np.array_equal(rows(next(found)), alone[21][None].repeat(20, 0))


def test_if_one_row_is_refused_none_runs(served, frames):
    ids = [*range(3001, 3041)]
    n, x = len(ids), frames[0][None].repeat(40, 0)
    assert served.many(ids, x, SEQUENCE_START=[True] * n)[0] == 200
    refused = [
        (served.many([*ids[:-1], 99], x), "sequence 99 to model 'm' must specify the START flag"),
        (served.many([*ids[:-1], ids[0]], x), "twice"),
        (served.many(ids, x, STEP_INDEX=[1] * (n - 1) + [7]), "expects step_index 1, got 7"),
        (served.many(ids, x[:, :4]), "one step is"),
        (served.many(ids, x[:5]), "[5, 5]"),
    ]
    for (status, text), part in refused:
        assert status in (400, 409)
        assert part in text
    for id in ids:
        assert served.step(id, frames[1])[1]["parameters"]["step_index"] == 1


def test_a_named_websocket_goes_on_at_another_connection(served, frames, alone):
    url = f"ws://127.0.0.1:{served.http}/v2/models/m/stream?output=binary"
    for t in range(12):
        with connect(f"{url}&sequence_id=named&sequence_start={int(t == 0)}") as connection:
            connection.send(frames[t].tobytes())
            assert connection.recv(timeout=20) == alone[t].tobytes()
    for _ in range(6):
        with connect(url) as connection:
            for t in range(100):
                connection.send(frames[t].tobytes())
            assert b"".join(connection.recv(timeout=20) for _ in range(100)) == alone[:100].tobytes()


def test_counts_are_those_of_all_workers(served, frames):
    def counts():
        _, text, _ = ask(served, "GET", "/metrics")
        lines = [line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#")]
        _, stats, _ = ask(served, "GET", "/v2/models/m/stats")
        return {name: float(value) for name, _, value in lines}, stats["model_stats"][0]["inference_count"]

    before, steps = counts()
    ids = range(4001, 4031)
    assert served.many([*ids], frames[:30], SEQUENCE_START=[True] * 30)[0] == 200
    after, more = counts()
    for name, change in (("sequences", 30), ("sequence_starts_total", 30), ("steps_total", 30)):
        key = f'fastrnn_{name}{{model="m"}}'
        assert after[key] - before[key] == change, name
    assert more - steps == 30


def test_the_numbers_of_the_live_page_are_those_of_all_workers(served, frames):
    def told():
        status, live, _ = ask(served, "GET", "/live")
        assert status == 200
        return live, live["models"][0]

    live, before = told()
    ids = range(5001, 5031)
    assert served.many([*ids], frames[:30], SEQUENCE_START=[True] * 30)[0] == 200
    for id in range(5101, 5107):
        assert served.step(id, frames[0])[0] == 400
    again, after = told()
    assert again["started"] == live["started"]
    assert again["live"]
    for name in ("sequences", "starts", "steps"):
        assert after[name] - before[name] == 30, name
    assert after["batch_size"]["sum"] - before["batch_size"]["sum"] == 30
    assert after["calls"]["steps"] - before["calls"]["steps"] == 30
    assert after["rejected"]["unknown_sequence"] - before["rejected"].get("unknown_sequence", 0) == 6
    assert len([e for e in again["events"] if " 510" in e["text"]]) == 6
    assert [e["time"] for e in again["events"]] == sorted((e["time"] for e in again["events"]), reverse=True)


def test_a_worker_that_dies_is_replaced(file, frames, alone):
    served = Served(file)
    try:
        ids = [*range(1, 31)]
        for id in ids:
            assert served.step(id, frames[0], sequence_start=True)[0] == 200
        before = served.workers
        assert len(before) == 3
        os.kill(before[1], signal.SIGKILL)
        until(lambda: before[1] not in served.workers and len(served.workers) == 3, "no worker took its place", 60)
        until(served.ready, "the new worker was not found", 60)
        lost = 0
        for id in ids:
            status, found = served.step(id, frames[1])
            if status == 200:
                assert np.array_equal(output(found), alone[1])
            else:
                assert "this server started at" in found["error"]
                lost += 1
        assert 0 < lost < 30
    finally:
        code, text = served.stop()
    assert code == 0
    assert text == f"worker 1 ended with -{int(signal.SIGKILL)}, and is started again\n"


def test_sequences_go_on_with_another_number_of_workers(file, frames, alone, tmp_path):
    pytest.importorskip("fsspec", reason="no fsspec: pip install 'fastrnn[serve]'")
    ids = [*range(1, 31)]
    for t, workers in enumerate((2, 3, 1)):
        served = Served(file, "--store", str(tmp_path / "store"), workers=workers)
        status, found = served.many(ids, frames[t][None].repeat(30, 0), SEQUENCE_START=[t == 0] * 30)
        assert served.stop() == (0, "")
        assert status == 200, found
        assert np.array_equal(found["y"], alone[t][None].repeat(30, 0))


def test_workers_end_with_their_parent(file):
    served = Served(file)
    workers = served.workers
    served.process.kill()
    served.process.communicate(timeout=60)
    until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers), "a worker is left", 60)


def test_a_worker_is_replaced_if_nobody_reads_the_log(file):
    served = Served(file, workers=2)
    served.process.stderr.close()
    killed = served.workers[0]
    os.kill(killed, signal.SIGKILL)
    until(lambda: killed not in served.workers and len(served.workers) == 2, "it was not started again", 60)
    until(served.ready, "the workers did not find each other", 60)
    served.process.terminate()
    assert served.process.wait(60) == 0
    served.process.stdout.close()


def test_servers_that_start_at_once_do_not_share_a_port(file):
    """Until their workers listen, the system would let both reserve it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fastrnn", "serve", f"m={file}", "--workers", "2", "--json", "--grpc-port", "0"]
    command += ["--http-port", str(port)]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) for _ in range(2)]
    try:
        until(lambda: any(p.poll() is not None for p in both), "both serve", 30)
        (refused,) = [p for p in both if p.poll() is not None]
        assert f"127.0.0.1:{port} can't be listened on: Address already in use" in refused.communicate()[1]
        (other,) = [p for p in both if p is not refused]
        assert str(port) in other.stdout.readline()
    finally:
        for process in both:
            process.terminate()
            process.communicate(timeout=60)


def test_a_worker_that_can_t_start_ends_the_command(file):
    command = [sys.executable, "-m", "fastrnn", "serve", f"m={file}", "--workers", "2", "--http-port", "0"]
    command += ["--grpc-port", "0", "--store", "nonsense://x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 1
    assert "nonsense" in done.stderr


def test_the_weights_are_in_memory_once(tmp_path):
    """Forked after they are packed: pages of workers that no one writes are the parent's."""
    rng = np.random.default_rng(0)
    W, R = (rng.standard_normal((4 * 1536, 1536)).astype(np.float32) * 0.01 for _ in "WR")
    path = tmp_path / "large.fastrnn"
    fastrnn.from_arrays("lstm", W=W, R=R, order="iofc").save(path)
    size = 2 * W.nbytes
    served = Served(path)
    try:
        for id in range(1, 13):
            assert served.step(id, np.zeros(1536, np.float32), sequence_start=True)[0] == 200
        for pid in served.workers:
            shared = private = 0
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name.startswith("Shared_"):
                    shared += int(value.split()[0]) * 1024
                elif name.startswith("Private_") and name != "Private_Hugetlb":
                    private += int(value.split()[0]) * 1024
            assert shared > size, "the weights were packed or read again"
            assert private < size, "the weights were copied"
    finally:
        assert served.stop() == (0, "")


@pytest.mark.parametrize("ids", [[1], [1, 2, 3, 4]])
def test_a_wrong_id_beside_ids_is_refused_by_every_worker(served, frames, ids):
    for id in [1], {"a": 1}, 1.5:
        for _ in range(6):  # any worker may answer
            status, answer, _ = ask(served, "POST", "/v2/models/m/infer", several(ids, "INT64", frames, sequence_id=id))
            assert (status, "sequence_id must be" in answer["error"]) == (400, True), answer


def test_texts_that_are_no_utf8_are_ids_on_every_worker(served, frames, alone):
    ids = [f"\ud800{k}" for k in range(6)]
    for t in range(4):
        status, answer, _ = ask(served, "POST", "/v2/models/m/infer", several(ids, "BYTES", frames[t:], start=t == 0))
        assert status == 200, answer
        assert (np.float32(answer["outputs"][0]["data"]).reshape(6, 8) == alone[t]).all()
    _, answer = served.step("\ud8002", frames[4])
    assert (np.float32(answer["outputs"][0]["data"]) == alone[4]).all()


def test_numbers_among_texts_are_refused(served, frames):
    """5 and "5" are different sequences, so a number can't be sent as a text to another worker."""
    status, answer, _ = ask(served, "POST", "/v2/models/m/infer", several(["a", 5], "BYTES", frames, start=True))
    assert (status, "BYTES takes texts, got 5" in answer["error"]) == (400, True), answer


def several(ids, kind, frames, start=False, **parameters):
    """The JSON of a request of a step of each of these sequences, all with the first frame."""
    n = len(ids)
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [n, 5], "data": frames[0].tolist() * n},
        {"name": "SEQUENCE_IDS", "datatype": kind, "shape": [n], "data": ids},
        {"name": "SEQUENCE_START", "datatype": "BOOL", "shape": [n], "data": [start] * n},
    ]
    return json.dumps({"inputs": inputs, "parameters": parameters})
