"""TLS and mTLS of both ports: tritonclient's options, certificates that are replaced while the server runs, wrong
files."""

import contextlib
import json
import socket
import ssl

import numpy as np
import pytest
from running import Running, until

http = pytest.importorskip("tritonclient.http", reason="no tritonclient: pip install 'fastrnn[test]'")
grpc = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install 'fastrnn[test]'")
trustme = pytest.importorskip("trustme", reason="no trustme: pip install 'fastrnn[test]'")
import grpc as grpcio  # noqa: E402
import websockets.sync.client  # noqa: E402
from cryptography.hazmat.primitives import serialization  # noqa: E402
from geventhttpclient.response import HTTPConnectionClosed  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn.serving.server import connections  # noqa: E402

pytestmark = [pytest.mark.any_isa, pytest.mark.filterwarnings("ignore:ssl:DeprecationWarning")]


class Files:
    """Certificates of an authority, in a folder."""

    def __init__(self, folder, authority=None):
        self.folder, self.authority = folder, authority or trustme.CA()
        folder.mkdir(exist_ok=True)
        self.ca, self.cert, self.key = (folder / f"{n}.pem" for n in ("ca", "cert", "key"))
        self.authority.cert_pem.write_to_path(self.ca)
        self.issue()

    def issue(self, name="127.0.0.1"):
        """A pair for the server, in place of the one before."""
        pair = self.authority.issue_cert(name, "localhost")
        self.key.write_bytes(pair.private_key_pem.bytes())
        self.cert.write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))

    def client(self, name="someone"):
        """Paths of a client's key and certificate."""
        pair = self.authority.issue_cert(f"{name}@example.org", common_name=name)
        key, cert = self.folder / f"{name}-key.pem", self.folder / f"{name}-cert.pem"
        key.write_bytes(pair.private_key_pem.bytes())
        cert.write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
        return key, cert

    def tls(self, *, mutual=False):
        return fastrnn.serving.Tls(self.cert, self.key, self.ca if mutual else None)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "own")


def http_client(server, files, pair=None):
    def context(**_):
        made = ssl.create_default_context(cafile=files.ca)
        if pair:
            made.load_cert_chain(pair[1], pair[0])
        return made

    return http.InferenceServerClient(f"127.0.0.1:{server.http}", ssl=True, ssl_context_factory=context)


def grpc_client(server, files, pair=None):
    own = {} if pair is None else {"private_key": str(pair[0]), "certificate_chain": str(pair[1])}
    return grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}", ssl=True, root_certificates=str(files.ca), **own)


def step(module, client, frame, **named):
    x = module.InferInput("x", [1, 5], "FP32")
    x.set_data_from_numpy(frame[None])
    return client.infer("m", [x], **named).as_numpy("y")[0]


def test_both_ports_speak_tls(model, files, frames, alone):
    with Running({"m": model}, tls=files.tls()) as server:
        for module, client in ((http, http_client(server, files)), (grpc, grpc_client(server, files))):
            for t in range(3):
                y = step(module, client, frames[t], sequence_id=3, sequence_start=t == 0)
                assert np.array_equal(y, alone[t])
            client.close()
        context = ssl.create_default_context(cafile=files.ca)
        url = f"wss://127.0.0.1:{server.http}/v2/models/m/stream"
        with websockets.sync.client.connect(url, ssl=context) as connection:
            connection.send(frames[0].tobytes())
            answer = json.loads(connection.recv(timeout=30))
        assert np.array_equal(np.array(answer["outputs"]["y"], np.float32)[0], alone[0])


def test_plain_text_is_refused(model, files, frames):
    with Running({"m": model}, tls=files.tls()) as server:
        with socket.create_connection(("127.0.0.1", server.http), timeout=30) as connection:
            connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"HTTP/1.1" not in connection.recv(1000)
        with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
            grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}").is_server_live(client_timeout=30)


