"""The live page in headless Chromium: its numbers, and talking to a model with a microphone that is a file."""

import base64
import io
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'fastrnn[test]'")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from features import features  # noqa: E402
from tones import synthesise  # noqa: E402

import fastrnn  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.any_isa,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]  # fmt: skip
LONG = 60_000  # ms that something may take on a busy machine


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """(a wav file of 16 kHz, in float32; the same in int16, for the fake microphone; its samples)."""
    soundfile = pytest.importorskip("soundfile", reason="no soundfile: pip install 'fastrnn[test]'")
    signal, _ = synthesise(3.5, np.random.default_rng(3), 20.0)
    folder = tmp_path_factory.mktemp("sound")
    soundfile.write(folder / "exact.wav", signal, 16000, subtype="FLOAT")
    soundfile.write(folder / "microphone.wav", signal, 16000, subtype="PCM_16")
    return folder / "exact.wav", folder / "microphone.wav", signal


@pytest.fixture(scope="module")
def words():
    return fastrnn.load(Path(__file__).resolve().parents[2] / "examples" / "tone_words.onnx", threads=1)


@pytest.fixture(scope="module")
def vad():
    """A model like Silero's: a probability for 256 samples."""
    rng = np.random.default_rng(5)
    W, R = rng.normal(size=(24, 256)).astype(np.float32), rng.normal(size=(24, 8)).astype(np.float32) * 0.3
    V = rng.normal(size=(1, 8)).astype(np.float32) * 4
    text = "z = sigmoid(A @ x + B @ prev(h))\nh = (1 - z) * prev(h) + z * tanh(C @ x)\np = sigmoid(V @ h)"
    A, B, C = W[:8], R[:8], W[8:16]
    return fastrnn.from_equations(text, inputs={"x": 256}, outputs=["p"], A=A, B=B, C=C, V=V)


@pytest.fixture(scope="module")
def server(serve, words, vad, model, two_ends):
    models = {"words": words, "vad": vad, "m": model, "two": two_ends}
    with serve(models, profile=fastrnn.profile) as running:
        yield running


@pytest.fixture(scope="module")
def browser(sound, tmp_path_factory):
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[*FLAGS, f"--use-file-for-fake-audio-capture={sound[1]}"],
            env={**os.environ, "HOME": str(tmp_path_factory.mktemp("home"))},
            timeout=LONG,
        )
        yield made
        made.close()


