"""Typed JSON as a service: POST a question and some passages, get the passages that are closest to it.

    python examples/typed/server.py --port 8000
    curl http://127.0.0.1:8000/rank -d '{"question": "who barks?", "passages": ["Cats purr.", "Dogs bark."]}'

What a client may send and what it gets are pydantic models. They check each request by itself, also within a batch,
and they are the OpenAPI document at /openapi/swagger/.

The model is the vector space model of information retrieval, over groups of three letters: a text is the vector of how
often it has each group, hashed to `DIMENSIONS` places, and two texts are as close as the angle between their vectors.
"""

import zlib
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from mosec_asgi import Server
from mosec_asgi.mixin import PydanticMixin

DIMENSIONS = 4096

Passage = Annotated[str, Field(max_length=2000)]


class Query(BaseModel):
    """What to look for, and where."""

    # No number as text, and no field that is not there: a typing error is answered and not ignored.
    model_config = ConfigDict(strict=True, extra="forbid")

    question: str = Field(min_length=1, max_length=2000)
    passages: list[Passage] = Field(min_length=1, max_length=100)
    at_least: float = Field(default=0.1, ge=0, le=1, description="Leave out passages with a lower score.")


class Match(BaseModel):
    """A passage that was found."""

    place: int = Field(ge=0, description="Its place in the list of passages, from 0.")
    score: float = Field(ge=0, le=1, description="How close it is to the question; 1 is the same.")


class Ranking(BaseModel):
    """The closest passages, the closest one first."""

    matches: list[Match]


class Rank(PydanticMixin):
    """Rank passages by how close they are to a question.

    Words that share letters are close: `barks` to `bark`, but not to `dog`.
    """

    example = [Query(question="Which animal barks?", passages=["Cats purr.", "Dogs bark.", "Fish are silent."])]

    def forward(self, data: list[Query]) -> list[Ranking]:
        """Rank the passages of all queries of a batch, from one pass over all texts."""
        texts = [text for query in data for text in (query.question, *query.passages)]
        vectors = embed(texts)
        rankings = []
        start = 0
        for query in data:
            end = start + 1 + len(query.passages)
            scores = vectors[start + 1 : end] @ vectors[start]
            rankings.append(Ranking(matches=closest(scores, query.at_least)))
            start = end
        return rankings


def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return one row for each text, of length 1, or 0 for a text without a letter."""
    rows, columns = [], []
    for row, text in enumerate(texts):
        padded = f" {' '.join(text.lower().split())} "
        for place in range(len(padded) - 2):
            rows.append(row)
            columns.append(zlib.crc32(padded[place : place + 3].encode()) % DIMENSIONS)
    vectors = np.zeros((len(texts), DIMENSIONS), np.float32)
    np.add.at(vectors, (rows, columns), 1)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    np.divide(vectors, lengths, out=vectors, where=lengths > 0)
    return vectors


def closest(scores: npt.NDArray[np.float32], at_least: float) -> list[Match]:
    """Return the scores from `at_least` on, the best one first, and the first of equals first."""
    matches = [Match(place=place, score=round(min(float(score), 1.0), 4)) for place, score in enumerate(scores)]
    return sorted((match for match in matches if match.score >= at_least), key=lambda match: -match.score)


server = Server()
server.append_worker(Rank, max_batch_size=16, route="/rank")

if __name__ == "__main__":
    server.run()
