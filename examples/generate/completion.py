"""One text that is being written: which token comes next, and when it is done."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from bpe import Tokenizer

from mosec_asgi.protocols import StopTexts


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to go on from, and how; the names are OpenAI's, but for `limit`: tokens to write at most."""

    tokens: list[int]
    limit: int
    temperature: float = 0.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)


class Completion:
    """A text that is being written; the model has taken in `read` tokens of its prompt, and written `written`."""

    def __init__(self, prompt: Prompt, tokenizer: Tokenizer) -> None:
        self.prompt = prompt
        self.last = prompt.tokens[-1]
        self.read = self.written = 0
        self.finish_reason: Literal["stop", "length"] | None = None
        self._tokenizer = tokenizer
        self._ends = {tokenizer.special("<|im_end|>"), tokenizer.special("<|endoftext|>")}
        self._random = np.random.default_rng(prompt.seed)
        self._out = StopTexts(prompt.stop)

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
        self.last = self._choose(scores)
        if self.last in self._ends:
            self.finish_reason = "stop"
            return self._out.end()
        self.written += 1
        text = self._out.add(self._tokenizer.decode(self.last))
        if self._out.stopped:
            self.finish_reason = "stop"
        elif self.written == self.prompt.limit:
            self.finish_reason, text = "length", text + self._out.end()
        return text

    def _choose(self, scores: npt.NDArray[np.float32]) -> int:
        if self.prompt.temperature == 0:
            return int(scores.argmax())
        likely = np.exp((scores - scores.max()).astype(np.float64) / self.prompt.temperature)
        reached = likely.cumsum()
        return int(reached.searchsorted(self._random.random() * reached[-1], side="right"))
