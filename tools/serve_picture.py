"""Draw docs/serve.png, the live page of a server under a small load, with a microphone that hears the example's words.

python tools/serve_picture.py             # takes 100 seconds; needs the extra `test` and Chromium
python tools/serve_picture.py --seconds 20 --out page.png --dark
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.async_api import async_playwright
from websockets.asyncio.client import connect

import fastrnn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))
from features import features  # noqa: E402
from tones import synthesise  # noqa: E402

FLAGS = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
CALLERS, HOP = 25, 0.02  # of the load: WebSockets, and seconds from one message to the next
WIDTH, HEIGHT, COLOURS = 1000, 945, 96


def microphone(folder: Path) -> tuple[Path, np.ndarray]:
    """(a wav file with half a minute of words, its features)."""
    signal, _ = synthesise(30.0, np.random.default_rng(3), 20.0)
    path = folder / "microphone.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((np.clip(signal, -1, 1) * 32767).astype("<i2").tobytes())
    return path, features(signal)


async def caller(port: int, steps: np.ndarray, seed: int) -> None:
    """Call, send a frame every HOP seconds for a while, hang up, and call again."""
    rng = np.random.default_rng(seed)
    await asyncio.sleep(rng.uniform(0, 10))
    while True:
        async with connect(f"ws://127.0.0.1:{port}/v2/models/tone-words/stream") as socket:
            first = int(rng.integers(len(steps)))
            for t in range(first, first + int(rng.uniform(200, 2000))):
                await socket.send(steps[t % len(steps)].tobytes())
                await socket.recv()
                await asyncio.sleep(HOP)


async def picture(args: argparse.Namespace, folder: Path) -> None:
    """Serve, load, look."""
    sound, steps = microphone(folder)
    model = fastrnn.load(ROOT / "examples" / "tone_words.onnx", threads=1)
    server = fastrnn.serving.Server({"tone-words": model}, http_port=0, grpc_port=None, profile=fastrnn.profile)
    async with server, async_playwright() as playwright:
        assert server.http_port is not None
        load = [asyncio.ensure_future(caller(server.http_port, steps, k)) for k in range(CALLERS)]
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*FLAGS, f"--use-file-for-fake-audio-capture={sound}"]
        )
        scheme = "dark" if args.dark else "light"
        page = await browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
        await page.goto(f"http://127.0.0.1:{server.http_port}/")
        await page.click("#talk-go", timeout=60_000)
        await asyncio.sleep(args.seconds)
        await page.screenshot(path=folder / "page.png")
        await browser.close()
        for task in load:
            task.cancel()
        await asyncio.wait(load)
    colours = Image.open(folder / "page.png").convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    colours.save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=95.0, help="until the picture is taken (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "serve.png")
    parser.add_argument("--dark", action="store_true")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(picture(parser.parse_args(), Path(folder)))


if __name__ == "__main__":
    main()
