"""Who may use a server, and how much of it: tokens, names, pages of other sites, the limits of a client."""

import contextlib
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest
from running import Running, ask, body, connect, until

triton_http = pytest.importorskip("tritonclient.http", reason="no tritonclient: pip install 'fastrnn[test]'")
triton_grpc = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install 'fastrnn[test]'")
import websockets.exceptions  # noqa: E402
import websockets.sync.client  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn.serving.server.tokens import Tokens  # noqa: E402

pytestmark = pytest.mark.any_isa
ONE, TWO, THREE = ("one" * 12, "two_" * 9, "3.-~+/" * 4 + "==")


class TestTokens:
    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "tokens"
        path.write_text(f"# those of the gateways\n\n{ONE}\ngateway: {TWO}\n a b :{THREE}\n")
        path.chmod(0o600)
        return path

    @pytest.fixture
    def server(self, model, file):
        with Running({"m": model}, tokens=file) as server:
            yield server

    def test_http(self, server, frames, alone):
        for token, name in ((ONE, "token 3"), (TWO, "gateway"), (THREE, "a b")):
            status, answer, _ = ask(
                server,
                "POST",
                "/v2/models/m/infer",
                body(frames[0], sequence_id=name, sequence_start=True),
                Authorization=f"bearer  {token}",
            )
            assert status == 200
            assert np.array_equal(np.array(answer["outputs"][0]["data"], np.float32), alone[0])
            assert server.sequences.live[name].client == name

    @pytest.mark.parametrize("header", [{}, {"Authorization": f"Bearer {ONE}x"}, {"Authorization": f"Basic {ONE}"}])
    def test_http_without(self, server, header):
        for method, path in [("GET", "/v2"), ("GET", "/v2/models/m"), ("POST", "/v2/models/m/infer"), ("GET", "/x")]:
            status, answer, headers = ask(server, method, path, "{" if method == "POST" else None, **header)
            assert status == 401
            assert "send the header Authorization: Bearer TOKEN" in answer["error"]
            assert headers["www-authenticate"].startswith("Bearer")
        assert ask(server, "GET", "/metrics", **header)[0] == 401
        for path in ("/v2/health/live", "/v2/health/ready", "/openapi.json", "/", "/page/page.js"):
            assert ask(server, "GET", path, **header)[0] == 200
            assert ask(server, "GET", path + "/", **header)[0] in (307, 401, 404)

    def test_grpc(self, server, frames, alone):
        client = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
        x = triton_grpc.InferInput("x", [1, 5], "FP32")
        x.set_data_from_numpy(frames[:1])
        for headers in (None, {"authorization": "Bearer " + "wrong" * 8}):
            assert client.is_server_live(headers)
            assert client.is_server_ready(headers)
            for call in (
                lambda: client.get_model_metadata("m", headers=headers),  # noqa: B023
                lambda: client.infer("m", [x], sequence_id=1, sequence_start=True, headers=headers),  # noqa: B023
            ):
                with pytest.raises(InferenceServerException, match=r"UNAUTHENTICATED.*Authorization: Bearer"):
                    call()
        right = {"authorization": f"Bearer {TWO}"}
        answer = client.infer("m", [x], sequence_id=1, sequence_start=True, headers=right)
        assert np.array_equal(answer.as_numpy("y")[0], alone[0])
        assert server.sequences.live[1].client == "gateway"

    def test_grpc_streams(self, server, frames, alone):
        x = triton_grpc.InferInput("x", [1, 5], "FP32")
        x.set_data_from_numpy(frames[:1])
        for headers in (None, {"authorization": f"Bearer {TWO}"}):
            client, answers = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}"), queue.Queue()
            client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)  # noqa: B023
            with contextlib.nullcontext() if headers else contextlib.suppress(InferenceServerException):
                client.async_stream_infer("m", [x], sequence_id=2, sequence_start=True)
            result, error = answers.get(timeout=30)
            client.stop_stream()
            if headers is None:
                assert "UNAUTHENTICATED" in str(error)
            else:
                assert np.array_equal(result.as_numpy("y")[0], alone[0])
                assert server.sequences.live[2].client == "gateway"

    def test_a_message_without_a_token_is_not_read(self, server):
        """It would be refused for its size, 70 MB, if it were."""
        with grpc.insecure_channel(
            f"127.0.0.1:{server.grpc}", options=[("grpc.max_send_message_length", -1)]
        ) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.RpcError) as caught:
                call(bytes(70 << 20), timeout=30)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED

    def test_websockets(self, server, frames):
        with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
            connect(server)
        assert caught.value.response.status_code == 401
        ways = [
            {"additional_headers": {"Authorization": f"Bearer {TWO}"}},
            {"subprotocols": ["fastrnn", f"fastrnn.bearer.{TWO}"]},
        ]
        for named in ways:
            with connect(server, "?sequence_id=w", **named) as socket:
                assert socket.subprotocol == ("fastrnn" if "subprotocols" in named else None)
                socket.send(frames[0].tobytes())
                assert json.loads(socket.recv(timeout=30))["steps_done"] == 1
                assert server.sequences.live["w"].client == "gateway"
        with pytest.raises(websockets.exceptions.InvalidStatus):
            connect(server, f"?token={TWO}")  # it would end in logs

    def test_reload(self, server, file):
        right = lambda token: ask(server, "GET", "/v2", Authorization=f"Bearer {token}")[0]  # noqa: E731
        file.write_text("new: " + "n" * 20)
        server.do(server.server.reload())
        assert [right(t) for t in (ONE, "n" * 20)] == [401, 200]
        file.write_text("")
        with pytest.raises(fastrnn.FastRNNError, match="has no token"):
            server.do(server.server.reload())
        assert [right(t) for t in (ONE, "n" * 20)] == [401, 200]

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("", "has no token"),
            ("# all taken out\n", "has no token"),
            ("short", r"line 1: expected TOKEN or NAME: TOKEN, at least 16"),
            (f"{ONE}\nb: has a space in it", "line 2: expected"),
            (f": {ONE}", "line 1: expected"),
            (f"{ONE}\nb:{ONE}", "line 2: the token of 'token 1' is given twice"),
            (b"\xff" * 30, "is not text in UTF-8"),
            (None, "can't be read: No such file"),
        ],
    )
    def test_wrong_files(self, text, error, tmp_path):
        path = tmp_path / "tokens"
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(fastrnn.FastRNNError, match=error) as caught:
            Tokens(path)
        assert ONE not in str(caught.value)

    def test_a_file_that_others_can_read_is_told(self, file, caplog):
        Tokens(file)
        assert not caplog.records
        file.chmod(0o644)
        with caplog.at_level(logging.WARNING, "fastrnn"):
            Tokens(file)
        assert "can be read by other users: chmod 600 it" in caplog.text


