"""`fastrnn serve`: models behind HTTP, gRPC and WebSocket, for live sequences."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import fastrnn

from . import options, serve_guard, workers
from .output import print_json, print_line

EXAMPLE = """\
example:
  fastrnn serve silero.onnx --bind sr=16000
  fastrnn serve vad=silero.onnx vad@2=silero-v6.onnx words=examples/tone_words.onnx
  fastrnn serve vad=silero.onnx --store redis://localhost:6379/0
  fastrnn serve model.fastrnn --host 0.0.0.0 --http-port 8080 --idle-timeout 300
"""


COLLECT_AFTER = 100_000  # objects more than before; by default 700, which the messages of one tick are


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="a model file, or NAME=FILE; NAME@2=FILE is version 2 of NAME. Without a name it is that of the file",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 127.0.0.1, this machine alone, by default"
    )
    port = options.whole(0, 65535)
    parser.add_argument("--http-port", metavar="PORT", type=port, default=8000, help="8000 by default; 0: any free one")
    parser.add_argument("--grpc-port", metavar="PORT", type=port, default=8001, help="8001 by default; 0: any free one")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=options.whole(1, 256),
        default=1,
        help="processes that serve; a hash of its id decides which one keeps a sequence; 1 by default. They share "
        "--max-sequences; limits of clients and connections are those of each process",
    )
    _add_sequences(parser)
    parser.add_argument(
        "--access-log",
        choices=("json", "text", "off"),
        default="off",
        help="write a line for each request, or connection with many, to stderr; off by default",
    )
    serve_guard.add(parser)
    options.add_loading(parser)
    options.add_common(parser)


def _add_sequences(parser: argparse.ArgumentParser) -> None:
    many = options.whole(1, 1 << 30)
    parser.add_argument(
        "--idle-timeout",
        metavar="S",
        type=options.positive,
        default=60.0,
        help="seconds after the last step of a sequence until it is ended; 60 by default",
    )
    parser.add_argument(
        "--max-sequences", metavar="N", type=many, default=10_000, help="live sequences of a model; 10,000 by default"
    )
    parser.add_argument(
        "--queue-size",
        metavar="N",
        type=many,
        default=32,
        help="requests of one sequence that may wait behind the one that runs; 32 by default",
    )
    parser.add_argument(
        "--max-delay",
        metavar="S",
        type=options.seconds,
        default=0.002,
        help="seconds that a step may wait for steps of other sequences, to run with them; 0.002 by default",
    )
    parser.add_argument(
        "--tick-rows",
        metavar="N",
        type=many,
        help="steps that run together if more wait, shared evenly by clients; 64 a thread or those of 2 ms by default",
    )
    parser.add_argument(
        "--strict-sequences", action="store_true", help="refuse START on a live sequence; otherwise it begins anew"
    )
    parser.add_argument(
        "--store",
        metavar="URL",
        help="where sequences outlive the server: a folder, redis://HOST:PORT/0, s3://BUCKET/FOLDER or another URL of "
        "fsspec. The server goes on with sequences that it finds there",
    )
    parser.add_argument(
        "--checkpoint-seconds",
        metavar="S",
        type=options.positive,
        default=1.0,
        help="seconds between two writes of a sequence to the store while it steps; 1 by default",
    )
    parser.add_argument(
        "--drain-seconds",
        metavar="S",
        type=options.seconds,
        default=0.0,
        help="seconds after SIGTERM in which live sequences may go on; 0 by default. A second signal ends the wait",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Returns 0."""
    try:
        fastrnn.serving.Server  # noqa: B018  # its libraries are imported here, before the models take their time
    except ImportError as error:
        raise fastrnn.FastRNNError(f"fastrnn serve: {error}") from None
    if args.http_port == args.grpc_port != 0:
        raise fastrnn.ShapeError(f"--http-port and --grpc-port are both {args.http_port}: give each a port of its own")
    if args.access_log != "off":
        _log_to_stderr()
    with serve_guard.deaf_to_sighup():
        models = _loaded(args)
        if args.workers == 1:
            return _runner()(_serve(args, models))
        return _run_workers(args, models)


