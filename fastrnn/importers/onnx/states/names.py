"""What the names of an input and an output tell: whether they are one state before and after a step.

A name is cut into words (at signs, capitals and digits). An input and an output match if the same words are left
without one mark of time each: `past_x.0 -> present_x.0`, `in_cache0 -> out_cache0`, `h -> hy`, `len -> len_out`.
"""

from __future__ import annotations

import re
from functools import lru_cache

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

# Marks that say "before" or "after" of whatever they mark, and marks that also mark data: frame_in -> frame_out.
_OLD = frozenset("prev previous past old init initial start before placeholder".split())
_NEW = frozenset("new next nxt present cur current updated update final last after identity r ret res".split())
_PAST = frozenset("past prev previous old".split())
_IN = frozenset("in inp input inputs".split())
_OUT = frozenset("out outp output outputs".split())

_SIGNAL = frozenset(
    "audio chunk clean data denoised enhanced enhancement feat feature frame gain image img logit mag magnitude mask "
    "mel mic lpb noise noisy pred prediction prob probability sample score signal spec spectrogram spectrum speech "
    "stft target text token wav wave waveform x y fbank encoder decoder joiner joint model network".split()
)
_STATE = frozenset(
    "state hidden cache cached carry buf buffer mem past prev previous history hist h c hx cx hn cn hy cy".split()
)
# Words of names that a tool made up.
_GENERIC = frozenset(
    "onnx arg args tensor feed fetch tmp placeholder identity serving default stateful partitioned call model func gru "
    "lstm rnn while concat slice transpose squeeze unsqueeze gather reshape add mul sub tanh sigmoid cell layer op tf "
    "save infer scale fill constant stack activation dense linear gemm matmul".split()
)


@lru_cache(maxsize=4096)
def words(name: str) -> tuple[str, ...]:
    """The words of a name in small letters; the `key_values` of `past_key_values` is part of the mark."""
    found = [w.lower() for w in _WORD.findall(re.sub(r":0$", "", name))]
    for k in range(len(found) - 2):
        if found[k] in ("past", "present") and found[k + 1] == "key" and found[k + 2] in ("value", "values"):
            return (*found[: k + 1], *found[k + 3 :])
    return tuple(found)


def _without(found: tuple[str, ...], marks: frozenset[str]) -> set[tuple[str, ...]]:
    return {found[:k] + found[k + 1 :] for k, word in enumerate(found) if word in marks}


def _shortened(found: tuple[str, ...], digits: str, letters: str) -> set[tuple[str, ...]]:
    """Without a mark of one letter or digit: h0, hn, hy, r1i, stateN."""
    made = set()
    if found and found[-1] in {*digits, *letters}:
        made.add(found[:-1])
    for k, word in enumerate(found):
        if len(word) == 2 and word.isalpha() and word[1] in letters:
            made.add((*found[:k], word[0], *found[k + 1 :]))
    return made


def alike(source: str, output: str) -> int:
    """How well the two names denote one state before and after a step: 2 by words, 1 by single letters, 0 not."""
    a, b = words(source), words(output)
    if _without(a, _PAST) & ({b} | _without(b, _NEW)):  # no data is marked so: any stem does
        return 2
    before = {a} | _without(a, _OLD | _IN)
    after = {b} | _without(b, _NEW | _OUT)
    if _told(before & after):
        return 2
    before |= _shortened(a, "0", "xip")
    after |= _shortened(b, "12", "nyo")
    fed_back = a == ("y", "0") and b == ("y", "1")  # what a step cell puts out is what it takes
    return int(fed_back or _told(before & after))


def _told(stems: set[tuple[str, ...]]) -> bool:
    """Whether a common stem says what the two are: not a number, and nothing that is data too."""
    return any(any(not w.isdigit() for w in stem) and not _all_signal(stem) for stem in stems)


def _all_signal(found: tuple[str, ...]) -> bool:
    known = [w for w in found if not w.isdigit()]
    return bool(known) and all(w in _SIGNAL or w.removesuffix("s") in _SIGNAL for w in known)


def is_data(name: str) -> bool:
    """Whether a name is one of data, such as `frame_in`, `logits` or a bare `input`."""
    found = words(name)
    kept = tuple(w for w in found if w not in _IN | _OUT)
    return _all_signal(kept) if kept else bool(found)


def is_state(name: str) -> bool:
    """Whether a name is one of a state, such as `encoder_state` or `cached_len_0`."""
    return any(w in _STATE or w.removesuffix("s") in _STATE for w in words(name))


def is_empty(name: str) -> bool:
    """Whether a name tells nothing: `onnx::GRU_5`, `123`, `input.3`, `a`."""
    told = [w for w in words(name) if not w.isdigit() and w not in _GENERIC | _IN | _OUT]
    return not told or (len(told) == 1 and len(told[0]) == 1 and told[0] not in _SIGNAL)
