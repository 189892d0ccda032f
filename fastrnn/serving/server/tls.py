"""TLS of both ports from the same files, which may be replaced while the server runs."""

from __future__ import annotations

import os
import ssl
from typing import Any

from ...errors import FastRNNError, ShapeError
from ...records import dataclass

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Tls:
    """The files that a server identifies itself with, PEM.

    certificate : the server's certificate, followed by those of the authorities between it and the root
    key : its private key, without a password
    client_ca : certificates of the authorities whose clients may connect; every client must then have a certificate
        (mTLS). None: clients need none.

    Versions of TLS before 1.2 are refused.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def __post_init__(self):
        for name in ("certificate", "key"):
            if not isinstance(getattr(self, name), (str, os.PathLike)):
                raise ShapeError(f"Tls.{name} must be the path of a PEM file, got {getattr(self, name)!r:.80}")


class Certificates:
    """What the ports use at the moment.

    Parameters
    ----------
    files : Tls

    Attributes
    ----------
    context : the SSLContext of HTTP. An SSLContext can't forget an authority or a session, so a reload makes a new one.
    loads : how often the files were read

    Raises
    ------
    FastRNNError : a file is missing, is not what it should be, or needs a password; certificate and key don't match.
    """

    def __init__(self, files: Tls):
        self.files = files
        self.loads = 0
        self.reload()

    def reload(self) -> None:
        """Read the files again. FastRNNError: they are wrong, and those of before stay in use."""
        parts = self._read()
        context = _context(self.files)
        if self._read() != parts:
            raise FastRNNError(
                f"{_shown(self.files.certificate)} changed while it was read: read it again when it is whole"
            )
        self.context, self._parts = context, parts
        self.loads += 1

    def _read(self) -> list[bytes | None]:
        files = self.files
        authorities = None if files.client_ca is None else _read("client CA", files.client_ca)
        return [_read("certificate", files.certificate), _read("key", files.key), authorities]

    def credentials(self) -> Any:
        """Those of a gRPC server. They follow `reload`."""
        import grpc

        seen = self.loads

        def fetched() -> Any:
            nonlocal seen
            if seen == self.loads:
                return None  # gRPC keeps what it has
            seen = self.loads
            return self._grpc_files()

        must = self.files.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._grpc_files(), fetched, require_client_authentication=must)

    def _grpc_files(self) -> Any:
        import grpc

        certificate, key, authorities = self._parts
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authorities)


def _context(files: Tls) -> ssl.SSLContext:
    """A context of these files."""
    locked = []

    def password() -> str:
        locked.append(True)
        return ""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.certificate, files.key, password)
    except ssl.SSLError as error:
        raise FastRNNError(_wrong_pair(files, bool(locked), error)) from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            text = f"the client CA file {_shown(files.client_ca)} holds no certificate in PEM form: {error.reason}"
            raise FastRNNError(text) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _wrong_pair(files: Tls, locked: bool, error: ssl.SSLError) -> str:
    """What is wrong with the certificate and the key."""
    certificate, key = _shown(files.certificate), _shown(files.key)
    if locked:
        return (
            f"the key {key} needs a password, which a server can't be asked for: write one without, "
            f"`openssl pkey -in {key} -out FILE`, that only the server's user may read"
        )
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the key {key} is not that of the certificate {certificate}: give the pair that was made together"
    if b"-----BEGIN CERTIFICATE-----" not in _read("certificate", files.certificate):
        return f"the certificate file {certificate} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)"
    if b"PRIVATE KEY-----" not in _read("key", files.key):
        return f"the key file {key} holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)"
    return f"the certificate {certificate} and the key {key} can't be used: {error.reason or error}"


def _read(what: str, path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise FastRNNError(f"the {what} file {_shown(path)} can't be read: {error.strerror}") from None


def _shown(path: Path) -> str:
    return repr(os.fspath(path))