class Page:
    """The page in a browser, with what it sends and gets."""

    def __init__(self, browser, server, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1180, "height": 900}, **options})
        self.context.set_default_timeout(LONG)
        self.page = self.context.new_page()
        self.problems, self.urls, self.sent, self.got = [], [], [], []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: self._say(message))
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.page.on("websocket", self._socket)
        self.url = f"http://127.0.0.1:{server.http}/"

    def _say(self, message):
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def _socket(self, socket):
        socket.on("framesent", lambda data: self.sent.append(np.frombuffer(data, np.float32)))
        socket.on("framereceived", lambda data: self.got.append(json.loads(data)))

    def __enter__(self):
        self.page.goto(self.url)
        self.until(lambda: self.text("#state") == "Serving" and self.page.locator("#talk-model option").count() > 0)
        return self

    def __exit__(self, *_):
        self.context.close()

    def text(self, selector):
        return self.page.inner_text(selector)

    def until(self, condition, seconds=60):
        """Wait, while the page's events are taken in."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"it did not come true; {self.text('#talk-error')!r} {self.problems}"
            self.page.wait_for_timeout(50)

    def talk(self, model, source, steps, file=None):
        """Start, and stop after the answer to that many steps, or when the sound has ended."""
        page = self.page
        page.select_option("#talk-model", model)
        page.select_option("#talk-source", source)
        if file is not None:
            page.set_input_files("#talk-file", file)
        page.click("#talk-go")
        if steps is None:
            self.until(lambda: page.inner_text("#talk-go") == "Start")
        else:
            self.until(lambda: sum(len(rows(m)) for m in self.got) >= steps)
            page.click("#talk-go")
        assert page.inner_text("#talk-go") == "Start"

    def answers(self):
        return np.concatenate([rows(m) for m in self.got])


def rows(message):
    assert "error" not in message, message
    (values,) = message["outputs"].values()
    return np.array(values, np.float32)


@pytest.fixture
def page(browser, server):
    with Page(browser, server) as opened:
        yield opened
        assert opened.problems == []
        assert {url for url in opened.urls if not url.startswith(opened.url)} == set()


def infer(server, frames, **named):
    http = pytest.importorskip("tritonclient.http")
    with http.InferenceServerClient(f"127.0.0.1:{server.http}") as client:
        x = http.InferInput("x", [1, *frames.shape], "FP32")
        x.set_data_from_numpy(frames[None])
        return client.infer("m", [x], **named)


def card(page, name):
    return page.page.locator("section.model", has=page.page.locator("h2", has_text=name))


def shows(page, locator, text):
    page.until(lambda: locator.inner_text() == text)


class TestNumbers:
    def test_what_happens_is_shown(self, page, server, frames):
        at = card(page, "m")
        for id in (1, 2, 3):
            infer(server, frames[:9], sequence_id=id, sequence_start=True)
        shows(page, at.locator("[data-of=sequences]"), "3")
        page.until(lambda: page.text("#t-sequences") == "3")
        infer(server, frames[:1], sequence_id=1, sequence_end=True)
        infer(server, frames[:1], sequence_id=2, sequence_start=True)
        shows(page, at.locator("[data-of=sequences]"), "2")
        shows(page, at.locator("[data-of=starts]"), "4")
        page.until(lambda: at.locator("[data-list=ends]").inner_text().split() == ["client", "1", "restarted", "1"])

        def stepping():
            infer(server, frames[:50], sequence_id=3)
            return at.locator("[data-of=steps]").inner_text() not in ("–", "0") and all(
                at.locator(f"[data-of={name}]").inner_text() != "–"
                for name in ("batch", "wait50", "wait99", "compute50", "compute99", "expected", "measured", "ticked")
            )

        page.until(stepping)
        for name in ("steps", "batch", "wait", "compute"):
            plot = f"section.model:nth-child(3) [data-plot={name}]"
            page.until(lambda: stepping() and drawn(page, plot) > 20)  # noqa: B023  # it is called here

    def test_refusals_and_ends_are_events(self, page, server, frames):
        http = pytest.importorskip("tritonclient.utils")
        bad = "<img src=x onerror=alert(1)>"
        with pytest.raises(http.InferenceServerException):
            infer(server, frames[:1], sequence_id=bad)
        infer(server, frames[:1], sequence_id="lost", sequence_start=True)
        server.do(server.sequences.evict("lost"))
        page.until(lambda: "was evicted" in page.text("#events"))
        first, second = (page.page.locator("#events li").nth(i).inner_text() for i in (0, 1))
        assert "ended: evicted" in first
        assert "sequence lost was evicted, after 1 steps" in first
        assert "refused: unknown sequence" in second
        assert bad in second  # as text
        assert page.page.locator("#events img").count() == 0

    def test_a_model_that_takes_no_sound_says_why(self, page):
        page.page.select_option("#talk-model", "two")
        assert "takes more than one row" in page.text("#talk-hint")
        assert page.page.is_disabled("#talk-go")


class TestTalk:
    def test_a_file_of_the_models_rate(self, page, vad, sound):
        """The model gets the file's samples, and its answer is a lone stream's, bit for bit."""
        page.talk("vad", "file", None, sound[0])
        steps = np.concatenate(page.sent).reshape(-1, 256)
        heard = steps.reshape(-1)
        start = np.flatnonzero(heard)[0] - np.flatnonzero(sound[2])[0]
        assert start >= 0
        assert len(heard) > len(sound[2]) - 4096
        n = min(len(heard) - start, len(sound[2]))
        assert np.array_equal(heard[start : start + n], sound[2][:n])
        answers = page.answers()
        assert np.array_equal(answers, vad.stream().push(steps)[: len(answers)])
        assert len(answers) > len(steps) - 20
        # the curve ends at the last value, and the bar has it
        value = float(answers[-1, 0])
        assert page.text("#talk-bars span:last-child") == f"{value:.2f}"
        page.until(lambda: ends_at(page, value))

    def test_the_microphone_is_resampled(self, page, vad, sound):
        page.talk("vad", "mic", 250)
        steps = np.concatenate(page.sent).reshape(-1, 256)
        answers = page.answers()
        assert np.array_equal(answers, vad.stream().push(steps)[: len(answers)])
        # Chromium plays the file again and again, at a rate of its own
        assert like(np.concatenate([sound[2], sound[2]]), steps.reshape(-1)) > 0.95

    def test_words(self, page, words, sound):
        """The page's features are those of the example, and the words are heard."""
        page.talk("words", "file", None, sound[0])
        steps = np.concatenate(page.sent).reshape(-1, 20)
        answers = page.answers()
        assert np.array_equal(answers, words.stream().push(steps)[: len(answers)])
        wanted = features(sound[2])
        n = len(wanted) - 20
        close = [np.abs(steps[k : k + n] - wanted[:n]).max() for k in range(min(8, len(steps) - n + 1))]
        assert min(close) < 1e-3
        assert [t for t in page.text("#talk-heard").split() if t in ("rise", "fall", "hop")] == heard_in(answers)
        assert page.page.locator("#talk-bars div").count() == 3

    def test_frames_that_overlap(self, page, vad, sound):
        """A step with the last samples of the one before, as Silero's file takes it."""
        page.page.select_option("#talk-model", "vad")
        page.page.fill("#talk-new", "192")
        assert "the last 64 of the step before and 192 new ones" in page.text("#talk-hint")
        page.page.select_option("#talk-source", "tones")
        page.page.click("#talk-go")
        page.until(lambda: len(page.got) > 30)
        page.page.click("#talk-go")
        steps = np.concatenate(page.sent).reshape(-1, 256)
        assert np.array_equal(steps[1:, :64], steps[:-1, 192:])
        answers = page.answers()
        assert np.array_equal(answers, vad.stream().push(steps)[: len(answers)])

    def test_silero(self, browser, serve, published_models):
        """Its file is recognised: 512 new samples behind the last 64 of the step before."""
        file = published_models / "silero_vad_v5.onnx"
        model = fastrnn.load(file, bind={"sr": 16000}, sizes={"size": 576}, threads=1)
        with serve({"silero": model}) as server, Page(browser, server) as opened:
            assert "the last 64 of the step before and 512 new ones, 32 ms" in opened.text("#talk-hint")
            opened.talk("silero", "mic", 40)
            steps = np.concatenate(opened.sent).reshape(-1, 576)
            assert np.array_equal(steps[1:, :64], steps[:-1, 512:])
            answers, stream = opened.answers(), model.stream()
            assert np.array_equal(answers[:, 0], [stream.step(x).item() for x in steps[: len(answers)]])

    def test_errors_are_told(self, page, server):
        denied = (
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); }; 0"
        )
        page.page.evaluate(denied)
        page.page.select_option("#talk-model", "vad")
        page.page.click("#talk-go")
        page.until(lambda: "does not let this page use the microphone" in page.text("#talk-error"))
        page.page.select_option("#talk-source", "file")
        page.page.click("#talk-go")
        page.until(lambda: "choose a sound file first" in page.text("#talk-error"))
        sequences = server.server.engine.hosted("vad").sequences
        sequences.draining = True
        try:
            page.page.select_option("#talk-source", "tones")
            page.page.click("#talk-go")
            page.until(lambda: "the model refused" in page.text("#talk-error"))
        finally:
            sequences.draining = False
        assert "draining" in page.text("#talk-error")
        assert page.text("#talk-go") == "Start"


