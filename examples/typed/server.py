"""Typed requests as a service: POST a question and some passages, get the passages that are closest to it.

    python examples/typed/server.py --port 8000
    curl http://127.0.0.1:8000/rank -d '{"question": "who barks?", "passages": ["Cats purr.", "Dogs bark."]}'
    python examples/typed/client.py "who barks?" "Cats purr." "Dogs bark." --route /rank/msgpack

What a client may send and what it gets are types, which check each request by itself, also within a batch, and which
are the OpenAPI document at /openapi/swagger/. Two routes with the same answers: /rank has pydantic models and JSON,
/rank/msgpack has msgspec structs and msgpack.

The model is the vector space model of information retrieval, over groups of three letters: a text is the vector of how
often it has each group, hashed to 4096 places, and two texts are as close as the angle between their vectors.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from mosec_asgi import Server
from mosec_asgi.mixin import PydanticMixin, TypedMsgPackMixin

# The module of the model, wherever it is imported from.
sys.path.insert(0, str(Path(__file__).parent / "modules"))
from letters import closest, embed

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
        """Rank the passages of all queries of a batch."""
        return [
            Ranking(matches=[Match(place=place, score=score) for place, score in matches]) for matches in rank(data)
        ]


class PackedQuery(msgspec.Struct, forbid_unknown_fields=True):
    """A `Query` in msgpack. Msgspec is strict by itself: no number as text."""

    question: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
    passages: Annotated[list[Annotated[str, msgspec.Meta(max_length=2000)]], msgspec.Meta(min_length=1, max_length=100)]
    at_least: Annotated[float, msgspec.Meta(ge=0, le=1, description="Leave out passages with a lower score.")] = 0.1


class PackedMatch(msgspec.Struct):
    """A passage that was found."""

    place: Annotated[int, msgspec.Meta(ge=0, description="Its place in the list of passages, from 0.")]
    score: Annotated[float, msgspec.Meta(ge=0, le=1, description="How close it is to the question; 1 is the same.")]


class PackedRanking(msgspec.Struct):
    """The closest passages, the closest one first."""

    matches: list[PackedMatch]


class RankPacked(TypedMsgPackMixin):
    """Rank passages by how close they are to a question, in msgpack."""

    example = [PackedQuery("Which animal barks?", ["Cats purr.", "Dogs bark.", "Fish are silent."])]

    def forward(self, data: list[PackedQuery]) -> list[PackedRanking]:
        """Rank the passages of all queries of a batch."""
        return [PackedRanking([PackedMatch(place, score) for place, score in matches]) for matches in rank(data)]


def rank(queries: Sequence[Query] | Sequence[PackedQuery]) -> list[list[tuple[int, float]]]:
    """Return the places and scores of the closest passages of each query, from one pass over all texts."""
    vectors = embed([text for query in queries for text in (query.question, *query.passages)])
    rankings = []
    start = 0
    for query in queries:
        end = start + 1 + len(query.passages)
        rankings.append(closest(vectors[start + 1 : end] @ vectors[start], query.at_least))
        start = end
    return rankings


server = Server()
server.append_worker(Rank, max_batch_size=16, route="/rank")
server.append_worker(RankPacked, max_batch_size=16, route="/rank/msgpack")

if __name__ == "__main__":
    server.run()
