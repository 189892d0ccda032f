"""`fastrnn serve` as a process: its line, its errors, its signals."""

import contextlib
import http.client
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import fastrnn
import fastrnn.serving
from fastrnn.cli import main

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
pytest.importorskip("grpc", reason="no grpc: pip install 'fastrnn[serve]'")
pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parents[2]
WORDS = ROOT / "examples" / "tone_words.onnx"
COMMAND = [sys.executable, "-c", "import sys; from fastrnn.cli import main; sys.exit(main())", "serve"]


ANY_PORTS = ("--http-port", "0", "--grpc-port", "0")
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


class Process:
    """A running `fastrnn serve`, on free ports."""

    def __init__(self, *args, ports=ANY_PORTS):
        command = [*COMMAND, *map(str, args), *ports]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, bufsize=1, env=BUFFERED)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate(timeout=30)

    def line(self, seconds=60):
        """The first line of stdout, which must come while the process runs: supervisors wait for it."""
        assert select.select([self.process.stdout], [], [], seconds)[0], "no line came"
        return self.process.stdout.readline()

    def told(self):
        """What --json says."""
        found = json.loads(self.line())
        self.http = int(found["http"].rpartition(":")[2])
        self.grpc = int(found["grpc"].rpartition(":")[2])
        return found

    def ended(self, seconds=30):
        """(exit code, the rest of stdout, stderr)."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def ask(self, path, body=None):
        """(status, JSON or None)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            data = response.read()
            return response.status, json.loads(data) if data else None

    def step(self, id, start=False, end=False, name="words"):
        """(status, answer) of a step of zeros."""
        parameters = {"sequence_id": id, "sequence_start": start, "sequence_end": end}
        tensor = {"name": "bands", "datatype": "FP32", "shape": [1, 20], "data": [0.0] * 20}
        return self.ask(f"/v2/models/{name}/infer", {"parameters": parameters, "inputs": [tensor]})


class TestLine:
    def test_json(self):
        with Process(f"words={WORDS}", f"words@2={WORDS}", f"other@7={WORDS}", "--json") as server:
            found = server.told()
            assert found["models"] == ["words@1", "words@2", "other@7"]
            assert server.http != server.grpc
            for port in (server.http, server.grpc):
                socket.create_connection(("127.0.0.1", port)).close()
            status, answer = server.step(1, start=True)
            assert (status, answer["model_version"]) == (200, "2")
            assert server.ask("/v2/models/words/versions/1/ready")[0] == 200
            assert server.ask("/v2/models/other/versions/1/ready")[0] == 404
            server.process.terminate()
            code, out, err = server.ended()
            assert (code, out, err) == (0, "", "")

    def test_for_people(self):
        with Process(WORDS) as server:
            assert re.fullmatch(
                r"serving tone_words@1: http://127\.0\.0\.1:\d+/v2, gRPC 127\.0\.0\.1:\d+\n", server.line()
            )


