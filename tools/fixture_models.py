"""The PyTorch modules behind tests/data/onnx. Each tests one construct that exporters write in a special way.

Used by make_torch_fixtures.py. Sizes are small and odd on purpose (H = 20, 33, 5): not a multiple of any vector length.
"""

from __future__ import annotations

import torch
from fixture_modules import (
    BTF,
    TBF,
    CausalBlock,
    FeatureMean,
    FixtureModel,
    Folded,
    Gated,
    GivenGRU,
    GivenLSTM,
    Head,
    LastHidden,
    LastStates,
    LastStep,
    LearnedStart,
    Normed,
    Positions,
    Residual,
    Stepped,
    TimeMean,
    Two,
    TwoInputs,
    ZeroStart,
    floats,
    given_states,
    tokens,
)
from torch import nn

HEADS = {
    "gelu": (nn.Linear(20, 9), nn.GELU(), nn.Linear(9, 3), nn.Hardsigmoid()),
    "gelu_tanh": (nn.Linear(20, 9), nn.GELU(approximate="tanh"), nn.Linear(9, 3), nn.Tanh()),
    "relus": (
        nn.Linear(20, 9),
        nn.LeakyReLU(0.2),
        nn.Linear(9, 7),
        nn.ELU(0.7),
        nn.Linear(7, 5),
        nn.SELU(),
        nn.ReLU6(),
    ),
    "softs": (
        nn.Linear(20, 9),
        nn.Softplus(),
        nn.Linear(9, 7),
        nn.Softsign(),
        nn.Linear(7, 5),
        nn.SiLU(),
        nn.Hardswish(),
    ),
    "prelu_mish": (nn.Linear(20, 9), nn.PReLU(init=0.1), nn.Linear(9, 7), nn.Mish(), nn.Hardtanh(-0.5, 0.8)),
}


def head_models() -> dict[str, FixtureModel]:
    """A GRU with one chain of activations each."""
    axes = {"x": (*BTF, 6)}
    sizes = {"gelu": 3, "gelu_tanh": 3, "relus": 5, "softs": 5, "prelu_mish": 7}
    return {
        f"head_{name}": FixtureModel(
            f"GRU 20 and {', '.join(type(m).__name__ for m in after)}",
            lambda after=after: Head(nn.GRU(6, 20, batch_first=True), *after),
            floats(BTF, 6),
            axes | {"y": (*BTF, sizes[name])},
            ways=("dynamo", "script"),
        )
        for name, after in HEADS.items()
    }


def _simple(about, build, layout, features, out, **more) -> FixtureModel:
    return FixtureModel(about, build, floats(layout, features), {"x": (*layout, features), "y": (*layout, out)}, **more)


USUAL = ("dynamo", "dynamo_frozen", "script", "script_frozen")
OLD, OLDEST = (*USUAL, "script_op11"), (*USUAL, "script_op9")
MANY = (*USUAL, "dynamo_b1", "dynamo_batch", "script_op11")


