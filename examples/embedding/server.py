"""Sentence embeddings as a service that speaks OpenAI's `POST /v1/embeddings`.

    python examples/embedding/server.py --port 8000
    python examples/embedding/client.py "How are batches made?" README.md

Two stages. `Tokenize` makes tokens of a text. `Embed` runs the model for the texts of all requests that wait, those of
about the same length together.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, TypedDict

from pydantic import Field

from mosec_asgi import Server, ValidationError, Worker
from mosec_asgi.mixin import PydanticMixin
from mosec_asgi.protocols import OpenAI

# Its own modules, wherever it is imported from.
sys.path.insert(0, str(Path(__file__).parent / "modules"))

from minilm import CONTEXT, NAME, MiniLM, load_tokenizer

ROUTE = "/embed"
MAX_BATCH_SIZE = 32
# What a text begins and ends with.
CLS, SEP = 101, 102

Text = Annotated[str, Field(min_length=1)]
Token = Annotated[int, Field(ge=0, lt=30522)]


class Embedding(TypedDict):
    """The vector of a text, and how many tokens the model has read for it."""

    embedding: Annotated[Any, Field(description="384 numbers.")]
    prompt_tokens: int


class Tokenize(PydanticMixin):
    """Make a vector of 384 numbers of a text, or of its tokens.

    A text has at most 256 tokens, the two included that it begins and ends with; a longer one is refused, not cut off.
    The vectors have length 1, so that their scalar product is how close two texts are.
    """

    example = "How are batches made?"

    def __init__(self) -> None:
        self.tokenizer = load_tokenizer()

    def forward(self, data: Text | Annotated[list[Token], Field(min_length=1)]) -> list[int]:
        """Make tokens of a text; those that come as tokens get their two ends where they lack."""
        tokens: list[int] = self.tokenizer.encode(data).ids if isinstance(data, str) else with_ends(data)
        if len(tokens) > CONTEXT:
            raise ValidationError(f"it has {len(tokens)} tokens, and this model reads {CONTEXT} at most; split it")
        return tokens


def with_ends(tokens: list[int]) -> list[int]:
    """Return the tokens of a text between [CLS] and [SEP]."""
    if len(tokens) > 1 and tokens[0] == CLS and tokens[-1] == SEP:
        return tokens
    return [CLS, *tokens, SEP]


class Embed(Worker):
    """Run the model."""

    example = [[CLS, *[2000] * 30, SEP]] * MAX_BATCH_SIZE

    def __init__(self) -> None:
        self.model = MiniLM()

    def forward(self, data: list[list[int]]) -> list[Embedding]:
        """Embed the texts of a batch."""
        vectors = self.model.embed(data)
        return [{"embedding": vector, "prompt_tokens": len(text)} for text, vector in zip(data, vectors, strict=True)]


server = Server(timeout=60_000, max_request_size=1 << 20)
server.append_worker(Tokenize, route=ROUTE)
server.append_worker(Embed, max_batch_size=MAX_BATCH_SIZE, route=ROUTE)
server.add_protocol(OpenAI(embeddings={NAME: ROUTE}))

if __name__ == "__main__":
    server.run()
