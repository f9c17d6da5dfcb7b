"""What a client may send, and the form of a conversation that the model was trained with."""

import itertools
from typing import Annotated, Literal

from bpe import Tokenizer
from completion import Prompt
from pydantic import BaseModel, Field
from smollm import CONTEXT, NAME

from mosec_asgi import ValidationError

# What the model was trained with where a conversation has no system message.
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

Stop = Annotated[str, Field(min_length=1, max_length=100)]


# No number as text, and no field that this service would ignore.
class Message(BaseModel, strict=True, extra="forbid"):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=4000)


class Request(BaseModel, strict=True, extra="forbid"):
    """A conversation to go on with."""

    model: str = NAME
    messages: list[Message] = Field(min_length=1, max_length=32)
    max_tokens: int = Field(default=128, ge=1, description="Tokens to write at most.")
    max_completion_tokens: int | None = Field(default=None, ge=1, description="The newer name of `max_tokens`.")
    temperature: float = Field(default=1.0, ge=0, le=2, description="0 takes the likeliest token.")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="The same seed gives the same text.")
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] = Field(
        default=[], description="Texts before which the writing ends."
    )


def prompt_of(request: Request, tokenizer: Tokenizer) -> Prompt:
    """Return what the model goes on from, and how; refuse a conversation that is too long."""
    tokens = tokens_of(request.messages, tokenizer)
    room = CONTEXT - len(tokens)
    if room < 1:
        raise ValidationError(f"the messages are {len(tokens)} tokens, and a text of this model has {CONTEXT} at most")
    return Prompt(
        tokens,
        limit=min(request.max_completion_tokens or request.max_tokens, room),
        temperature=request.temperature,
        seed=request.seed,
        stop=[request.stop] if isinstance(request.stop, str) else request.stop,
    )


def tokens_of(messages: list[Message], tokenizer: Tokenizer) -> list[int]:
    """Return a conversation in the form that the model was trained with, up to where the answer begins."""
    begin, end = tokenizer.special("<|im_start|>"), tokenizer.special("<|im_end|>")
    if messages[0].role != "system":
        messages = [Message(role="system", content=SYSTEM), *messages]
    encode = tokenizer.encode
    turns = [[begin, *encode(f"{turn.role}\n{turn.content}"), end, *encode("\n")] for turn in messages]
    return [*itertools.chain(*turns), begin, *encode("assistant\n")]
