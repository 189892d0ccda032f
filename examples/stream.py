"""Listen for tone words live: step the features of a synthetic signal through the model and draw a bar per word.

    python examples/stream.py                        # 20 seconds in real time, as from a microphone
    python examples/stream.py --seconds 60 --snr 3 --seed 7
    python examples/stream.py --fast | grep missed   # as fast as possible, plain lines in a pipe

Every 10 ms, one frame of 20 features goes in and three probabilities come out. The stream keeps the model's state. A
terminal shows the truth next to each bar; a pipe gets one line per word. The exit code is 0, or 1 with --strict if a
word was missed or a false one was heard.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
from features import HOP, RATE, LiveFeatures
from tones import NAMES, Ear, matches, score, synthesise

import fastrnn

MODEL = Path(__file__).resolve().parent / "tone_words.onnx"
SETTLE = int(0.3 * RATE)  # samples after a word's end in which it still counts as heard


class Listener:
    """One live stream: takes sound, returns detections, and keeps a list of them."""

    def __init__(self, path):
        self.stream = fastrnn.load(path).stream()
        self.live, self.ear = LiveFeatures(), Ear()
        self.words = np.zeros(len(NAMES), np.float32)  # the newest probabilities
        self.found: list[tuple[int, int]] = []  # (frame, word)
        self.frame = -1
        self.step_seconds: list[float] = []  # time spent in each step of the model

    def push(self, samples: np.ndarray) -> list[int]:
        """Process HOP samples; returns the words recognised in this frame."""
        bands = self.live.push(samples)
        start = time.perf_counter()
        self.stream.step(bands, out=self.words)
        self.step_seconds.append(time.perf_counter() - start)
        self.frame += 1
        heard = self.ear.hear(self.words)
        self.found += [(self.frame, word) for word in heard]
        return heard

    def step_median(self) -> float:
        """Median time of a step so far, in microseconds."""
        return float(np.median(self.step_seconds)) * 1e6 if self.step_seconds else 0.0


def frames(signal: np.ndarray, fast: bool):
    """Yields pieces of HOP samples, each when a sound card would deliver it, or at once if `fast`."""
    start = time.perf_counter()
    for number in range(len(signal) // HOP):
        if not fast:
            time.sleep(max(0.0, start + (number + 1) * HOP / RATE - time.perf_counter()))
        yield signal[number * HOP : (number + 1) * HOP]


def sentence(frame: int, word: int, probability: float, events) -> str:
    """The line for a detection: right, or a false alarm."""
    at = (frame + 1) * HOP / RATE
    for event in events:
        if matches(frame, word, event):
            return f"{at:6.2f} s  heard {NAMES[word]:4}  p {probability:.2f}  right: ended at {event.end / RATE:.2f} s"
    return f"{at:6.2f} s  heard {NAMES[word]:4}  p {probability:.2f}  false alarm"


def missed(event) -> str:
    """The line for a word that was not heard."""
    return f"{event.end / RATE:6.2f} s  missed {NAMES[event.word]}"


class Judge:
    """Compares detections with the truth over time and formats the result."""

    def __init__(self, events):
        self.events = events
        self.pending = deque(e for e in events if e.word >= 0)

    def lines(self, listener: Listener, heard: list[int]) -> list[str]:
        """Lines to print after a frame: words heard in it, and missed words whose time has just passed."""
        out = [sentence(listener.frame, w, float(listener.words[w]), self.events) for w in heard]
        now = (listener.frame + 1) * HOP
        while self.pending and now > self.pending[0].end + SETTLE:
            event = self.pending.popleft()
            if not any(matches(*f, event) for f in listener.found):
                out.append(missed(event))
        return out

    def sounding(self, sample: int) -> int | None:
        """Index of the word that sounds now or ended less than SETTLE ago; -1 for a distractor, None for silence."""
        for event in self.events:
            if event.start <= sample <= event.end + (SETTLE if event.word >= 0 else 0):
                return event.word
        return None


def run_plain(listener: Listener, signal, judge: Judge, fast: bool) -> None:
    """Prints one line per word, for pipes and files."""
    for samples in frames(signal, fast):
        for line in judge.lines(listener, listener.push(samples)):
            print(line, flush=True)


def picture(listener: Listener, judge: Judge, log, seconds: float):
    """The terminal view: a bar per word with the truth next to it, then the latest lines."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    now = (listener.frame + 1) * HOP
    truth = judge.sounding(now)
    table = Table.grid(padding=(0, 2))
    table.add_column(width=6)
    table.add_column(width=42)
    table.add_column(width=5, justify="right")
    table.add_column()
    for word, name in enumerate(NAMES):
        probability = float(listener.words[word])
        sign = Text("● sounds", style="yellow") if truth == word else Text("")
        style = "green" if probability >= listener.ear.threshold else "cyan"
        bar = ProgressBar(total=1.0, completed=probability, width=40, complete_style=style, finished_style=style)
        table.add_row(Text(name, style="bold"), bar, f"{probability:.2f}", sign)
    table.add_row("", Text("something else sounds" if truth == -1 else "", style="dim"), "", "")
    foot = f"{now / RATE:5.1f} of {seconds:.0f} s   one step of the model: {listener.step_median():.1f} µs of 10,000"
    body = Group(table, *[Text(line, style="red" if bad(line) else "green") for line in log])
    return Panel(body, title="tone words", subtitle=foot, width=78, height=6 + log.maxlen)


def bad(line: str) -> bool:
    """Whether a line of the log reports a mistake."""
    return "missed" in line or "false alarm" in line


def run_drawn(listener: Listener, signal, judge: Judge, fast: bool, seconds: float) -> None:
    """Draws the bars, 20 times per second."""
    from rich.live import Live

    log: deque[str] = deque(maxlen=8)
    with Live(picture(listener, judge, log, seconds), auto_refresh=False) as live:
        for samples in frames(signal, fast):
            log.extend(judge.lines(listener, listener.push(samples)))
            if listener.frame % 5 == 4:
                live.update(picture(listener, judge, log, seconds), refresh=True)


def arguments(argv) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="example: python examples/stream.py --seconds 60 --snr 3"
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="the model file (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to listen (default: %(default)s)")
    parser.add_argument("--snr", type=float, default=10.0, help="signal-to-noise ratio in dB (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the signal (default: %(default)s)")
    parser.add_argument("--fast", action="store_true", help="run as fast as possible, not in real time")
    parser.add_argument("--plain", action="store_true", help="print lines instead of drawing, also in a terminal")
    parser.add_argument("--strict", action="store_true", help="exit 1 after a mistake")
    args = parser.parse_args(argv)
    if not args.seconds > 0:
        parser.error(f"--seconds must be positive, got {args.seconds}")
    return args


def main(argv=None) -> int:
    args = arguments(argv)
    signal, events = synthesise(args.seconds, np.random.default_rng(args.seed), args.snr)
    listener, judge = Listener(args.model), Judge(events)
    try:
        if args.plain or not sys.stdout.isatty():
            run_plain(listener, signal, judge, args.fast)
        else:
            run_drawn(listener, signal, judge, args.fast, args.seconds)
    except KeyboardInterrupt:
        events = [e for e in events if e.end + SETTLE <= (listener.frame + 1) * HOP]
    words, heard, false = score(listener.found, events)
    sound = f"{(listener.frame + 1) * HOP / RATE:.1f} s of sound"
    print(f"heard {heard} of {words} words, {false} false alarms, in {sound}; ", end="")
    print(f"one step of the model took {listener.step_median():.1f} us")
    return int(args.strict and (heard < words or false > 0))


if __name__ == "__main__":
    sys.exit(main())