def test_a_server_that_has_gone(browser, serve, model):
    with serve({"m": model}) as server:
        gone = Page(browser, server)
        gone.__enter__()
    try:
        gone.until(lambda: gone.text("#state") == "No connection")
    finally:
        gone.context.close()


def test_a_server_with_tokens(browser, serve, vad, tmp_path):
    """The page asks for the token, and sends it with its questions and its WebSocket."""
    (tmp_path / "tokens").write_text("me: secret-of-me-0123456789\n")
    with serve({"vad": vad}, tokens=tmp_path / "tokens") as server:
        opened = Page(browser, server)
        page = opened.page
        page.goto(opened.url)
        opened.until(lambda: opened.text("#state") == "Needs a token")
        assert page.is_disabled("#talk-go")  # there is no model yet
        page.fill("#token input", "wrong")
        page.click("#token button")
        opened.until(lambda: opened.text("#state") == "Wrong token")
        page.fill("#token input", "secret-of-me-0123456789")
        page.click("#token button")
        opened.until(lambda: opened.text("#state") == "Serving")
        assert not page.is_visible("#token")
        opened.talk("vad", "tones", 10)
        opened.context.close()


class TestLooks:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [1180, 360])
    def test_accessibility(self, browser, server, scheme, width):
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-playwright-python")
        with Page(browser, server, color_scheme=scheme, viewport={"width": width, "height": 740}) as opened:
            opened.talk("vad", "tones", 20)
            found = axe.Axe().run(opened.page)
            assert [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found.response["violations"]] == []
            wide = opened.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert wide[0] <= wide[1]
            back = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
            light = sum(int(n) for n in back.strip("rgb()").split(",")) > 3 * 128
            assert light == (scheme == "light")

    def test_the_keyboard_is_enough(self, page):
        keyboard = page.page.keyboard
        keyboard.press("Tab")
        assert page.page.evaluate("document.activeElement.className") == "skip"
        page.page.select_option("#talk-source", "tones")
        page.page.select_option("#talk-model", "vad")
        order = []
        for _ in range(20):
            keyboard.press("Tab")
            order.append(page.page.evaluate("document.activeElement.id"))
            if order[-1] == "talk-go":
                break
        assert order[-6:] == ["talk-model", "talk-source", "talk-front", "talk-rate", "talk-new", "talk-go"]
        keyboard.press("Enter")
        page.until(lambda: page.text("#talk-go") == "Stop" and len(page.got) > 3)
        assert page.page.evaluate("document.activeElement.id") == "talk-go"
        keyboard.press("Enter")
        page.until(lambda: page.text("#talk-go") == "Start")

    def test_nothing_moves(self, page):
        """The page's parts keep their places while it runs."""
        places = "[...document.querySelectorAll('main section')].map((e) => Math.round(e.getBoundingClientRect().top))"
        page.page.select_option("#talk-model", "vad")
        page.talk("vad", "tones", 3)
        before = page.page.evaluate(places)
        page.talk("vad", "tones", 60)
        assert page.page.evaluate(places) == before

    def test_less_motion(self, browser, server):
        with Page(browser, server, reduced_motion="reduce") as opened:
            opened.talk("vad", "tones", 40)
            opened.until(lambda: drawn(opened, "#talk-plot") > 20)

    def test_the_policy_allows_this_server_alone(self, page, server):
        answer = page.page.request.get(page.url)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert page.page.evaluate("fetch('https://example.com').then(() => 'reached', () => 'blocked')") == "blocked"
        assert any("example.com" in problem for problem in page.problems)
        page.problems.clear()
        page.urls.clear()


