"""One text that is being written: which token comes next, what of the text may go out, and when it is done."""

import codecs
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from bpe import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to go on from, and how.

    Attributes:
        tokens: the conversation so far.
        limit: tokens to write at most.
        temperature: above 1 makes unlikely tokens likelier, below 1 less likely; 0 takes the likeliest.
        seed: what chance begins from; the same seed gives the same text. None for another text each time.
        stop: texts before which the writing ends.
    """

    tokens: list[int]
    limit: int
    temperature: float = 0.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)


class Completion:
    """A text that is being written.

    Attributes:
        prompt: what it goes on from.
        last: its last token.
        read: how many tokens of the prompt the model has taken in.
        written: how many tokens have been written.
        finish_reason: why it is done; None while it is not.
    """

    def __init__(self, prompt: Prompt, tokenizer: Tokenizer) -> None:
        self.prompt = prompt
        self.last = prompt.tokens[-1]
        self.read = 0
        self.written = 0
        self.finish_reason: Literal["stop", "length"] | None = None
        self._tokenizer = tokenizer
        self._ends = {tokenizer.special("<|im_end|>"), tokenizer.special("<|endoftext|>")}
        self._random = np.random.default_rng(prompt.seed)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # May become a text to stop at.
        self._held = ""

    @property
    def unread(self) -> int:
        """How many tokens of the prompt are to be taken in before the first step, which takes the last one."""
        return len(self.prompt.tokens) - 1 - self.read

    @property
    def place(self) -> int:
        """The place of the last token in the text."""
        return len(self.prompt.tokens) + self.written - 1

    def add(self, scores: npt.NDArray[np.float32]) -> str:
        """Choose the next token by what the model says, and return the text that may go out."""
        token = self._choose(scores)
        if token in self._ends:
            self.finish_reason = "stop"
            return self._released(final=True)
        self.last = token
        self.written += 1
        if self.written == self.prompt.limit:
            self.finish_reason = "length"
        return self._released(self._tokenizer.decode(token), final=self.finish_reason is not None)

    def _choose(self, scores: npt.NDArray[np.float32]) -> int:
        if self.prompt.temperature == 0:
            return int(scores.argmax())
        likely = np.exp((scores - scores.max()).astype(np.float64) / self.prompt.temperature)
        reached = likely.cumsum()
        return int(reached.searchsorted(self._random.random() * reached[-1], side="right"))

    def _released(self, more: bytes = b"", *, final: bool) -> str:
        """Return the text that no stop text can begin in, and keep the rest; nothing is kept at the end."""
        text = self._held + self._decoder.decode(more, final)
        stops = [place for stop in self.prompt.stop if (place := text.find(stop)) >= 0]
        if stops:
            self.finish_reason = "stop"
            self._held = ""
            return text[: min(stops)]
        keep = 0 if final else max((_overlap(text, stop) for stop in self.prompt.stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` are a beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