def test_old_versions_of_tls_are_refused(model, files):
    context = ssl.create_default_context(cafile=files.ca)
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        Running({"m": model}, tls=files.tls()) as server,
        socket.create_connection(("127.0.0.1", server.http), timeout=30) as connection,
        pytest.raises((ssl.SSLError, ConnectionResetError)),
    ):
        context.wrap_socket(connection, server_hostname="127.0.0.1")


def test_clients_need_certificates_and_are_known_by_them(model, files, frames, alone, tmp_path):
    strangers = Files(tmp_path / "strangers")
    with Running({"m": model}, tls=files.tls(mutual=True)) as server:
        pair = files.client("gateway-7")
        for module, made in ((http, http_client), (grpc, grpc_client)):
            client = made(server, files, pair)
            y = step(module, client, frames[0], sequence_id=module.__name__, sequence_start=True)
            assert np.array_equal(y, alone[0])
            assert server.sequences.live[module.__name__].client == "gateway-7"
            client.close()
            for wrong in (None, strangers.client()):
                client = made(server, files, wrong)
                with pytest.raises((OSError, InferenceServerException, HTTPConnectionClosed)):
                    step(module, client, frames[0], sequence_id=9, sequence_start=True)
                client.close()
        assert 9 not in server.sequences.live


def presented(port, files, pair=None):
    """The certificate that a port presents, DER; with HTTP the connection is used once, so that refusals show."""
    context = ssl.create_default_context(cafile=files.ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if pair:
        context.load_cert_chain(pair[1], pair[0])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        if connection.selected_alpn_protocol() == "http/1.1":
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        if not connection.recv(9):
            raise ConnectionError("the port ended the connection")
        return connection.getpeercert(binary_form=True)


def test_new_files_are_used_without_losing_connections(model, files, frames, alone):
    with Running({"m": model}, tls=files.tls()) as server:
        clients = [(http, http_client(server, files)), (grpc, grpc_client(server, files))]
        for module, client in clients:
            step(module, client, frames[0], sequence_id=module.__name__, sequence_start=True)
        before = [presented(port, files) for port in (server.http, server.grpc)]
        assert [presented(port, files) for port in (server.http, server.grpc)] == before

        files.issue()
        server.do(server.server.reload())
        after = [presented(port, files) for port in (server.http, server.grpc)]
        assert after[0] == after[1] != before[0]
        files.key.write_text("not a key")
        with pytest.raises(fastrnn.FastRNNError, match="holds no private key"):
            server.do(server.server.reload())
        assert [presented(port, files) for port in (server.http, server.grpc)] == after
        for module, client in clients:
            assert np.array_equal(step(module, client, frames[1], sequence_id=module.__name__), alone[1])
            client.close()


def test_an_authority_that_is_taken_away(model, files, tmp_path):
    other = Files(tmp_path / "other")
    with Running({"m": model}, tls=files.tls(mutual=True)) as server:
        pair, foreign = files.client(), other.client()
        assert presented(server.http, files, pair)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            presented(server.http, files, foreign)
        root = files.folder / "root.pem"
        root.write_bytes(files.ca.read_bytes())
        files.ca.write_bytes(other.ca.read_bytes())

        server.do(server.server.reload())
        files.ca = root  # of the client that follows
        for port in (server.http, server.grpc):
            assert presented(port, files, foreign)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                presented(port, files, pair)


def wrong_files(files, tmp_path):
    """(Tls, what the error says)."""
    other = Files(tmp_path / "other")
    locked = tmp_path / "locked.pem"
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    text = tmp_path / "text"
    text.write_text("hello")
    Tls, none = fastrnn.serving.Tls, tmp_path / "none"
    yield Tls(none, files.key), "certificate file .*none.* can't be read: No such file"
    yield Tls(files.cert, none), "key file .*none.* can't be read: No such file"
    yield Tls(files.cert, files.key, none), "client CA file .*none.* can't be read: No such file"
    yield Tls(files.cert, tmp_path), "can't be read: Is a directory"
    yield Tls(files.cert, other.key), "is not that of the certificate"
    yield Tls(files.cert, locked), "needs a password.*openssl pkey"
    yield Tls(text, files.key), "holds no certificate in PEM form"
    yield Tls(files.cert, text), "holds no private key in PEM form"
    yield Tls(files.key, files.cert), "holds no certificate in PEM form"
    yield Tls(files.cert, files.key, text), "client CA file .* holds no certificate"


def test_wrong_files_are_named(model, files, tmp_path):
    for tls, text in wrong_files(files, tmp_path):
        with pytest.raises(fastrnn.FastRNNError, match=text):
            fastrnn.serving.Server({"m": model}, tls=tls)
    with pytest.raises(fastrnn.ShapeError, match="must be the path of a PEM file, got 7"):
        fastrnn.serving.Tls(7, "key")


def test_a_handshake_that_does_not_come_is_given_up(model, files, monkeypatch):
    monkeypatch.setattr("fastrnn.serving.server.connections.HANDSHAKE_SECONDS", 0.2)
    with (
        Running({"m": model}, tls=files.tls()) as server,
        socket.create_connection(("127.0.0.1", server.http), timeout=30) as connection,
    ):
        connection.sendall(b"\x16\x03\x01")
        assert connection.recv(100) == b""


def test_credentials_of_grpc_are_checked_too(model, files):
    """A server whose name is not in its certificate is not the one that the client means."""
    files.issue("other.example")
    pair = files.authority.issue_cert("other.example")
    files.key.write_bytes(pair.private_key_pem.bytes())
    files.cert.write_bytes(pair.cert_chain_pems[0].bytes())
    with Running({"m": model}, tls=files.tls()) as server:
        channel = grpcio.secure_channel(
            f"127.0.0.1:{server.grpc}", grpcio.ssl_channel_credentials(files.ca.read_bytes())
        )
        with pytest.raises(grpcio.FutureTimeoutError):
            grpcio.channel_ready_future(channel).result(timeout=1)
        channel.close()


UPGRADE = b"""GET /v2/models/m/stream HTTP/1.1\r
Host: localhost\r
Upgrade: websocket\r
Connection: Upgrade\r
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r
Sec-WebSocket-Version: 13\r
\r
"""


def test_a_websocket_that_ends_without_the_end_of_tls(model, files, monkeypatch, caplog):
    """Its connection is ended, and so are those of slow clients after it: asyncio's transport of TLS forgets its
    connection if it is closed twice, and its size of what is unsent raised an error, which ended all checks of
    connections for good."""
    for name in ("HEADER_SECONDS", "CLOSE_SECONDS"):
        monkeypatch.setattr(connections, name, 0.4)
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
    context = ssl.create_default_context(cafile=files.ca)
    with Running({"m": model}, tls=files.tls()) as server, contextlib.ExitStack() as stack:

        def connect():
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", server.http), timeout=30))
            return stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))

        rude = connect()
        rude.sendall(UPGRADE)
        assert b"101 Switching" in rude.recv(4096)
        rude.sendall(b"\x88\x80" + bytes(4))  # the end of the WebSocket; that of TLS does not come
        until(lambda: not server.server._http.connections.open)
        slow = connect()
        slow.sendall(b"GET /v2 HTTP/1.1\r\n")
        assert b"408 Request Timeout" in slow.recv(4096)
    assert not caplog.records


def test_an_error_in_the_check_of_a_connection_spares_the_others(model, monkeypatch, caplog):
    """It is logged, and the connection is ended."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.4)
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
    look = connections.HttpConnection.look
    broken = []

    def breaks(self, now):
        if broken and self is broken[0]:
            raise RuntimeError("planted")
        look(self, now)

    monkeypatch.setattr(connections.HttpConnection, "look", breaks)
    with Running({"m": model}) as server, contextlib.ExitStack() as stack:
        connect = lambda: stack.enter_context(socket.create_connection(("127.0.0.1", server.http), timeout=30))  # noqa: E731
        first = connect()
        until(lambda: server.server._http.connections.open)
        broken.extend(server.server._http.connections.open)
        assert first.recv(100) == b""
        assert b"408 Request Timeout" in connect().recv(4096)
    assert "planted" in caplog.text
