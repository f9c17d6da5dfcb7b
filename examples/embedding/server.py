"""Sentence embeddings as a service that speaks OpenAI's `POST /v1/embeddings`.

    python examples/embedding/server.py --port 8000
    python examples/embedding/client.py "How are batches made?" README.md

Two stages. `Tokenize` checks a request and makes tokens of its texts. `Embed` runs the model for the texts of all
requests that wait, alike ones together.
"""

import base64
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mosec_asgi import DecodingError, ValidationError, Worker
from mosec_asgi.mixin import PydanticMixin

# Its own modules, wherever it is imported from.
sys.path.insert(0, str(Path(__file__).parent / "modules"))

from minilm import CONTEXT, DIMENSIONS, NAME, MiniLM, Vector, load_tokenizer
from openai_form import OpenAIServer, Refusal

ROUTE = "/v1/embeddings"
MAX_BATCH_SIZE = 32
VOCABULARY = 30522
# What a text begins and ends with.
CLS, SEP = 101, 102
# Of all texts of a request, so that one client does not keep the model from the others for minutes.
MAX_TOKENS = 32_768


def whole(value: Any) -> Any:
    """Return 5 for 5.0, which in JSON is the same number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, Field(min_length=1)]
Token = Annotated[int, Field(ge=0, lt=VOCABULARY), BeforeValidator(whole)]
Tokens = Annotated[list[Token], Field(min_length=1)]


class Request(BaseModel):
    """What a client sends: no number as text, and no field that this service would ignore."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: Literal["all-MiniLM-L6-v2"]
    input: Text | Annotated[list[Text], Field(min_length=1)] | Tokens | Annotated[list[Tokens], Field(min_length=1)] = (
        Field(description="A text, several texts, the tokens of a text, or those of several.")
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Literal[384] | None = Field(default=None, description="The model has no others.")
    user: str | None = Field(default=None, description="For OpenAI's own use; not read.")


@dataclass(frozen=True, slots=True)
class Job:
    """A request on its way to the model.

    Attributes:
        texts: the tokens of each.
        as_base64: the form of the answer.
    """

    texts: list[list[int]]
    as_base64: bool = False


class Embedding(TypedDict):
    """The vector of one text: numbers, or in base64 their bytes (single precision, little endian)."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(TypedDict):
    """How many tokens the model has read."""

    prompt_tokens: int
    total_tokens: int


class Answer(TypedDict):
    """The vectors of a request's texts, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Tokenize(PydanticMixin):
    """Make a vector of 384 numbers of each text, in OpenAI's form.

    A text has at most 256 tokens, the two included that it begins and ends with; a longer one is refused, not cut off.
    The vectors have length 1, so that their scalar product is how close two texts are.
    """

    example = Request(model=NAME, input=["How are batches made?", "From all requests that wait."])

    def __init__(self) -> None:
        self.tokenizer = load_tokenizer()

    def deserialize(self, data: bytes) -> Request:
        """Check a request, and say in OpenAI's form what is wrong with it."""
        try:
            request: Request = super().deserialize(data)
        except DecodingError as error:
            raise Refusal(str(error), param=None) from error
        except ValidationError as error:
            raise refusal_of(json.loads(str(error))[0]) from error
        return request

    def forward(self, data: Request) -> Job:
        """Make tokens of the texts."""
        texts = self.tokens_of(data.input)
        for place, tokens in enumerate(texts):
            if len(tokens) > CONTEXT:
                raise Refusal(
                    f"input: text {place} has {len(tokens)} tokens, and this model reads {CONTEXT} at most; split it",
                    "input",
                    "context_length_exceeded",
                )
        if (total := sum(map(len, texts))) > MAX_TOKENS:
            raise Refusal(
                f"input: {total} tokens in all, and a request may have {MAX_TOKENS}; send fewer texts at a time",
                "input",
                "max_tokens_per_request",
            )
        return Job(texts, data.encoding_format == "base64")

    def tokens_of(self, given: str | list[str] | list[int] | list[list[int]]) -> list[list[int]]:
        """Return the tokens of each text of a request; those that came as tokens get their two ends where they lack."""
        several = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        return [self.tokenizer.encode(text).ids if isinstance(text, str) else with_ends(text) for text in several]


def with_ends(tokens: list[int]) -> list[int]:
    """Return the tokens of a text between [CLS] and [SEP]."""
    if len(tokens) > 1 and tokens[0] == CLS and tokens[-1] == SEP:
        return tokens
    return [CLS, *tokens, SEP]


def refusal_of(fault: dict[str, Any]) -> Refusal:
    """Return what a client is told of what pydantic has found wrong."""
    param = str(fault["loc"][0]) if fault["loc"] else None
    told = fault["msg"]
    if fault["type"] == "missing":
        told = "it is missing"
    elif param == "model":
        return Refusal(f"model: there is no such model here, only {NAME!r}", param, "model_not_found", status=404)
    elif param == "dimensions":
        told = f"the vectors of this model have {DIMENSIONS} numbers, and it was not trained to shorten them"
    elif param == "input":
        told = (
            f"it must be a text or a list of texts, nothing of it empty; "
            f"or in place of a text a list of its tokens, numbers from 0 to {VOCABULARY - 1}"
        )
    return Refusal(f"{param}: {told}" if param else told, param)


class Embed(Worker):
    """Run the model."""

    example = [Job([[CLS, *[2000] * 30, SEP]])] * MAX_BATCH_SIZE

    def __init__(self) -> None:
        self.model = MiniLM()

    def forward(self, data: list[Job]) -> list[Answer]:
        """Embed the texts of all requests of a batch."""
        vectors = iter(self.model.embed([text for job in data for text in job.texts]))
        return [answer_of(job, [next(vectors) for _ in job.texts]) for job in data]


def answer_of(job: Job, vectors: list[Vector]) -> Answer:
    """Return the vectors of a request in OpenAI's form."""
    tokens = sum(map(len, job.texts))
    encode = as_base64 if job.as_base64 else as_numbers
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": place, "embedding": encode(vector)} for place, vector in enumerate(vectors)
        ],
        "model": NAME,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def as_base64(vector: Vector) -> str:
    """Return the numbers' bytes."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def as_numbers(vector: Vector) -> list[float]:
    """Return the numbers."""
    numbers: list[float] = vector.tolist()
    return numbers


# The largest request takes a core about twelve seconds. Its texts hardly have more than a MiB, and what has is not even
# made tokens of.
server = OpenAIServer(timeout=60_000, max_request_size=1 << 20)
server.append_worker(Tokenize, route=ROUTE)
server.append_worker(Embed, max_batch_size=MAX_BATCH_SIZE, route=ROUTE)

if __name__ == "__main__":
    server.run()
