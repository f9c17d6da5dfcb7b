"""The tokenizer of SmolLM2: text to tokens and back, by byte pair encoding.

Byte pair encoding begins with single bytes and joins the pair that was found earliest in training, until none is left
that was (Sennrich et al., ACL 2016; over bytes: Radford et al., 2019). It stays within words, and each digit is a word
of its own.
"""

import itertools
import re
from collections.abc import Iterable, Sequence

_DIGIT = re.compile(r"(\d)")
# A word takes the space before it along. `[^\W\d_]` is a letter: Python's `re` does not know `\p{L}`.
_WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+|\d")


class Tokenizer:
    """Text to tokens and back."""

    def __init__(self, tokens: Sequence[str], merges: Iterable[str]) -> None:
        """Take what was found in training.

        Args:
            tokens: the vocabulary by the tokens' numbers, each byte written as a character that can be seen.
            merges: the pairs that are joined, two tokens with a space between, the earliest first.
        """
        self._tokens = tokens
        self._ids = {token: place for place, token in enumerate(tokens)}
        self._ranks: dict[tuple[str, ...], int] = {tuple(pair.split(" ")): rank for rank, pair in enumerate(merges)}
        self._characters = _visible_bytes()
        self._bytes = {character: byte for byte, character in enumerate(self._characters)}

    def special(self, name: str) -> int:
        """Return the number of a token that stands for no text, like `<|im_end|>`; text is never taken for it."""
        return self._ids[name]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        words = (word for part in _DIGIT.split(text) for word in _WORD.findall(part))
        return [self._ids[token] for word in words for token in self._join(word)]

    def decode(self, token: int) -> bytes:
        """Return the bytes of a token; they need not be whole characters."""
        return bytes(self._bytes[character] for character in self._tokens[token])

    def _join(self, word: str) -> list[str]:
        parts = [self._characters[byte] for byte in word.encode()]
        while len(parts) > 1:
            pair = min(itertools.pairwise(parts), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if pair not in self._ranks:
                break
            parts = _joined(parts, pair)
        return parts


def _joined(parts: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """Return `parts` with each `pair` of neighbours as one."""
    joined = [parts[0]]
    fresh = True
    for part in parts[1:]:
        # What was just joined is not joined again in this round.
        if fresh and (joined[-1], part) == pair:
            joined[-1] += part
            fresh = False
        else:
            joined.append(part)
            fresh = True
    return joined


def _visible_bytes() -> list[str]:
    """Return a character for each byte: its own where that can be seen, else one from behind the first 256."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + hidden.index(byte)) for byte in range(256)]
