"""The options of `fastrnn serve` that say who may use it, and how much of it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import fastrnn

from . import options

logger = logging.getLogger("fastrnn")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    many = options.whole(1, 1 << 30)
    group = parser.add_argument_group("who may use it", "the files are read again at SIGHUP")
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help="bearer tokens, one a line or NAME: TOKEN; every request but those for health then needs one",
    )
    group.add_argument("--tls-cert", metavar="FILE", help="certificate of the server, PEM; both ports then speak TLS")
    group.add_argument("--tls-key", metavar="FILE", help="its private key, PEM, without a password")
    group.add_argument(
        "--tls-client-ca", metavar="FILE", help="authorities whose certificates clients must have, PEM (mTLS)"
    )
    group.add_argument(
        "--allow-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="pages of another site that may use it, such as https://example.com, or '*'; may be repeated",
    )
    group.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a further name that it answers to on 127.0.0.1, besides addresses and names without a dot; may be "
        "repeated",
    )
    group = parser.add_argument_group("limits", "a client is the name of its token or certificate, or its address")
    group.add_argument(
        "--max-message-bytes",
        metavar="N",
        type=many,
        default=64 << 20,
        help="bytes of a request, decompressed; 67,108,864 by default",
    )
    group.add_argument(
        "--max-connections",
        metavar="N",
        type=many,
        default=10_000,
        help="open connections of a port; 10,000 by default",
    )
    group.add_argument(
        "--client-connections", metavar="N", type=many, help="connections of one address to the HTTP port"
    )
    group.add_argument("--client-streams", metavar="N", type=many, help="WebSockets and gRPC streams of one client")
    group.add_argument("--client-sequences", metavar="N", type=many, help="live sequences of one client, of a model")
    group.add_argument(
        "--client-rate",
        metavar="N",
        type=options.positive,
        help="requests of one client a second; further ones are refused, or wait on streams and WebSockets",
    )
    group.add_argument(
        "--client-burst", metavar="N", type=many, help="requests that may come at once; those of a second by default"
    )


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What `Server` takes of them."""
    files = (args.tls_cert, args.tls_key, args.tls_client_ca)
    if any(files) and not (args.tls_cert and args.tls_key):
        raise fastrnn.ShapeError("TLS needs both --tls-cert FILE and --tls-key FILE")
    return {
        "tls": fastrnn.serving.Tls(*files) if any(files) else None,
        "tokens": args.token_file,
        "origins": args.allow_origin,
        "hosts": args.allow_host,
        "client_sequences": args.client_sequences,
        "limits": fastrnn.serving.Limits(
            message_bytes=args.max_message_bytes,
            connections=args.max_connections,
            client_connections=args.client_connections,
            client_streams=args.client_streams,
            client_rate=args.client_rate,
            client_burst=args.client_burst,
        ),
    }


@contextmanager
def deaf_to_sighup() -> Iterator[None]:
    """SIGHUP ends no server that has not yet read the files: it reads those that are there then."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        if before is not None:  # None: it was set outside Python, which can't set it again
            signal.signal(signal.SIGHUP, before)


@contextmanager
def heard(number: int, tell: Callable[[], object]) -> Iterator[None]:
    """The running loop calls `tell` at a signal meanwhile. After that the signal does what it did before: a loop that
    is closed would keep Ctrl-C for ever, and without its handler a hangup would end a program under nohup."""
    loop, before = asyncio.get_running_loop(), signal.getsignal(number)
    loop.add_signal_handler(number, tell)
    try:
        yield
    finally:
        loop.remove_signal_handler(number)
        if before is not None:  # None: it was set outside Python, which can't set it again
            signal.signal(number, before)


def reload_at_sighup(server: fastrnn.serving.Server) -> AbstractContextManager[None]:
    """SIGHUP reads the files again meanwhile. If one is wrong, the log says so and the server goes on as before."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task] = set()  # the loop itself keeps only weak references

    def begin() -> None:
        task = loop.create_task(_reload(server))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return heard(signal.SIGHUP, begin)


async def _reload(server: fastrnn.serving.Server) -> None:
    try:
        await server.reload()
    except fastrnn.FastRNNError as error:
        logger.error("nothing was reloaded: %s", error)
    else:
        logger.info("tokens and certificates were read again")
