"""The example of a transducer: many calls in pools are decoded as each alone, and as onnxruntime decodes them."""

import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CALLS = 100


@pytest.fixture(scope="module")
def examples():
    """(transducer, make_transducer), imported as the example imports them."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import make_transducer
        import transducer
    finally:
        sys.path.remove(str(EXAMPLES))
    return transducer, make_transducer


@pytest.fixture(scope="module", params=["stateless", "lstm"])
def folder(request, examples, tmp_path_factory):
    return examples[1].write(tmp_path_factory.mktemp(request.param), request.param)


def greedy(folder, sound, context):
    """The symbols of a sound by onnxruntime: the encoder over all frames, then one symbol a frame."""
    import onnxruntime

    names = ("encoder", "decoder", "joiner")
    encoder, decoder, joiner = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"]) for name in names
    )
    (heard,) = encoder.run(None, {"x": sound[None]})
    states = {i.name: np.zeros((1, 1, i.shape[2]), np.float32) for i in decoder.get_inputs() if i.name != "y"}
    symbols = [0] * context

    def decode():
        said, *after = decoder.run(None, {"y": np.array([symbols[-context:]]), **states})
        states.update(zip(states, after, strict=True))
        return said

    said = decode()
    for frame in heard[0]:
        symbol = int(joiner.run(None, {"encoder_out": frame[None], "decoder_out": said})[0].argmax())
        if symbol:
            symbols.append(symbol)
            said = decode()
    return symbols[context:]


def test_calls_in_a_pool_are_decoded_as_alone_and_as_by_onnxruntime(examples, folder):
    transducer, make = examples
    model, rng = transducer.Transducer(folder), np.random.default_rng(1)
    texts, sounds = zip(*(make.say(rng) for _ in range(CALLS)), strict=True)
    noises = [(0.6 * rng.standard_normal((40, make.VOCAB))).astype(np.float32) for _ in range(10)]
    found = transducer.together(model, [*sounds, *noises], rng)
    assert found[:CALLS] == list(texts)
    assert all(found[CALLS:])
    assert found == [transducer.alone(model, sound) for sound in (*sounds, *noises)]
    few = [*range(5), *range(CALLS, CALLS + 10)]
    assert [found[k] for k in few] == [greedy(folder, (*sounds, *noises)[k], model.context) for k in few]


def test_the_files_have_the_names_that_sherpa_uses(examples, folder):
    model = examples[0].Transducer(folder)
    sides = [[[value.name for value in side] for side in (m.inputs, m.outputs)] for m in (model.encoder, model.joiner)]
    assert sides == [[["x"], ["encoder_out"]], [["encoder_out", "decoder_out"], ["logit"]]]
    assert model.decoder.inputs[0].name == "y"
    assert model.decoder.outputs[0].name == "decoder_out"
    assert int(model.decoder.metadata["vocab_size"]) == examples[1].VOCAB == model.joiner.outputs[0].dims[1]


def test_the_example_runs(examples, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["transducer.py", "--calls", "7"])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    examples[0].main()
    assert "7 of 7 calls right" in capsys.readouterr().out
