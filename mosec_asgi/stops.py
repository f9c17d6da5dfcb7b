"""A text on its way from a language model to its reader: `StopTexts`. What workers of such models all need."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class StopTexts:
    """Gives out a text as it is written, in whole characters, and no part of the texts at which it stops.

        out = StopTexts(item.get("stop") or ())
        for token in tokens:
            yield out.add(tokenizer.decode(token))
            if out.stopped:
                break
        yield out.end()

    What may be the beginning of a stop text is kept until it is known whether it is one.

    Attributes:
        stopped: a stop text has come; there is nothing more to give out.
    """

    def __init__(self, stop: str | Sequence[str] = ()) -> None:
        """Begin with no text; `stop` is a text, or several, as a request has them."""
        self.stopped = False
        self._stops = [each for each in ([stop] if isinstance(stop, str) else stop) if each]
        # A token may be a part of a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._kept = ""

    def add(self, more: bytes | str) -> str:
        """Take what has been written, and return what may go out."""
        return self._given(more if isinstance(more, str) else self._decoder.decode(more))

    def end(self) -> str:
        """Return what was kept: the text has ended."""
        text = self._given(self._decoder.decode(b"", True))
        kept, self._kept = self._kept, ""
        return text + kept

    def _given(self, more: str) -> str:
        if self.stopped:
            return ""
        text = self._kept + more
        stops = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if stops:
            self.stopped, self._kept = True, ""
            return text[: min(stops)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._kept = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` are a beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
