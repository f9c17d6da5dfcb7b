"""A small language model as a service that speaks OpenAI's chat completions.

    python examples/generate/server.py --port 8000
    python examples/generate/client.py "Why is the sky blue?"

Two stages. `Read` makes tokens of a conversation. `Write` writes up to eight texts at a time, one token of each in a
step: a request joins between two steps, and leaves as soon as its text is done.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mosec_asgi import ContinuousWorker, Server
from mosec_asgi.mixin import PydanticMixin
from mosec_asgi.protocols import Delta, OpenAI

# The modules beside this one, wherever it is imported from.
sys.path.insert(0, str(Path(__file__).parent))

from chat import Message, Request, prompt_of
from completion import Completion, Prompt
from smollm import NAME, SLOTS, SmolLM2, load_tokenizer, open_model

ROUTE = "/generate"
# Tokens of a prompt that are taken in between two steps: as long as that takes, all other texts wait.
PIECE = 64


class Read(PydanticMixin):
    """Go on with a conversation."""

    example = Request(messages=[Message(role="user", content="Name three colours.")], max_tokens=8)

    def __init__(self) -> None:
        self.tokenizer = load_tokenizer(open_model())

    def forward(self, data: Request) -> Prompt:
        """Make tokens of the messages."""
        return prompt_of(data, self.tokenizer)


class Write(ContinuousWorker):
    """Write texts, one token of each in a step."""

    example = Prompt([1, 2], limit=2)

    def __init__(self) -> None:
        file = open_model()
        self.model = SmolLM2(file)
        self.tokenizer = load_tokenizer(file)
        self.free = list(range(SLOTS))
        self.texts: dict[int, Completion] = {}

    def admit(self, item: Prompt) -> int:
        """Give a request a slot of the model."""
        slot = self.free.pop()
        self.texts[slot] = Completion(item, self.tokenizer)
        return slot

    def step(self) -> Iterator[tuple[int, Any]]:
        """Take in a piece of one prompt, then add a token to each text whose prompt is taken in."""
        self.take_in_a_piece()
        texts = {slot: text for slot, text in self.texts.items() if not text.unread}
        if not texts:
            return
        scores = self.model.step({slot: (text.last, text.place) for slot, text in texts.items()})
        for slot, text in texts.items():
            if more := text.add(scores[slot]):
                yield slot, more
            if text.finish_reason:
                counted = {"prompt_tokens": len(text.prompt.tokens), "completion_tokens": text.written}
                yield slot, Delta(finish_reason=text.finish_reason, usage=counted)
                yield slot, self.FINISHED

    def take_in_a_piece(self) -> None:
        """Read on in the prompt that came first. Where it is cut does not depend on the others, and so no text does."""
        for slot, text in self.texts.items():
            if text.unread:
                piece = text.prompt.tokens[text.read : text.read + min(PIECE, text.unread)]
                self.model.read(slot, piece, text.read)
                text.read += len(piece)
                return

    def evict(self, slot: Any) -> None:
        """Free a slot."""
        del self.texts[slot]
        self.free.append(slot)


# The first token of a text waits for a slot and for the prompt; it has a minute for that, and each next one as well.
server = Server(timeout=60_000)
server.append_worker(Read, route=ROUTE)
server.append_worker(
    Write,
    max_batch_size=SLOTS,
    route=ROUTE,
    # One thread of numpy's: with more, each of the many small products waits for the slowest of them.
    env=[{"OPENBLAS_NUM_THREADS": "1"}],
)
server.add_protocol(OpenAI(chat={NAME: ROUTE}))

if __name__ == "__main__":
    server.run()
