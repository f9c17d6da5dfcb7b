"""`POST /v1/rerank`, in the form of Cohere and Jina: a query and documents, each pair of which gets a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from mosec_asgi.errors import ServerError
from mosec_asgi.web.protocols.openai import described
from mosec_asgi.web.protocols.openai.errors import Refused
from mosec_asgi.web.protocols.openai.fields import checked, filled, flag, refuse_others, required, whole
from mosec_asgi.web.protocols.openai.service import ModelEndpoint, new_id, parts_of
from mosec_asgi.web.protocols.seam import MAX_CALLS, Ask, json_response
from mosec_asgi.web.responses import Response

# Bytes of the query, where there are several documents.
MOST_QUERY = 65_536
_CHECKS = {
    "top_n": whole(1),
    "return_documents": flag,
    # Of Cohere's. A worker is given whole documents.
    "max_chunks_per_doc": whole(1),
    "max_tokens_per_doc": whole(1),
}
_FIELDS = ("model", "query", "documents", *_CHECKS)


class _Wanted(NamedTuple):
    model: str
    top: int
    with_documents: bool


class Rerank(ModelEndpoint):
    """Documents by how well they answer a query."""

    name = "/rerank"
    param = "documents"

    def read(self, name: str, route: str, fields: dict[str, Any]) -> Ask:
        """Return a call for each pair of the query and a document."""
        query = required(fields, "query", filled)
        documents = required(fields, "documents", _documents)
        refuse_others(fields, _FIELDS)
        checked(fields, _CHECKS)
        if len(documents) > 1 and (size := len(query.encode())) > MOST_QUERY:
            # Each document's call has it.
            raise Refused(
                f"query: it has {size} bytes, and may have {MOST_QUERY} where there are several documents; "
                "send several requests",
                "query",
            )
        wanted = _Wanted(name, fields.get("top_n", len(documents)), fields.get("return_documents", False))
        return Ask(route, [[query, document] for document in documents], wanted)

    def write(self, ask: Ask, results: Sequence[Any]) -> Response:
        """Return the documents' places and scores, the best one first."""
        wanted: _Wanted = ask.context
        total, scores = 0, []
        for result in results:
            score, tokens = parts_of(result, "score")
            total += tokens
            scores.append(_score(score))
        ranked = []
        for place in sorted(range(len(scores)), key=lambda each: -scores[each])[: wanted.top]:
            row: dict[str, Any] = {"index": place, "relevance_score": scores[place]}
            if wanted.with_documents:
                row["document"] = {"text": ask.items[place][1]}
            ranked.append(row)
        return json_response(
            {
                "id": new_id("rerank"),
                "object": "list",
                "model": wanted.model,
                "results": ranked,
                "usage": {"prompt_tokens": total, "total_tokens": total},
                "meta": {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}},
            }
        )

    def describe(self) -> dict[str, Any]:
        """Describe the endpoint."""
        example = {
            "model": next(iter(self.models)),
            "query": "Who barks?",
            "documents": ["Cats purr.", "Dogs bark."],
            "top_n": 1,
        }
        return described.post(
            "openai.rerank", "Documents by how well they answer", "RerankRequest", "Ranked", example, self.common.keyed
        )


def _documents(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError("it must be a list of texts, one at least")
    if len(value) > MAX_CALLS:
        raise ValueError(f"it has {len(value)} items, and one request may have {MAX_CALLS}; send several requests")
    documents: list[Any] = [each.get("text") if isinstance(each, dict) else each for each in value]
    for place, document in enumerate(documents):
        if not isinstance(document, str) or not document:
            raise ValueError(f"[{place}] must be a text that is not empty, or an object with such a `text`")
    return documents


def _score(value: Any) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        kind = type(value).__name__
        raise ServerError(
            f"a reranker returned {kind}; return a number for each pair, or a dictionary of `score` and `prompt_tokens`"
        ) from error
    if not math.isfinite(score):
        raise ServerError(f"a reranker returned {score} for a pair, which JSON cannot hold")
    return score
