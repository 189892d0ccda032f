"""Toy models for transducer.py, with weights that are set by hand, and the sounds that they understand.

    python examples/make_transducer.py FOLDER        # writes encoder.onnx, decoder.onnx and joiner.onnx

A sound has one feature per symbol. A symbol is loud for a few frames, in noise. The encoder averages three frames. The
decoder remembers the last symbol, and the joiner says it once: tanh(encoder_out + decoder_out), with a number for blank
that only a new symbol exceeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

TOKENS = ["<blk>", *"abcdefghijklmnopqrstuvwxyz"]
VOCAB, LOUD = len(TOKENS), 4.0


def say(rng: np.random.Generator) -> tuple[list[int], np.ndarray]:
    """Some symbols, none twice in a row, and their sound [frames, VOCAB]."""
    symbols = [int(rng.integers(1, VOCAB))]
    for _ in range(rng.integers(2, 9)):
        symbols.append((symbols[-1] + int(rng.integers(1, VOCAB - 1)) - 1) % (VOCAB - 1) + 1)
    parts = [np.zeros((3, VOCAB))]
    for symbol in symbols:
        sounding = np.zeros((rng.integers(4, 9), VOCAB))
        sounding[:, symbol] = 1
        parts += [sounding, np.zeros((rng.integers(3, 7), VOCAB))]
    sound = np.concatenate(parts)
    return symbols, (sound + 0.03 * rng.standard_normal(sound.shape)).astype(np.float32)


def text(symbols) -> str:
    return "".join(TOKENS[symbol] for symbol in symbols)


def encoder() -> onnx.ModelProto:
    """x [N, T, VOCAB] -> encoder_out [N, T, VOCAB]: the mean of the last three frames, LOUD for a symbol."""
    W = np.zeros((VOCAB, 1, 3), np.float32) + LOUD / 3
    bias = np.zeros(VOCAB, np.float32)
    W[0], bias[0] = 0, np.arctanh(0.5)  # blank
    return _model(
        "encoder", f"float[N,T,{VOCAB}] x", f"float[N,T,{VOCAB}] encoder_out",
        f"""xt = Transpose <perm = [0, 2, 1]> (x) c = Conv <group = {VOCAB}, pads = [2, 0]> (xt, W, bias)
        encoder_out = Transpose <perm = [0, 2, 1]> (c)""",
        {"W": W, "bias": bias}, {"model_type": "toy"},
    )  # fmt: skip


def stateless_decoder() -> onnx.ModelProto:
    """y [N, 2] -> decoder_out [N, VOCAB]: an embedding, and a convolution over the last two symbols."""
    table = -LOUD * np.eye(VOCAB, dtype=np.float32)
    table[0] = 0
    W = np.zeros((VOCAB, 1, 2), np.float32)
    W[:, 0, 1] = 1
    return _model(
        "decoder", "int64[N,2] y", f"float[N,{VOCAB}] decoder_out",
        f"""e = Gather(table, y) et = Transpose <perm = [0, 2, 1]> (e) c = Conv <group = {VOCAB}> (et, W)
        decoder_out = Squeeze(c, last)""",
        {"table": table, "W": W, "last": np.int64([2])}, {"context_size": 2, "vocab_size": VOCAB},
    )  # fmt: skip


def lstm_decoder() -> onnx.ModelProto:
    """y [N, 1], h, c -> decoder_out [N, VOCAB] and the next h, c: an LSTM whose state is the last symbol."""
    table = np.eye(VOCAB, dtype=np.float32)
    table[0] = 0
    W, B = np.zeros((1, 4 * VOCAB, VOCAB), np.float32), np.zeros((1, 8 * VOCAB), np.float32)
    W[0, 3 * VOCAB :] = -9 * np.eye(VOCAB)  # gates i, o, f, c: in and out are open, and forget everything
    B[0, : 2 * VOCAB], B[0, 2 * VOCAB : 3 * VOCAB] = 9, -9
    state = f"float[1,N,{VOCAB}]"
    return _model(
        "decoder", f"int64[N,1] y, {state} h, {state} c",
        f"float[N,{VOCAB}] decoder_out, {state} h_out, {state} c_out",
        f"""e = Gather(table, y) et = Transpose <perm = [1, 0, 2]> (e)
        hs, h_out, c_out = LSTM <hidden_size = {VOCAB}> (et, W, R, B, , h, c)
        flat = Squeeze(h_out, first) decoder_out = Mul(flat, scale)""",
        {"table": table, "W": W, "R": np.zeros((1, 4 * VOCAB, VOCAB), np.float32), "B": B, "first": np.int64([0]),
         "scale": np.float32(LOUD / np.tanh(1))},
        {"context_size": 1, "vocab_size": VOCAB},
    )  # fmt: skip


def joiner() -> onnx.ModelProto:
    """encoder_out, decoder_out [N, VOCAB] -> logit [N, VOCAB]"""
    pair = f"float[N,{VOCAB}] encoder_out, float[N,{VOCAB}] decoder_out"
    body = "both = Add(encoder_out, decoder_out) t = Tanh(both) logit = MatMul(t, output)"
    return _model("joiner", pair, f"float[N,{VOCAB}] logit", body, {"output": np.eye(VOCAB, dtype=np.float32)}, {})


def _model(name: str, inputs: str, outputs: str, body: str, arrays: dict, metadata: dict) -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    model = onnx.parser.parse_model(f"{head} {name} ({inputs}) => ({outputs}) {{ {body} }}")
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), k) for k, a in arrays.items())
    onnx.helper.set_model_props(model, {k: str(v) for k, v in metadata.items()})
    return model


def write(folder, predictor: str = "stateless") -> Path:
    """Write the three models to a folder, and return it."""
    decoder = {"stateless": stateless_decoder, "lstm": lstm_decoder}[predictor]()
    for name, model in (("encoder", encoder()), ("decoder", decoder), ("joiner", joiner())):
        onnx.save(model, Path(folder) / f"{name}.onnx")
    return Path(folder)


if __name__ == "__main__":
    write(sys.argv[1])
