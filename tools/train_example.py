"""Train the example model, a detector of tone words, and export it to examples/tone_words.onnx.

Run by hand with torch 2.13 (CPU), onnx and onnxscript; about two minutes on one core; the result is committed:

    python tools/train_example.py                 # train, print held-out accuracy, export
    python tools/train_example.py --steps 20 --signals 50 --out small.onnx

The model hears 100 frames a second of 20 log bands (examples/features.py) and gives, each frame, the probability that
each of three words (examples/tones.py) has just ended: Linear 20 -> 32, ReLU, GRU 56, Linear, Sigmoid. A word's target
is 1 for SHOUT frames from its end; the GUARD frames around both edges do not count.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from features import BANDS, HOP, features
from make_torch_fixtures import strip
from tones import NAMES, PITCHES, Event, detections, score, synthesise

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 3.0  # length of one training signal
SHOUT, GUARD = 15, 4  # frames


class ToneWords(nn.Module):
    """[batch, time, BANDS] -> [batch, time, words], probabilities."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(BANDS, 32)
        self.rnn = nn.GRU(32, 56, batch_first=True)
        self.out = nn.Linear(56, len(NAMES))
        self.order = nn.Linear(56, 3 * (len(PITCHES) + 1))  # for training only, see tone_order

    def hidden(self, x):
        return self.rnn(torch.relu(self.into(x)))[0]

    def forward(self, x):
        return torch.sigmoid(self.out(self.hidden(x)))


def targets(events: list[Event], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The targets, and the frames where they count: float32 [frames, words] each."""
    wanted, counts = np.zeros((2, frames, len(NAMES)), np.float32)
    counts += 1
    for event in events:
        if event.word >= 0:
            end = event.end // HOP
            counts[end - GUARD : end + GUARD + SHOUT] = 0
            wanted[end + GUARD : end + SHOUT, event.word] = 1
            counts[end + GUARD : end + SHOUT] = 1
    return wanted, counts


def tone_order(events: list[Event], frames: int) -> np.ndarray:
    """The last three tones of the phrase, newest first, for 8 frames from each tone's end.

    int64 [frames, 3]: an index into PITCHES, len(PITCHES) if the phrase had not begun, -1 if the frame does not count.
    """
    order = np.full((frames, 3), -1)
    for event in events:
        last = [len(PITCHES)] * 3
        for pitch, end in event.tones:
            last = [PITCHES.index(pitch), *last[:2]]
            order[end // HOP + 1 : end // HOP + 9] = last
    return order


def dataset(n: int, random: np.random.Generator):
    """n signals as tensors: features [n, frames, BANDS], and the results of `targets` and `tone_order` for each."""
    rows = []
    for _ in range(n):
        signal, events = synthesise(SECONDS, random)
        x = features(signal)
        rows.append((x, *targets(events, len(x)), tone_order(events, len(x))))
    return [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]


def train(steps: int, seed: int, signals: int) -> ToneWords:
    """A trained model; the same seed gives the same model on the same machine and torch."""
    torch.manual_seed(seed)
    x, wanted, counts, order = dataset(signals, np.random.default_rng(seed))
    model = ToneWords()
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    picks = np.random.default_rng(seed + 1)
    for step in range(steps):
        rows = torch.from_numpy(picks.choice(len(x), min(48, len(x)), replace=False))
        hidden = model.hidden(x[rows])
        loss = nn.functional.binary_cross_entropy_with_logits(
            model.out(hidden), wanted[rows], weight=counts[rows] * (1 + wanted[rows])
        )
        # Without this second task, the model learns only how a word ends and accepts other tones before it: 2 to 5
        # false alarms per minute instead of 0.1.
        guesses = model.order(hidden).unflatten(-1, (3, len(PITCHES) + 1)).flatten(0, 2)
        loss = loss + 0.2 * nn.functional.cross_entropy(guesses, order[rows].flatten(), ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:4} of {steps}, loss {loss.item():.4f}", flush=True)
    return model.eval()


def evaluate(model: ToneWords, seed: int, signals: int = 200) -> None:
    """Print the detections in unseen signals, at four noise levels."""
    for snr_db in (0, 5, 10, 20):
        random = np.random.default_rng([seed, snr_db])
        total = np.zeros(3, int)
        for _ in range(signals):
            signal, events = synthesise(SECONDS, random, snr_db)
            with torch.no_grad():
                y = model(torch.from_numpy(features(signal))[None])[0].numpy()
            total += score(detections(y), events)
        words, heard, false = total
        minutes = signals * SECONDS / 60
        rate = f"{false / minutes:.2f} false alarms a minute"
        print(f"SNR {snr_db:2} dB: heard {heard} of {words} words ({heard / words:.1%}), {rate}")


def export(model: ToneWords, path: Path) -> None:
    """Write the model with PyTorch's own exporter, batch and time free."""
    logging.disable(logging.WARNING)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 7, BANDS),),
            None,
            dynamo=True,
            dynamic_shapes=(free,),
            input_names=["bands"],
            output_names=["words"],
            verbose=False,
        )
    proto = program.model_proto  # rebuilt at every access
    strip(proto)
    onnx.save(proto, path)
    print(f"{path}: {path.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--signals", type=int, default=2400, help="training signals")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "examples" / "tone_words.onnx")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = train(args.steps, args.seed, args.signals)
    evaluate(model, args.seed + 100)
    export(model, args.out)


if __name__ == "__main__":
    main()