# -- what the page has drawn, and sounds that are alike --
PICTURE = """(selector) => [
  document.querySelector(selector).toDataURL(),
  getComputedStyle(document.documentElement).getPropertyValue("--one").trim(),
]"""


def pixels(page, selector):
    """Which pixels of a canvas are in the colour of the first line: bool [height, width]."""
    image = pytest.importorskip("matplotlib.image")
    data, colour = page.page.evaluate(PICTURE, selector)
    found = image.imread(io.BytesIO(base64.b64decode(data.partition(",")[2])), "png")
    wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return (np.abs(found[..., :3] - wanted).sum(axis=-1) < 0.25) & (found[..., 3] > 0.5)


def drawn(page, selector):
    """How many pixels of a canvas a line has."""
    return int(pixels(page, selector).sum())


def ends_at(page, value):
    """Whether the talk's curve ends at a value, as it was drawn; plots.js has the same numbers."""
    found = pixels(page, "#talk-plot")
    y = np.flatnonzero(found[:, -3:].any(axis=1)) + 0.5
    return np.abs(y - (4 + (1 - value) * (found.shape[0] - 46 - 8))).min() < 3


def like(whole, part, rate=16000):
    """How alike the second half of `part` and the best place of it in `whole` are: a correlation, 0 to 1."""
    some = part[len(part) // 2 :][:rate]
    n = len(whole)
    products = np.fft.irfft(np.fft.rfft(whole, 2 * n) * np.conj(np.fft.rfft(some, 2 * n)), 2 * n)[: n - len(some)]
    at = int(np.argmax(products))
    found = whole[at : at + len(some)]
    return float(found @ some / np.sqrt((found @ found) * (some @ some)))


def heard_in(answers):
    from tones import NAMES, detections

    return [NAMES[word] for _, word in detections(answers)][-6:]