class TestErrors:
    """Each ends with code 1 and says what to do, on stderr."""

    @pytest.mark.parametrize(
        ("models", "text"),
        [
            (["none.onnx"], "none.onnx"),
            (["words=none.onnx"], "none.onnx"),
            (["=x.onnx"], "expected FILE, NAME=FILE or NAME@2=FILE, got '=x.onnx'"),
            (["words@x=y.onnx"], "expected FILE, NAME=FILE or NAME@2=FILE, got 'words@x=y.onnx'"),
            (["words@0=y.onnx"], "expected FILE, NAME=FILE or NAME@2=FILE, got 'words@0=y.onnx'"),
            (["a/b=y.onnx"], "expected FILE, NAME=FILE or NAME@2=FILE, got 'a/b=y.onnx'"),
            ([str(WORDS), str(WORDS)], "tone_words@1 is given twice: give each model its own name or version"),
            ([f"w@2={WORDS}", f"w@2={WORDS}"], "w@2 is given twice"),
        ],
    )
    def test_models(self, capsys, models, text):
        assert main(["serve", *models]) == 1
        assert text in capsys.readouterr().err

    @pytest.mark.parametrize(
        "args",
        [["--http-port", "70000"], ["--grpc-port", "-1"], ["--idle-timeout", "0"], ["--max-sequences", "0"],
         ["--queue-size", "x"], ["--max-delay", "-1"], ["--drain-seconds", "-1"], ["--drain-seconds", "nan"]],
    )  # fmt: skip
    def test_options(self, capsys, args):
        with pytest.raises(SystemExit) as caught:
            main(["serve", str(WORDS), *args])
        assert caught.value.code == 2
        assert args[0] in capsys.readouterr().err

    @pytest.mark.parametrize("kind", ["--http-port", "--grpc-port"])
    def test_a_port_that_is_taken(self, kind):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            other = {"--http-port": "--grpc-port", "--grpc-port": "--http-port"}[kind]
            with Process(WORDS, ports=(kind, port, other, "0")) as server:
                code, out, err = server.ended(60)
        assert (code, out) == (1, "")
        assert f"127.0.0.1:{port} can't be listened on: Address already in use" in err
        assert "Traceback" not in err

    def test_without_the_extra(self, capsys, monkeypatch):
        def missing(name):
            raise ImportError(f"{name} needs uvicorn: pip install 'fastrnn[serve]'")

        monkeypatch.delattr(fastrnn.serving, "Server", raising=False)
        monkeypatch.setattr(fastrnn.serving, "__getattr__", missing)
        assert main(["serve", "none.onnx"]) == 1
        assert capsys.readouterr().err == "error: fastrnn serve: Server needs uvicorn: pip install 'fastrnn[serve]'\n"

    @pytest.mark.parametrize("workers", [1, 2])
    def test_one_port_for_both(self, workers):
        """Workers share their ports, so they could."""
        ports = ("--http-port", "8765", "--grpc-port", "8765")
        with Process(WORDS, "--workers", workers, ports=ports) as server:
            code, _, err = server.ended(60)
        assert code == 1
        assert "--http-port and --grpc-port are both 8765: give each a port of its own" in err

    def test_an_address_of_another_machine(self):
        with Process(WORDS, "--host", "203.0.113.1") as server:
            code, _, err = server.ended(60)
        assert code == 1
        assert "203.0.113.1" in err
        assert "can't be listened on" in err

    def test_errors_as_json(self, capsys):
        assert main(["serve", "none.onnx", "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["ok"] is False


def test_the_help_has_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for option, words in {
        "--host": "127.0.0.1, this machine alone, by default", "--http-port": "8000 by default; 0: any free one",
        "--grpc-port": "8001 by default; 0: any free one", "--idle-timeout": "60 by default",
        "--max-sequences": "10,000 by default", "--queue-size": "32 by default", "--max-delay": "0.002 by default",
        "--strict-sequences": "refuse START on a live sequence", "--drain-seconds": "0 by default",
    }.items():  # fmt: skip
        assert option in text
        assert words in text, option
    assert "fastrnn serve silero.onnx" in text


class TestSignals:
    def test_a_reload_while_it_starts(self, tmp_path):
        """Such as by a hook of a new certificate, while the models are loaded."""
        tokens = tmp_path / "tokens"
        os.mkfifo(tokens)
        with Process(f"words={WORDS}", "--json", "--token-file", tokens) as server:
            writing = os.open(tokens, os.O_WRONLY)  # it waits until the server reads
            server.process.send_signal(signal.SIGHUP)
            os.write(writing, b"gateway: 0123456789abcdef0123456789abcdef\n")
            os.close(writing)
            server.told()
            assert server.ask("/v2/health/ready")[0] == 200
            server.process.terminate()
            assert server.ended()[::2] == (0, "")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_they_end_it_with_0(self, number):
        with Process(f"words={WORDS}", "--json", "--drain-seconds", "0", "--max-delay", "0") as server:
            server.told()
            assert server.step("a", start=True)[0] == 200
            server.process.send_signal(number)
            code, _, err = server.ended()
            assert (code, err) == (0, "")

    def test_live_sequences_may_go_on_for_a_while(self):
        """Until the last has ended: then it ends at once, long before the time is over."""
        with Process(f"words={WORDS}", "--json", "--drain-seconds", "300") as server:
            server.told()
            assert server.step(1, start=True)[0] == 200
            server.process.terminate()
            until(lambda: server.ask("/v2/health/ready")[0] == 503)
            assert server.ask("/v2/health/live")[0] == 200
            status, answer = server.step(2, start=True)
            assert status == 503
            assert "draining" in answer["error"]
            assert server.step(1)[1]["parameters"]["step_index"] == 1
            assert server.process.poll() is None
            assert server.step(1, end=True)[0] == 200
            assert server.ended()[0] == 0

    @pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
    def test_a_second_one_ends_the_wait(self, second):
        with Process(f"words={WORDS}", "--json", "--drain-seconds", "300") as server:
            server.told()
            assert server.step(1, start=True)[0] == 200
            server.process.terminate()
            until(lambda: server.ask("/v2/health/ready")[0] == 503)
            server.process.send_signal(second)
            code, _, err = server.ended()
            assert (code, err) == (0, "")

    def test_clients_that_go_on_stepping_can_not_keep_it(self):
        """No step that was answered is lost, and what comes too late is refused or finds no server."""
        with Process(f"words={WORDS}", "--json") as server:
            server.told()
            done, stop = [0] * 8, threading.Event()

            def client(i):
                with contextlib.suppress(OSError, http.client.HTTPException):
                    while not stop.is_set():
                        status, answer = server.step(i + 1, start=not done[i])
                        if status != 200:
                            assert status == 503, answer
                            return
                        done[i] = answer["parameters"]["steps_done"]

            threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
            for thread in threads:
                thread.start()
            until(lambda: min(done) > 3)
            server.process.terminate()
            try:
                code, _, err = server.ended(20)
            finally:
                stop.set()
                for thread in threads:
                    thread.join(30)
            assert (code, err) == (0, "")

    def test_an_open_stream_can_not_keep_it(self):
        grpc = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install 'fastrnn[test]'")
        with Process(f"words={WORDS}", "--json") as server:
            server.told()
            client, answers = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}"), []
            client.start_stream(lambda result, error: answers.append((result, error)))
            x = grpc.InferInput("bands", [1, 20], "FP32")
            x.set_data_from_numpy(np.zeros((1, 20), np.float32))
            client.async_stream_infer("words", [x], sequence_id=1, sequence_start=True)
            until(lambda: answers)
            server.process.terminate()
            code, _, err = server.ended()
            assert (code, err) == (0, "")
            client.stop_stream(cancel_requests=True)
            client.close()


def test_a_reader_that_goes_does_not_end_it():
    """A supervisor may close the pipe after the line."""
    with Process(f"words={WORDS}", "--json") as server:
        server.told()
        server.process.stdout.close()
        assert server.step(1, start=True)[0] == 200
        server.process.terminate()
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_are_closed(closed, workers):
    """Their numbers must not go to sockets, into which libraries write then. uvloop ends the process at one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    more = ["--workers", str(workers), "--http-port", str(port), "--grpc-port", "0"]
    command = shlex.join([*COMMAND, f"words={WORDS}", *more])
    rest = " ".join(f"{sign}/dev/null" for sign in ("<", ">", "2>"))
    process = subprocess.Popen(["sh", "-c", f"exec {command} {rest} {closed}"], cwd=ROOT)

    def serves():
        assert process.poll() is None, process.returncode
        asked = f"http://127.0.0.1:{port}/v2/health/ready"
        with contextlib.suppress(OSError), urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status == 200
        return False

    try:
        until(serves)
        for number in range(3):
            assert os.readlink(f"/proc/{process.pid}/fd/{number}") == "/dev/null"
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(30)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed: apt-get install curl")
def test_curl_finds_it():
    with Process(f"words={WORDS}", "--json") as server:
        server.told()
        command = ["curl", "-sS", "-f", f"http://127.0.0.1:{server.http}/v2/models/words"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        assert json.loads(found.stdout)["name"] == "words"


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
