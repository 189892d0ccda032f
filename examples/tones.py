"""The sound of the example: three words of three gliding tones each, among other tones, in noise.

A word is three tones of about a tenth of a second in a given order; pitch, glide, length and loudness vary. Distractors
sound alike on purpose: they have the same tones, fewer or in another order, so that only memory can separate them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from features import HOP, RATE

# Pitches of the three tones in Hz.
WORDS = {"rise": (500, 900, 1600), "fall": (1600, 900, 500), "hop": (900, 1600, 500)}
NAMES = tuple(WORDS)
PITCHES = (500, 900, 1600)
# A word counts as heard from this probability on. Over 20 minutes at each of 0, 3, 10 and 20 dB, 0.7 hears as many
# words as 0.5 (1901 of 1902), with 4 false alarms instead of 15.
THRESHOLD = 0.7


@dataclass(frozen=True)
class Event:
    """Something that sounds.

    word : index into NAMES, or -1 for a distractor. start, end : in samples. tones : (pitch, end) of each tone.
    """

    word: int
    start: int
    end: int
    tones: tuple[tuple[int, int], ...] = ()


def tone(pitch: float, seconds: float, random: np.random.Generator) -> np.ndarray:
    """One gliding tone of amplitude 1 with soft edges, float32."""
    n = int(seconds * RATE)
    glide = random.uniform(-0.12, 0.12)
    frequency = pitch * (1 + glide * np.linspace(-0.5, 0.5, n))
    wave = np.sin(2 * np.pi * np.cumsum(frequency) / RATE + random.uniform(0, 2 * np.pi))
    edge = np.minimum(1, np.minimum(np.arange(n), np.arange(n)[::-1]) / (0.008 * RATE))
    return (wave * edge).astype(np.float32)


def phrase(pitches, random: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Consecutive tones with a common pitch shift and tempo, and the (pitch, end in samples) of each tone."""
    shift, tempo = random.uniform(0.93, 1.07), random.uniform(0.8, 1.3)
    parts, ends, length = [], [], 0
    for pitch in pitches:
        sound = tone(pitch * shift * random.uniform(0.98, 1.02), 0.1 * tempo * random.uniform(0.85, 1.15), random)
        pause = np.zeros(int(random.uniform(0, 0.03) * RATE), np.float32)
        ends.append((pitch, length + len(sound)))
        parts += [sound, pause]
        length += len(sound) + len(pause)
    return np.concatenate(parts[:-1]), ends


def distractor(random: np.random.Generator):
    """A `phrase` that is not a word: one, two or (mostly) three of the same tones."""
    while True:
        pitches = tuple(int(p) for p in random.choice(PITCHES, random.choice((1, 2, 3, 3, 3))))
        if pitches not in WORDS.values():
            return phrase(pitches, random)


def synthesise(seconds: float, random: np.random.Generator, snr_db: float | None = None):
    """A signal and the events in it.

    Parameters
    ----------
    snr_db : float, optional
        Tone power over noise power in dB; None draws it from -3 to 25 for each signal.

    Returns
    -------
    signal : float32 array [samples], peak around 0.5
    events : list of Event, in order
    """
    n = int(seconds * RATE)
    signal, events = np.zeros(n, np.float32), []
    at = int(random.uniform(0.2, 0.8) * RATE)
    while True:
        word = int(random.integers(len(NAMES))) if random.random() < 0.45 else -1
        sound, ends = phrase(WORDS[NAMES[word]], random) if word >= 0 else distractor(random)
        if at + len(sound) + RATE // 2 > n:
            break
        signal[at : at + len(sound)] += sound * random.uniform(0.7, 1.3)
        events.append(Event(word, at, at + len(sound), tuple((pitch, at + end) for pitch, end in ends)))
        at += len(sound) + int(random.uniform(0.45, 1.2) * RATE)
    snr_db = random.uniform(-3, 25) if snr_db is None else snr_db
    noise = random.normal(size=n).astype(np.float32)
    # Half of the noise has low frequencies, like rooms and engines.
    low = np.convolve(random.normal(size=n), np.ones(12) / np.sqrt(12), mode="same").astype(np.float32)
    level = 0.3 * np.sqrt(0.5) * 10 ** (-snr_db / 20)
    return (0.3 * signal + level * np.sqrt(0.5) * (noise + low)).astype(np.float32), events


def detections(y: np.ndarray, threshold: float = THRESHOLD, hold: int = 30) -> list[tuple[int, int]]:
    """(frame, word) of each rise of a probability above `threshold`: y is [frames, words].

    After a detection, the word is ignored for `hold` frames, so that a wavering probability is one detection.
    """
    ear, found = Ear(threshold, hold), []
    for frame, row in enumerate(y):
        found += [(frame, word) for word in ear.hear(row)]
    return found


class Ear:
    """Turns probabilities into detections, frame by frame."""

    def __init__(self, threshold: float = THRESHOLD, hold: int = 30):
        self.threshold, self.hold, self.deaf = threshold, hold, [0] * len(NAMES)

    def hear(self, row) -> list[int]:
        """Words heard in this frame. row: one probability per word."""
        heard = []
        for word, probability in enumerate(row):
            if self.deaf[word]:
                # The word is ignored until the probability has dropped again.
                self.deaf[word] -= self.deaf[word] > 1 or probability < self.threshold
            elif probability >= self.threshold:
                heard.append(word)
                self.deaf[word] = self.hold
        return heard


def matches(frame: int, word: int, event: Event) -> bool:
    """Whether a detection is that event: the same word, from 0.1 s before its end to 0.3 s after it."""
    late = (frame + 1) * HOP - event.end
    return word == event.word and -0.1 * RATE <= late <= 0.3 * RATE


def score(found: list[tuple[int, int]], events: list[Event]) -> tuple[int, int, int]:
    """Returns (words that sounded, words heard, false alarms)."""
    words = [e for e in events if e.word >= 0]
    heard = sum(any(matches(*f, e) for f in found) for e in words)
    false = sum(not any(matches(*f, e) for e in words) for f in found)
    return len(words), heard, false