def test_a_server_that_is_open_to_others_says_so(model, tmp_path, caplog):
    path = tmp_path / "tokens"
    path.write_text(ONE)
    path.chmod(0o600)
    for options, loud in (({"host": "0.0.0.0"}, True), ({}, False), ({"host": "0.0.0.0", "tokens": path}, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "fastrnn"), Running({"m": model}, **options):
            pass
        assert ("without tokens or client certificates" in caplog.text) == loud


class TestNames:
    @pytest.mark.parametrize(
        "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:8000", "a.localhost", "upstream"]
    )
    def test_own_names(self, running, host):
        assert ask(running, "GET", "/v2", Host=host)[0] == 200

    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example"]
    )
    def test_a_page_whose_name_leads_here(self, running, host):
        status, answer, _ = ask(running, "GET", "/v2", Host=host)
        assert status == 403
        assert "--allow-host" in answer["error"]

    def test_allowed_names(self, model):
        with Running({"m": model}, hosts=["Rnn.example"]) as server:
            assert ask(server, "GET", "/v2", Host="rnn.example:8000")[0] == 200
            assert ask(server, "GET", "/v2", Host="other.example")[0] == 403

    def test_names_do_not_matter_to_others(self, model):
        with Running({"m": model}, host="0.0.0.0") as server:
            assert ask(server, "GET", "/v2", Host="rnn.example")[0] == 200


