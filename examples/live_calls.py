"""A thousand calls at once: callers come, speak and hang up. Each has a slot of one pool, stepped in real time.

    python examples/live_calls.py                        # 1,000 callers for 20 seconds
    python examples/live_calls.py --callers 200 --seconds 60 --seed 7
    python examples/live_calls.py --fast --seconds 2 | cat    # as fast as possible, one line per second
    python examples/live_calls.py --model silero_vad_v5.onnx --bind sr=16000 --size 576 --hop-ms 32

Every 10 ms each speaking caller delivers one frame, and one call of the pool steps them all. A terminal shows the calls
in progress, the time of a step and its share of the 10 ms. A pipe gets one line per second.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import fastrnn

MODEL = Path(__file__).resolve().parent / "tone_words.onnx"
COME, HANG_UP = 0.02, 0.001  # probabilities per frame: an absent caller calls, a present one hangs up
SPEAK, PAUSE = 0.02, 0.01  # probabilities per frame: a silent caller starts to speak, a speaking one pauses
BANK = 2000  # frames of speech; each caller starts at another one
WINDOW = 500  # frames in the displayed figures


class Callers:
    """Which callers are on the line, in which slot, and the next frame of each."""

    def __init__(self, pool, bank: np.ndarray, count: int, rng):
        self.pool, self.bank, self.rng = pool, bank, rng
        self.slots = np.zeros(count, np.int64)  # 0: not on the line
        self.speaks = np.zeros(count, bool)
        self.at = rng.integers(0, len(bank), count)

    def live(self) -> tuple[np.ndarray, np.ndarray]:
        """Advance by one frame; returns the slots of the speaking callers [n] and their frames [n, features...]."""
        chance = self.rng.random(len(self.slots))
        away = self.slots == 0
        for i in np.flatnonzero(away & (chance < COME)):
            self.slots[i], self.speaks[i] = self.pool.open(), False
        for i in np.flatnonzero(~away & (chance < HANG_UP)):
            self.pool.close(self.slots[i])
            self.slots[i], self.speaks[i] = 0, False
        turn = self.rng.random(len(self.slots))
        self.speaks = (self.slots != 0) & np.where(self.speaks, turn >= PAUSE, turn < SPEAK)
        now = np.flatnonzero(self.speaks)
        self.at[now] = (self.at[now] + 1) % len(self.bank)
        return self.slots[now], self.bank[self.at[now]]


class Figures:
    """The figures of each frame so far: callers on the line, callers speaking, and the time of the step."""

    def __init__(self, hop: float):
        self.hop = hop
        self.lines: list[tuple[int, int, float]] = []

    def quantile(self, q: float) -> float:
        """Quantile of the step time over the last frames, in ms."""
        return 1e3 * float(np.quantile([t for _, _, t in self.lines[-WINDOW:]], q))

    def load(self) -> float:
        """Share of real time that the steps took."""
        return float(np.mean([t for _, _, t in self.lines[-WINDOW:]])) / self.hop

    def text(self) -> str:
        """The current figures as one line."""
        calls, speaking, _ = self.lines[-1]
        head = f"{len(self.lines) * self.hop:6.1f} s  {calls:5} calls, {speaking:5} speak"
        times = f"step p50 {self.quantile(0.5):.3f} ms  p99 {self.quantile(0.99):.3f} ms"
        return f"{head}  {times}  load {self.load():.1%}"


def frames_for(model, size: int | None, rng) -> np.ndarray:
    """[BANK, features...]: features of tone words for the example model, noise for any other."""
    (info,) = [i for i in model.inputs if i.name not in model.graph.states]
    shape = [d if isinstance(d, int) else size for d in info.dims if d not in ("batch", "time")]
    if None in shape:
        raise SystemExit(f"{info} leaves a size open: pass it with --size")
    if Path(model.name).stem == "tone_words" or shape == [20]:
        from features import HOP, LiveFeatures
        from tones import synthesise

        live, (signal, _) = LiveFeatures(), synthesise(BANK * 0.01, rng, 10.0)
        pieces = signal[: len(signal) // HOP * HOP].reshape(-1, HOP)
        return np.stack([live.push(p) for p in pieces])
    return (0.1 * rng.standard_normal((BANK, *shape))).astype(np.float32)


def picture(figures: Figures, callers: Callers):
    """The terminal view: bars for calls, speakers and load, and the newest figures."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    calls, speaking, _ = figures.lines[-1]
    busy = figures.load()
    table = Table.grid(padding=(0, 2))
    for name, value, total, text in (
        ("calls", calls, len(callers.slots), f"{calls} of {len(callers.slots)}"),
        ("speak", speaking, max(calls, 1), f"{speaking}"),
        ("load", busy, 1.0, f"{busy:.1%} of a core"),
    ):
        table.add_row(Text(name, style="bold"), ProgressBar(total=total, completed=min(value, total), width=40), text)
    times = f"one step for all: p50 {figures.quantile(0.5):.3f} ms, p99 {figures.quantile(0.99):.3f} ms"
    memory = f"states: {callers.pool.memory_bytes / 2**20:.1f} MiB for {callers.pool.capacity} slots"
    return Panel(Group(table, Text(times), Text(memory, style="dim")), title="live calls", width=78)