def _run_workers(args: argparse.Namespace, models: dict[str, dict[int, fastrnn.Model]]) -> int:
    """Serve with several processes."""
    kept = [workers.reserved(args.host, port) for port in (args.http_port, args.grpc_port)]
    args.http_port, args.grpc_port = (s.getsockname()[1] for s in kept)
    kept += [workers.claimed(args.host, port) for port in (args.http_port, args.grpc_port)]
    args.max_sequences = -(-args.max_sequences // args.workers)
    workers.warm(models)

    def work(k: int, folder: Path, serves: int, alive: int) -> int:
        return _runner()(_serve(args, models, (folder, k, args.workers), serves, alive))

    return workers.Workers(args.workers, work, lambda: _tell(args, models, args.http_port, args.grpc_port)).run()


def _runner() -> Callable[[Coroutine[Any, Any, int]], int]:
    """uvloop's if it is installed: a message takes a fifth less time there. Otherwise asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


def _log_to_stderr() -> None:
    """Write the lines of the access log as they are."""
    log = logging.getLogger("fastrnn.access")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _loaded(args: argparse.Namespace) -> dict[str, dict[int, fastrnn.Model]]:
    """Name -> version -> model."""
    found: dict[str, dict[int, fastrnn.Model]] = {}
    for text in args.models:
        name, version, file = _named(text)
        if version in found.setdefault(name, {}):
            raise fastrnn.ShapeError(f"{name}@{version} is given twice: give each model its own name or version")
        found[name][version] = options.load(argparse.Namespace(**{**vars(args), "model": file}))
    return found


def _named(text: str) -> tuple[str, int, str]:
    """(name, version, file) of "FILE", "NAME=FILE" or "NAME@2=FILE"."""
    name, sign, file = text.partition("=")
    if not sign or Path(text).exists():
        return Path(text).name.split(".")[0], 1, text
    name, at, version = name.partition("@")
    if not name or "/" in name or not file or (at and not re.fullmatch("[1-9][0-9]{0,8}", version)):
        raise fastrnn.ShapeError(f"expected FILE, NAME=FILE or NAME@2=FILE, got {text!r}")
    return name, int(version) if at else 1, file


async def _serve(
    args: argparse.Namespace,
    models: dict[str, dict[int, fastrnn.Model]],
    worker: tuple[Path, int, int] | None = None,
    serves: int = -1,
    alive: int = -1,
) -> int:
    """Serve until a signal. Of a worker: `serves` gets a byte when it does, `alive` is at its end when the parent has
    gone."""
    ended, hurry = asyncio.Event(), asyncio.Event()  # the first signal, and the second
    loop = asyncio.get_running_loop()
    server = _server(args, models, worker)
    async with AsyncExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.enter_context(serve_guard.heard(number, lambda: (hurry if ended.is_set() else ended).set()))
        stack.enter_context(serve_guard.reload_at_sighup(server))
        await stack.enter_async_context(server)
        gc.collect()
        gc.freeze()  # what is here stays: a full collection would look at all of it, and stop the steps for 50 ms
        gc.set_threshold(COLLECT_AFTER, 10, 10)
        if worker is None:
            _tell(args, models, server.http_port, server.grpc_port)
        else:
            os.write(serves, b"1")
            loop.add_reader(alive, ended.set)
        await ended.wait()
        if worker is not None:
            loop.remove_reader(alive)
        waits = {asyncio.ensure_future(server.drain(args.drain_seconds)), asyncio.ensure_future(hurry.wait())}
        _, left = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in left:
            wait.cancel()
    return 0


def _server(args: argparse.Namespace, models: dict, worker: tuple[Path, int, int] | None) -> fastrnn.serving.Server:
    """The server of these options."""
    return fastrnn.serving.Server(
        models,
        host=args.host,
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        idle_timeout=args.idle_timeout,
        max_sequences=args.max_sequences,
        queue_size=args.queue_size,
        max_delay=args.max_delay,
        tick_rows=args.tick_rows,
        strict_sequences=args.strict_sequences,
        access_log=args.access_log,
        store=args.store,
        checkpoint_seconds=args.checkpoint_seconds,
        profile=fastrnn.profile,
        worker=worker,
        **serve_guard.settings(args),
    )


def _tell(args: argparse.Namespace, models: dict, http_port: int | None, grpc_port: int | None) -> None:
    """Say where it listens, once it does."""
    names = [f"{name}@{version}" for name, versions in models.items() for version in versions]
    host = f"[{args.host}]" if ":" in args.host else args.host
    told = {"models": names, "http": f"{host}:{http_port}", "grpc": f"{host}:{grpc_port}"}
    if args.json:
        print_json(told)
    else:
        scheme = "https" if args.tls_cert else "http"
        print_line(f"serving {', '.join(names)}: {scheme}://{told['http']}/v2, gRPC {told['grpc']}")
    sys.stdout.flush()  # a file or a pipe would get it at the end
