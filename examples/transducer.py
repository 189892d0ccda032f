"""Recognise speech with a transducer (RNN-T): one call with streams, or a hundred calls at once in a pool.

    python examples/transducer.py                    # 100 toy calls, each at its own pace
    python examples/transducer.py --predictor lstm
    python examples/transducer.py --models FOLDER    # encoder.onnx, decoder.onnx and joiner.onnx of your own

The three files have the names and interfaces of icefall and sherpa-onnx: `x -> encoder_out`, `y -> decoder_out`, and
`encoder_out, decoder_out -> logit`. The decoder's metadata has `context_size` and `vocab_size`. The encoder returns one
step per frame. The decoder is stateless (an embedding and a convolution over the last symbols), or has states, such as
an LSTM. Without --models, toy models are written to a temporary folder (make_transducer.py).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import fastrnn

BLANK = 0


class Transducer:
    """Three models that share their weights among all calls."""

    def __init__(self, folder):
        self.encoder, self.decoder, self.joiner = (
            fastrnn.load(Path(folder) / f"{name}.onnx") for name in ("encoder", "decoder", "joiner")
        )
        self.context = int(self.decoder.metadata["context_size"])
        self.stateful = self.decoder.streamable  # an LSTM; else the last symbols are all that it needs


class Call:
    """One call: a stream for the encoder, and one for the decoder if that has states."""

    def __init__(self, model: Transducer):
        self.model, self.encoder = model, model.encoder.stream()
        self.decode = model.decoder.stream().step if model.stateful else lambda y: model.decoder(y[None])[0]
        self.symbols = [BLANK] * model.context
        self.said = self._said()

    def _said(self) -> np.ndarray:
        """The decoder's output after the symbols so far."""
        return self.decode(np.array(self.symbols[-self.model.context :]))

    def step(self, frame: np.ndarray) -> int:
        """Take one frame [features]; returns the symbol that it completes, or BLANK."""
        heard = self.encoder.step(frame)
        symbol = int(self.model.joiner(heard[None], self.said[None])[0].argmax())
        if symbol != BLANK:
            self.symbols.append(symbol)
            self.said = self._said()
        return symbol


class Calls:
    """Many calls in pools. A slot of the encoder's pool is the name of a call."""

    def __init__(self, model: Transducer, capacity: int):
        self.model, self.encoder = model, model.encoder.pool(capacity)
        self.decoder = model.decoder.pool(capacity) if model.stateful else None
        self.slots: dict[int, int] = {}  # call -> its slot in the decoder's pool
        self.symbols: dict[int, list[int]] = {}
        self.said: dict[int, np.ndarray] = {}  # call -> the decoder's output after its symbols so far

    def open(self) -> int:
        call = self.encoder.open()
        self.symbols[call] = [BLANK] * self.model.context
        if self.decoder is not None:
            self.slots[call] = self.decoder.open()
        self._decode([call])
        return call

    def close(self, call: int) -> list[int]:
        """End a call; returns its symbols."""
        self.encoder.close(call)
        if self.decoder is not None:
            self.decoder.close(self.slots.pop(call))
        del self.said[call]
        return self.symbols.pop(call)[self.model.context :]

    def step(self, calls: list[int], frames: np.ndarray) -> dict[int, int]:
        """Take one frame of each of these calls, [calls, features]; returns {call: symbol} of those with a new one."""
        heard = self.encoder.step(calls, frames)
        logit = self.model.joiner(heard, np.stack([self.said[call] for call in calls]))
        new = {call: int(k) for call, k in zip(calls, logit.argmax(1), strict=True) if k != BLANK}
        for call, symbol in new.items():
            self.symbols[call].append(symbol)
        self._decode(list(new))
        return new

    def _decode(self, calls: list[int]) -> None:
        """Step the decoder, only for the calls that have a new symbol."""
        if not calls:
            return
        y = np.array([self.symbols[call][-self.model.context :] for call in calls])
        if self.decoder is None:
            self.said.update(zip(calls, self.model.decoder(y), strict=True))
        else:
            self.said.update(zip(calls, self.decoder.step([self.slots[call] for call in calls], y), strict=True))


def alone(model: Transducer, frames: np.ndarray) -> list[int]:
    """The symbols of one call of frames [steps, features]."""
    call = Call(model)
    return [symbol for symbol in map(call.step, frames) if symbol != BLANK]


def together(model: Transducer, sounds: list[np.ndarray], rng: np.random.Generator) -> list[list[int]]:
    """The symbols of many calls, whose frames arrive at different times."""
    calls = Calls(model, len(sounds))
    at = {calls.open(): 0 for _ in sounds}
    sound = dict(zip(at, sounds, strict=True))
    found = {}
    while at:
        ready = [call for call in at if rng.random() < 0.7]  # frames of the others are still on their way
        if ready:
            calls.step(ready, np.stack([sound[call][at[call]] for call in ready]))
        for call in ready:
            at[call] += 1
            if at[call] == len(sound[call]):
                found[call] = calls.close(call)
                del at[call]
    return [found[call] for call in sound]


def main() -> None:
    parser = argparse.ArgumentParser(description="Recognise calls with a transducer.")
    parser.add_argument("--models", help="folder of encoder.onnx, decoder.onnx and joiner.onnx")
    parser.add_argument("--predictor", choices=("stateless", "lstm"), default="stateless", help="of the toy models")
    parser.add_argument("--calls", type=int, default=100)
    args = parser.parse_args()
    import make_transducer

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        model = Transducer(args.models or make_transducer.write(folder, args.predictor))
    texts, sounds = zip(*(make_transducer.say(rng) for _ in range(args.calls)), strict=True)
    start = time.perf_counter()
    found = together(model, list(sounds), rng)
    seconds, steps = time.perf_counter() - start, sum(map(len, sounds))
    for text, symbols in list(zip(texts, found, strict=True))[:5]:
        print(f"said {make_transducer.text(text):12} heard {make_transducer.text(symbols)}")
    right = sum(symbols == text for text, symbols in zip(texts, found, strict=True))
    each = seconds / steps * 1e6
    print(f"{right} of {len(texts)} calls right; {steps} frames in {seconds:.2f} s: {each:.1f} us each")


if __name__ == "__main__":
    main()