def run(callers: Callers, figures: Figures, seconds: float, fast: bool, show) -> None:
    """Run the frames, each when it is due, or at once if `fast`; call show() at intervals."""
    start, every = time.perf_counter(), max(1, round((1.0 if show is None else 0.1) / figures.hop))
    for frame in range(round(seconds / figures.hop)):
        if not fast:
            time.sleep(max(0.0, start + frame * figures.hop - time.perf_counter()))
        slots, x = callers.live()
        began = time.perf_counter()
        if len(slots):
            callers.pool.step(slots, x)
        figures.lines.append((len(callers.pool), len(slots), time.perf_counter() - began))
        if (frame + 1) % every == 0:
            if show is None:
                print(figures.text(), flush=True)
            else:
                show()


def arguments(argv) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="example: python examples/live_calls.py --callers 200 --seconds 60"
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="the model file (default: %(default)s)")
    parser.add_argument("--bind", action="append", default=[], metavar="NAME=INT", help="fix an input of the model")
    parser.add_argument("--size", type=int, help="the size of a frame, if the model leaves it open")
    parser.add_argument("--callers", type=int, default=1000, help="number of callers (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to run (default: %(default)s)")
    parser.add_argument("--hop-ms", type=float, default=10.0, help="duration of a frame (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the callers (default: %(default)s)")
    parser.add_argument("--fast", action="store_true", help="run as fast as possible, not in real time")
    parser.add_argument("--plain", action="store_true", help="print lines instead of drawing, also in a terminal")
    args = parser.parse_args(argv)
    if args.callers < 1 or not args.seconds > 0 or not args.hop_ms > 0:
        parser.error("--callers, --seconds and --hop-ms must be positive")
    return args


def main(argv=None) -> int:
    args = arguments(argv)
    bind = {name: int(value) for name, _, value in (text.partition("=") for text in args.bind)}
    model, rng = fastrnn.load(args.model, bind=bind or None), np.random.default_rng(args.seed)
    callers = Callers(model.pool(capacity=args.callers), frames_for(model, args.size, rng), args.callers, rng)
    figures = Figures(args.hop_ms / 1e3)
    try:
        if args.plain or not sys.stdout.isatty():
            run(callers, figures, args.seconds, args.fast, None)
        else:
            from rich.live import Live

            with Live(auto_refresh=False) as live:
                run(callers, figures, args.seconds, args.fast,
                    lambda: live.update(picture(figures, callers), refresh=True))  # fmt: skip
    except KeyboardInterrupt:
        pass
    steps = sum(n for _, n, _ in figures.lines)
    spent = sum(t for _, _, t in figures.lines)
    print(f"{steps} steps in {len(figures.lines)} frames; {1e6 * spent / max(steps, 1):.2f} us per step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
