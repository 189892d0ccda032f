"""Log filterbank features, 100 frames per second: the input of the example model, in training and in streaming.

A frame is 25 ms of sound at 16 kHz (400 samples, Hann window), and frames are 10 ms (160 samples) apart. The power
spectrum is summed in 20 overlapping triangles, spaced evenly in log frequency from 200 to 4000 Hz. The logarithm is
scaled to about -1..2 over the levels in the example.
"""

from __future__ import annotations

import numpy as np

RATE = 16000  # samples per second
HOP = 160  # samples from one frame to the next: 10 ms
WINDOW = 400  # samples in a frame: 25 ms
FFT = 512
BANDS = 20
LOWEST, HIGHEST = 200.0, 4000.0  # Hz, centres of the first and last band


def filterbank() -> np.ndarray:
    """Triangles over the FFT bins: float32 [FFT // 2 + 1, BANDS]; the peak of each column is at most 1."""
    ratio = (HIGHEST / LOWEST) ** (1 / (BANDS - 1))
    edges = LOWEST * ratio ** np.arange(-1, BANDS + 1)
    bins = np.arange(FFT // 2 + 1) * RATE / FFT
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - low) / (centre - low)
    falling = (high - bins[:, None]) / (high - centre)
    # The lowest triangles are narrower than a bin (31 Hz), so each gets at least the bin nearest to its centre.
    weights = np.maximum(0, np.minimum(rising, falling))
    weights[np.rint(centre * FFT / RATE).astype(int), np.arange(BANDS)] = 1
    return weights.astype(np.float32)


HANN = np.hanning(WINDOW).astype(np.float32)
BANK = filterbank()


def log_bands(frames: np.ndarray) -> np.ndarray:
    """Features of frames: float32 [..., WINDOW] -> float32 [..., BANDS]."""
    spectrum = np.fft.rfft(frames * HANN, FFT)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    return (np.log10(power @ BANK + 1e-3) * 0.5).astype(np.float32)


def features(signal: np.ndarray) -> np.ndarray:
    """All frames of a signal: float32 [samples] -> float32 [samples // HOP, BANDS].

    The signal is preceded by silence, so that frame t ends with sample (t + 1) * HOP and sees nothing of the future.
    """
    padded = np.concatenate([np.zeros(WINDOW - HOP, np.float32), signal.astype(np.float32)])
    return log_bands(np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP])


class LiveFeatures:
    """The same features from a live signal, HOP samples at a time."""

    def __init__(self):
        self.frame = np.zeros(WINDOW, np.float32)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """The frame that ends with `samples`, float32 [HOP] -> float32 [BANDS]."""
        self.frame[:-HOP] = self.frame[HOP:]
        self.frame[-HOP:] = samples
        return log_bands(self.frame)