MODELS: dict[str, FixtureModel] = {
    "lstm_stacked": _simple(
        "two LSTM layers of 20 with dropout between them (off), Linear, Sigmoid; batch first",
        lambda: Head(nn.LSTM(8, 20, 2, batch_first=True, dropout=0.2), nn.Linear(20, 3), nn.Sigmoid()),
        BTF,
        8,
        3,
        ways=MANY,
    ),
    "lstm_time_major": _simple("one LSTM layer of 33, time first", lambda: Head(nn.LSTM(5, 33)), TBF, 5, 33, ways=OLD),
    "lstm_no_bias": _simple(
        "LSTM 20 without bias",
        lambda: Head(nn.LSTM(5, 20, bias=False), nn.Linear(20, 2)),
        TBF,
        5,
        2,
        ways=OLDEST,
    ),
    "gru_stacked": _simple(
        "two GRU layers of 20, Linear; batch first",
        lambda: Head(nn.GRU(8, 20, 2, batch_first=True), nn.Linear(20, 3)),
        BTF,
        8,
        3,
        ways=MANY,
    ),
    "gru_no_bias": _simple(
        "GRU 33 without bias, time first",
        lambda: Head(nn.GRU(5, 33, bias=False)),
        TBF,
        5,
        33,
        ways=("dynamo", "script"),
    ),
    "rnn_tanh": _simple(
        "two nn.RNN layers of 20, tanh, Linear; the new exporter unrolls nn.RNN",
        lambda: Head(nn.RNN(6, 20, 2, batch_first=True), nn.Linear(20, 3)),
        BTF,
        6,
        3,
        ways=OLD,
    ),
    "rnn_relu": _simple("nn.RNN 33, relu, time first", lambda: Head(nn.RNN(6, 33, nonlinearity="relu")), TBF, 6, 33),
    "tagger": FixtureModel(
        "Embedding, bidirectional LSTM 12, Linear, LogSoftmax",
        lambda: Head(
            nn.LSTM(10, 12, batch_first=True, bidirectional=True),
            nn.Linear(24, 6),
            nn.LogSoftmax(-1),
            before=(nn.Embedding(40, 10),),
        ),
        tokens(40),
        {"x": BTF, "y": (*BTF, 6)},
        streamable=False,
        ways=MANY,
    ),
    "bigru_stacked": _simple(
        "two bidirectional GRU layers of 9, time first",
        lambda: Head(nn.GRU(7, 9, 2, bidirectional=True), nn.Linear(18, 4)),
        TBF,
        7,
        4,
        streamable=False,
    ),
    "birnn": _simple(
        "bidirectional nn.RNN 9",
        lambda: Head(nn.RNN(7, 9, bidirectional=True, batch_first=True)),
        BTF,
        7,
        18,
        streamable=False,
        ways=("dynamo_frozen", "script"),
    ),
    "language_model": FixtureModel(
        "Embedding, GRU 20, Linear, Softmax: next-token probabilities",
        lambda: Head(
            nn.GRU(12, 20, batch_first=True), nn.Linear(20, 30), nn.Softmax(-1), before=(nn.Embedding(30, 12),)
        ),
        tokens(30),
        {"x": BTF, "y": (*BTF, 30)},
        ways=MANY,
    ),
    "lstm_states": FixtureModel(
        "two LSTM layers of 20, batch first; h0, c0 in, hn, cn out",
        lambda: GivenLSTM(nn.LSTM(6, 20, 2, batch_first=True)),
        given_states(BTF, 6, [(2, 20), (2, 20)]),
        {"x": (*BTF, 6), "y": (*BTF, 20)} | dict.fromkeys(("h0", "c0", "hn", "cn"), (2, "batch", 20)),
        ("x", "h0", "c0"),
        ("y", "hn", "cn"),
        {"h0": "hn", "c0": "cn"},
    ),
    "gru_states": FixtureModel(
        "GRU 20, time first; h0 in, hn out",
        lambda: GivenGRU(nn.GRU(6, 20)),
        given_states(TBF, 6, [(1, 20)]),
        {"x": (*TBF, 6), "y": (*TBF, 20)} | dict.fromkeys(("h0", "hn"), (1, "batch", 20)),
        ("x", "h0"),
        ("y", "hn"),
        {"h0": "hn"},
        ways=OLD,
    ),
    "lstm_last_states": FixtureModel(
        "two LSTM layers of 20; hn, cn out, nothing in",
        lambda: LastStates(nn.LSTM(6, 20, 2, batch_first=True)),
        floats(BTF, 6),
        {"x": (*BTF, 6), "y": (*BTF, 20)} | dict.fromkeys(("hn", "cn"), (2, "batch", 20)),
        outputs=("y", "hn", "cn"),
    ),
    "learned_start": _simple(
        "LSTM 20 whose first states are parameters expanded to the batch",
        LearnedStart,
        BTF,
        6,
        3,
        ways=OLDEST,
    ),
    "zero_start": _simple(
        "two GRU layers of 20, first state torch.zeros(2, x.size(0), 20)", ZeroStart, BTF, 6, 3, ways=USUAL
    ),
    "last_step": FixtureModel(
        "LSTM 20, Dropout (off), Linear, softmax of the last step",
        LastStep,
        floats(BTF, 6),
        {"x": (*BTF, 6), "y": ("batch", 4)},
    ),
    "last_hidden": FixtureModel(
        "two GRU layers of 20, Linear on h_n of the top one",
        LastHidden,
        floats(BTF, 6),
        {"x": (*BTF, 6), "y": ("batch", 4)},
    ),
    "residual": _simple("two LSTM 20, each with LayerNorm and a skip", Residual, BTF, 6, 3),
    "batch_norm": _simple("BatchNorm1d, GRU 20, BatchNorm1d", Normed, BTF, 6, 3),
    "feature_mean": FixtureModel(
        "GRU 20; mean, sum, max over features",
        FeatureMean,
        floats(BTF, 6),
        {"x": (*BTF, 6), "y_mean": BTF, "y_sum": (*BTF, 1), "y_max": BTF},
        outputs=("y_mean", "y_sum", "y_max"),
        ways=OLDEST,
    ),
    "time_mean": FixtureModel(
        "GRU 20, mean over time, Linear", TimeMean, floats(BTF, 6), {"x": (*BTF, 6), "y": ("batch", 4)}
    ),
    "two_outputs": FixtureModel(
        "LSTM 20 and GRU 33 (no bias), a head on each; one output without a feature axis",
        Two,
        floats(BTF, 6),
        {"x": (*BTF, 6), "voice": BTF, "pitch": (*BTF, 5)},
        outputs=("voice", "pitch"),
    ),
    "two_inputs": FixtureModel(
        "tokens and floats: Embedding, Concat, LSTM 20",
        TwoInputs,
        lambda time, batch: (*tokens(17)(time, batch), *floats(BTF, 4)(time, batch)),
        {"tokens": BTF, "x": (*BTF, 4), "y": (*BTF, 3)},
        inputs=("tokens", "x"),
    ),
    "gated_head": _simple("GRU 20, chunk in two, gate, scale, clamp", Gated, BTF, 6, 6),
    "folded_head": _simple("LSTM 20, batch and time folded around Linear and log_softmax", Folded, BTF, 6, 5),
    "step_function": FixtureModel(
        "LSTMCell 20 for a single step, no time axis: h0, c0 in, hn, cn out",
        Stepped,
        lambda time, batch: (torch.randn(batch, 6), torch.randn(batch, 20), torch.randn(batch, 20)),
        {"x": ("batch", 6), "y": ("batch", 3)} | dict.fromkeys(("h0", "c0", "hn", "cn"), ("batch", 20)),
        ("x", "h0", "c0"),
        ("y", "hn", "cn"),
        {"h0": "hn", "c0": "cn"},
        ways=("dynamo", "script"),
    ),
    "causal_block": FixtureModel(
        about="GRU 12, TransformerEncoderLayer of 3 heads with a causal mask; batch first",
        build=lambda: CausalBlock(5, 12, 3),
        example=floats(BTF, 5),
        axes={"x": (*BTF, 5), "y": (*BTF, 12)},
        ways=("dynamo_frozen",),
        context=11,
    ),
    "causal_positions": FixtureModel(
        about="learned positions, GRU 12, scaled_dot_product_attention of 3 heads, is_causal; batch first",
        build=lambda: Positions(12, 3),
        example=floats(BTF, 12),
        axes={"x": (*BTF, 12), "y": (*BTF, 4)},
        ways=("dynamo",),
        context=11,
    ),
    "causal_rotary": FixtureModel(
        about="GRU 12, attention of 3 heads with rotary positions, is_causal; batch first",
        build=lambda: Positions(12, 3, learned=False, rotary=True),
        example=floats(BTF, 12),
        axes={"x": (*BTF, 12), "y": (*BTF, 4)},
        ways=("script",),
        context=11,
    ),
    "causal_window": FixtureModel(
        about="GRU 12, attention of 3 heads over the last 4 steps by a mask; batch first",
        build=lambda: Positions(12, 3, window=4, learned=False),
        example=floats(BTF, 12),
        axes={"x": (*BTF, 12), "y": (*BTF, 4)},
        ways=("dynamo",),
    ),
} | head_models()