class TestOrigins:
    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
    def test_pages_of_other_sites(self, running, frames, origin):
        sent = body(frames[0], sequence_id="csrf", sequence_start=True)
        status, answer, headers = ask(
            running, "POST", "/v2/models/m/infer", sent, Origin=origin, Content_Type="text/plain"
        )
        assert status == 403
        assert "--allow-origin" in answer["error"]
        assert "access-control-allow-origin" not in headers
        assert "csrf" not in running.sequences.live
        with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
            connect(running, origin=origin)
        assert caught.value.response.status_code == 403

    def test_own_page(self, running):
        own = f"127.0.0.1:{running.http}"
        assert ask(running, "GET", "/v2", Host=own, Origin=f"http://{own}")[0] == 200
        with connect(running, origin=f"http://{own}"):
            pass

    def test_allowed_pages(self, model, frames):
        page = "https://app.example"
        with Running({"m": model}, origins=["https://App.example"]) as server:
            status, _, headers = ask(
                server,
                "OPTIONS",
                "/v2/models/m/infer",
                Origin=page,
                Access_Control_Request_Method="POST",
                Access_Control_Request_Headers="authorization,content-type,x-sequence-id",
            )
            assert (status, headers["access-control-allow-origin"]) == (200, page)
            status, _, headers = ask(server, "POST", "/v2/models/m/infer", body(frames[:1]), Origin=page)
            assert headers["access-control-allow-origin"] == page
            assert "inference-header-content-length" in headers["access-control-expose-headers"].lower()
            assert ask(server, "GET", "/v2", Origin="https://other.example")[0] == 403
            with connect(server, origin=page):
                pass

    def test_all_pages(self, model):
        with Running({"m": model}, origins=["*"]) as server:
            assert ask(server, "GET", "/v2", Origin="https://any.example")[0] == 200

    @pytest.mark.parametrize("wrong", ["example.com", "https://example.com/path", "", "https://"])
    def test_what_is_no_origin(self, model, wrong):
        with pytest.raises(fastrnn.ShapeError, match="an origin is a scheme and a host"):
            fastrnn.serving.Server({"m": model}, origins=[wrong])


def test_the_command_takes_them(model, tmp_path):
    """`fastrnn serve` with tokens: SIGHUP reads them again, and a wrong file changes nothing."""
    model.save(tmp_path / "m.fastrnn")
    tokens = tmp_path / "tokens"
    tokens.write_text(ONE)
    tokens.chmod(0o600)
    words = [
        "serve",
        "m.fastrnn",
        "--http-port=0",
        "--grpc-port=0",
        "--token-file=tokens",
        "--client-rate=1e6",
        "--json",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastrnn", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
    reader.start()
    try:
        told = json.loads(process.stdout.readline())
        server = type("Told", (), {"http": int(told["http"].rpartition(":")[2])})
        status = lambda token: ask(server, "GET", "/v2", Authorization=f"Bearer {token}")[0]  # noqa: E731
        assert [status(ONE), status(TWO)] == [200, 401]
        tokens.write_text(TWO)
        process.send_signal(signal.SIGHUP)
        until(lambda: status(TWO) == 200)
        assert status(ONE) == 401
        tokens.write_text("")
        process.send_signal(signal.SIGHUP)
        until(lambda: any("nothing was reloaded" in line for line in errors))
        assert status(TWO) == 200
    finally:
        process.terminate()
        process.wait(30)
        reader.join(30)
        process.stdout.close(), process.stderr.close()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--tls-cert", "c.pem"], "TLS needs both --tls-cert FILE and --tls-key FILE"),
        (["--tls-client-ca", "c.pem"], "TLS needs both"),
        (["--token-file", "none"], "the token file 'none' can't be read"),
        (["--allow-origin", "example.com"], "an origin is a scheme and a host"),
        (["--client-burst", "3"], "client_burst goes with client_rate"),
    ],
)
def test_wrong_options_of_the_command(model, tmp_path, words, text, capsys, monkeypatch):
    from fastrnn.cli import main

    monkeypatch.chdir(tmp_path)
    model.save("m.fastrnn")
    before = signal.getsignal(signal.SIGINT)
    assert main(["serve", "m.fastrnn", *words]) == 1
    assert text in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_a_command_that_can_not_listen_leaves_the_signals(model, tmp_path, capsys, monkeypatch):
    """A program that runs it, and goes on, would never be interrupted again."""
    from fastrnn.cli import main

    monkeypatch.chdir(tmp_path)
    model.save("m.fastrnn")
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    handlers = [signal.getsignal(number) for number in numbers]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "m.fastrnn", "--http-port", str(taken.getsockname()[1])]) == 1
    assert "can't be listened on" in capsys.readouterr().err
    after = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGHUP, hangup)
    assert after == handlers
