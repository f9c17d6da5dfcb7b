"""A small language model as a service that speaks OpenAI's chat completions, streamed.

    python examples/generate/server.py --port 8000
    python examples/generate/client.py "Why is the sky blue?"

Two stages. `Read` checks a request and makes tokens of its messages. `Write` writes up to eight texts at a time, one
token of each in a step: a request joins between two steps, and leaves as soon as its text is done.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mosec_asgi import ContinuousWorker, DecodingError, Server, ValidationError
from mosec_asgi.mixin import PydanticMixin

# The modules beside this one, wherever it is imported from.
sys.path.insert(0, str(Path(__file__).parent))

from chunks import Answer, Refusal
from completion import Completion, Prompt
from smollm import CONTEXT, NAME, SLOTS, SmolLM2, load_tokenizer, open_model

DEFAULT_LIMIT = 128
# Tokens of a prompt that are taken in between two steps: as long as that takes, all other texts wait.
PIECE = 64
# What the model was trained with where a conversation has no system message.
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


Stop = Annotated[str, Field(min_length=1, max_length=100)]


class Strict(BaseModel):
    """What a client sends: no number as text, and no field that this service would ignore."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Message(Strict):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=4000)


class StreamOptions(Strict):
    """How to stream."""

    include_usage: bool = Field(default=False, description="Count the tokens in a last chunk.")


class Request(Strict):
    """A conversation to go on with."""

    model: Literal["smollm2-135m-instruct"]
    messages: list[Message] = Field(min_length=1, max_length=32)
    stream: Literal[True] = Field(description="This service only streams.")
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int = Field(default=DEFAULT_LIMIT, ge=1, description="Tokens to write at most.")
    max_completion_tokens: int | None = Field(default=None, ge=1, description="The newer name of `max_tokens`.")
    temperature: float = Field(default=1.0, ge=0, le=2, description="0 takes the likeliest token.")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="The same seed gives the same text.")
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] = Field(
        default=[], description="Texts before which the writing ends."
    )
    n: Literal[1] = 1


class Read(PydanticMixin):
    """Go on with a conversation, in OpenAI's form.

    The answer is a stream of `chat.completion.chunk` objects and a last `[DONE]`. A request that is not served gets an
    event `error` in their place, with an object as OpenAI has it for errors.
    """

    example = Request(model=NAME, messages=[Message(role="user", content="Name three colours.")], stream=True)

    def __init__(self) -> None:
        self.tokenizer = load_tokenizer(open_model())

    def deserialize(self, data: bytes) -> Request | Refusal:
        """Check a request; what is wrong with it goes on as a `Refusal`, to be told in the form that clients read."""
        try:
            request: Request = super().deserialize(data)
        except DecodingError as error:
            return Refusal(str(error))
        except ValidationError as error:
            first = json.loads(str(error))[0]
            param = ".".join(map(str, first["loc"]))
            return Refusal(f"{param}: {first['msg']}", param)
        return request

    def forward(self, data: Request) -> Prompt | Refusal:
        """Make tokens of the messages."""
        if isinstance(data, Refusal):
            return data
        tokens = self.tokens_of(data.messages)
        room = CONTEXT - len(tokens)
        if room < 1:
            text = f"the messages are {len(tokens)} tokens, and a text of this model has {CONTEXT} at most"
            return Refusal(text, "messages", "context_length_exceeded")
        return Prompt(
            tokens,
            limit=min(data.max_completion_tokens or data.max_tokens, room),
            temperature=data.temperature,
            seed=data.seed,
            stop=[data.stop] if isinstance(data.stop, str) else data.stop,
            with_usage=data.stream_options.include_usage,
        )

    def tokens_of(self, messages: list[Message]) -> list[int]:
        """Return a conversation in the form that the model was trained with, up to where the answer begins."""
        begin, end = self.tokenizer.special("<|im_start|>"), self.tokenizer.special("<|im_end|>")
        if messages[0].role != "system":
            messages = [Message(role="system", content=SYSTEM), *messages]
        encode = self.tokenizer.encode
        turns = [[begin, *encode(f"{turn.role}\n{turn.content}"), end, *encode("\n")] for turn in messages]
        return [*itertools.chain(*turns), begin, *encode("assistant\n")]


class Write(ContinuousWorker):
    """Write texts, one token of each in a step."""

    example = Prompt([1, 2], limit=2)

    def __init__(self) -> None:
        file = open_model()
        self.model = SmolLM2(file)
        self.tokenizer = load_tokenizer(file)
        self.free = list(range(SLOTS))
        self.answers: dict[int, Answer] = {}
        self.refusals: list[Refusal] = []

    def admit(self, item: Prompt | Refusal) -> int | Refusal:
        """Give a request a slot of the model; a refusal needs none."""
        if isinstance(item, Refusal):
            self.refusals.append(item)
            return item
        slot = self.free.pop()
        self.answers[slot] = Answer(Completion(item, self.tokenizer), NAME)
        return slot

    def step(self) -> Iterator[tuple[int | Refusal, Any]]:
        """Take in a piece of one prompt, then add a token to each text whose prompt is taken in."""
        for refusal in self.refusals:
            yield refusal, refusal.event()
            yield refusal, self.FINISHED
        self.take_in_a_piece()
        texts = {slot: answer.text for slot, answer in self.answers.items() if not answer.text.unread}
        if not texts:
            return
        scores = self.model.step({slot: (text.last, text.place) for slot, text in texts.items()})
        for slot, text in texts.items():
            for chunk in self.answers[slot].chunks(text.add(scores[slot])):
                yield slot, chunk
            if text.finish_reason:
                yield slot, self.FINISHED

    def take_in_a_piece(self) -> None:
        """Read on in the prompt that came first. Where it is cut does not depend on the others, and so no text does."""
        for slot, answer in self.answers.items():
            text = answer.text
            if text.unread:
                piece = text.prompt.tokens[text.read : text.read + min(PIECE, text.unread)]
                self.model.read(slot, piece, text.read)
                text.read += len(piece)
                return

    def evict(self, slot: Any) -> None:
        """Free a slot."""
        if isinstance(slot, Refusal):
            self.refusals.remove(slot)
        else:
            del self.answers[slot]
            self.free.append(slot)


# The first token of a text waits for a slot and for the prompt; it has a minute for that, and each next one as well.
server = Server(timeout=60_000)
server.append_worker(Read, route="/v1/chat/completions")
server.append_worker(
    Write,
    max_batch_size=SLOTS,
    route="/v1/chat/completions",
    # One thread of numpy's: with more, each of the many small products waits for the slowest of them.
    env=[{"OPENBLAS_NUM_THREADS": "1"}],
)

if __name__ == "__main__":
    server.run()
