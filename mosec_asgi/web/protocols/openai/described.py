"""OpenAI's endpoints in the OpenAPI document of a service: operations, and the schemas that they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mosec_asgi.web.protocols.documented import ERRORS, JSON, TAG, TEXT, TIMEOUT, answered, errors, events, of
from mosec_asgi.web.protocols.openai.fields import MOST_OBJECTS, MOST_TOKENS
from mosec_asgi.web.protocols.seam import MAX_CALLS, Endpoint

if TYPE_CHECKING:
    from mosec_asgi.web.protocols.openai.service import ModelEndpoint

_FILLED: JSON = {"type": "string", "minLength": 1}
_WHOLE: JSON = {"type": "integer", "minimum": 0}
_OBJECT: JSON = {"type": "object"}
_TOKENS: JSON = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    "minItems": 1,
    "maxItems": MOST_TOKENS,
}
_ERRORS = {
    "400": "The request cannot be read, a field of it is wrong, or the model refuses it.",
    **ERRORS,
}


def get(operation_id: str, summary: str, schema: str, *, keyed: bool, missing: bool = False) -> JSON:
    """Return the path item of an endpoint by GET.

    Args:
        operation_id: of its operation.
        summary: what it does.
        schema: the name of that of its answer.
        keyed: a key must be sent.
        missing: it may be asked for what there is not.
    """
    statuses = [*(["401"] if keyed else []), *(["404"] if missing else [])]
    return {
        "get": {
            "tags": [TAG],
            "summary": summary,
            "operationId": operation_id,
            "responses": {"200": answered({"application/json": _named(schema)}), **_errors(statuses)},
        }
    }


def post(
    operation_id: str, summary: str, request: str, answer: str, example: JSON, keyed: bool, chunk: str | None = None
) -> JSON:
    """Return the path item of an endpoint that asks a model.

    Args:
        operation_id: of its operation.
        summary: what it does.
        request: the name of the request's schema.
        answer: the name of the answer's schema.
        example: of a request.
        keyed: a key must be sent.
        chunk: the name of the schema of a piece of a streamed answer.
    """
    content: JSON = {"application/json": _named(answer)}
    if chunk is not None:
        told = f"For `stream: true`: events whose data are `{chunk}` objects, and a last `[DONE]`."
        content |= events(told)
    statuses = [*(["401"] if keyed else []), "404", *_ERRORS]
    return {
        "post": {
            "tags": [TAG],
            "summary": summary,
            "description": "In OpenAI's form; see docs/protocols.md.",
            "operationId": operation_id,
            "parameters": [TIMEOUT],
            "requestBody": {
                "required": True,
                "content": {"application/json": {**_named(request), "example": example}},
            },
            "responses": {"200": answered(content), **_errors(statuses)},
        }
    }


def schemas_of(endpoints: Sequence[Endpoint]) -> JSON:
    """Return the schemas that the endpoints name."""
    from mosec_asgi.web.protocols.openai.service import ModelEndpoint

    schemas: JSON = {"Error": _ERROR, "Model": _MODEL, "ModelList": _list(_ref("Model"))}
    for endpoint in endpoints:
        if isinstance(endpoint, ModelEndpoint):
            request, answers = _KINDS[endpoint.name]
            name, fields, needed, others = request
            schemas[name] = {
                "type": "object",
                "properties": {"model": _models(endpoint), **fields},
                "required": ["model", *needed],
                **({} if others else {"additionalProperties": False}),
            }
            schemas |= answers
    return {f"openai.{name}": schema for name, schema in schemas.items()}


def _models(endpoint: ModelEndpoint) -> JSON:
    aliases = [alias for alias, name in endpoint.common.aliases.items() if name in endpoint.models]
    return {"type": "string", "enum": [*endpoint.models, *aliases]}


def _ref(name: str) -> JSON:
    return {"$ref": f"#/components/schemas/openai.{name}"}


def _named(name: str) -> JSON:
    return {"schema": _ref(name)}


def _errors(statuses: Sequence[str]) -> JSON:
    told = {"401": "There is no API key, or not a right one.", "404": "There is no such model.", **_ERRORS}
    return errors(told, statuses, _named("Error"))


def _list(item: JSON) -> JSON:
    return of({"object": {"const": "list"}, "data": {"type": "array", "items": item}})


def _or_null(schema: JSON) -> JSON:
    return {"anyOf": [schema, {"type": "null"}]}


def _number(least: float, most: float) -> JSON:
    return {"type": ["number", "null"], "minimum": least, "maximum": most}


def _whole(least: int, most: int = 2**31 - 1) -> JSON:
    return {"type": ["integer", "null"], "minimum": least, "maximum": most}


def _text_or_texts(most: int) -> JSON:
    return {
        "anyOf": [
            _FILLED,
            {"type": "array", "items": _FILLED, "minItems": 1, "maxItems": most},
            _TOKENS,
            {"type": "array", "items": _TOKENS, "minItems": 1, "maxItems": most},
        ]
    }


_ERROR = of(
    {
        "error": of(
            {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            }
        )
    }
)
_MODEL = of({"id": TEXT, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": TEXT})
_COUNTED = of({"prompt_tokens": _WHOLE, "total_tokens": _WHOLE})
_USAGE = of({"prompt_tokens": _WHOLE, "completion_tokens": _WHOLE, "total_tokens": _WHOLE})
_FLAG: JSON = {"type": ["boolean", "null"]}
_MAYBE_TEXT: JSON = {"type": ["string", "null"]}
_MAYBE_OBJECT: JSON = {"type": ["object", "null"]}
_GENERATION: JSON = {
    "stream": _FLAG,
    "stream_options": {
        "type": ["object", "null"],
        "properties": {"include_usage": _FLAG},
        "description": "Only with `stream: true`.",
    },
    "max_tokens": _whole(1),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": _whole(-(2**63), 2**63 - 1),
    "stop": {"anyOf": [_FILLED, {"type": "array", "items": _FILLED, "maxItems": 4}, {"type": "null"}]},
    "n": {"enum": [1, None]},
    "logit_bias": _MAYBE_OBJECT,
    "user": _MAYBE_TEXT,
}


def _written(name: str, choice: JSON) -> JSON:
    return of(
        {
            "id": TEXT,
            "object": {"const": name},
            "created": {"type": "integer"},
            "model": TEXT,
            "choices": {"type": "array", "items": choice},
            "usage": _or_null(_USAGE),
        },
        "usage",
    )


def _choice(name: str, content: JSON) -> JSON:
    return of({"index": _WHOLE, name: content, "logprobs": {"type": "null"}, "finish_reason": _MAYBE_TEXT})


_MESSAGE = of(
    {"role": {"const": "assistant"}, "content": _MAYBE_TEXT, "tool_calls": {"type": "array", "items": _OBJECT}},
    "tool_calls",
)
# Below each path: the name of the request's schema, its fields but the model, those that must be there, and whether
# others go to the worker; and the schemas of the answers.
_KINDS: dict[str, tuple[tuple[str, JSON, Sequence[str], bool], JSON]] = {
    "/chat/completions": (
        (
            "ChatRequest",
            {
                "messages": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MOST_OBJECTS,
                    "items": {"type": "object", "properties": {"role": TEXT}, "required": ["role"]},
                },
                **_GENERATION,
                "max_completion_tokens": _whole(1),
                "tools": {"type": ["array", "null"], "items": _OBJECT, "maxItems": MOST_OBJECTS},
                "response_format": _MAYBE_OBJECT,
                "parallel_tool_calls": _FLAG,
                "logprobs": _FLAG,
                "top_logprobs": _whole(0, 20),
            },
            ["messages"],
            True,
        ),
        {
            "ChatCompletion": _written("chat.completion", _choice("message", _MESSAGE)),
            "ChatChunk": _written("chat.completion.chunk", _choice("delta", _OBJECT)),
        },
    ),
    "/completions": (
        (
            "CompletionRequest",
            {
                "prompt": _text_or_texts(128),
                **_GENERATION,
                "echo": _FLAG,
                "suffix": _MAYBE_TEXT,
                "best_of": {"enum": [1, None]},
                "logprobs": _whole(0, 5),
            },
            ["prompt"],
            True,
        ),
        {"Completion": _written("text_completion", _choice("text", TEXT))},
    ),
    "/embeddings": (
        (
            "EmbeddingsRequest",
            {
                "input": _text_or_texts(MAX_CALLS),
                "encoding_format": {"enum": ["float", "base64", None]},
                "dimensions": _whole(1),
                "user": _MAYBE_TEXT,
            },
            ["input"],
            False,
        ),
        {
            "Embeddings": of(
                {
                    **_list({})["properties"],
                    "data": {
                        "type": "array",
                        "items": of(
                            {
                                "object": {"const": "embedding"},
                                "index": _WHOLE,
                                "embedding": {"anyOf": [{"type": "array", "items": {"type": "number"}}, TEXT]},
                            }
                        ),
                    },
                    "model": TEXT,
                    "usage": _COUNTED,
                }
            )
        },
    ),
    "/rerank": (
        (
            "RerankRequest",
            {
                "query": _FILLED,
                "documents": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_CALLS,
                    "items": {
                        "anyOf": [
                            _FILLED,
                            {"type": "object", "properties": {"text": _FILLED}, "required": ["text"]},
                        ]
                    },
                },
                "top_n": _whole(1),
                "return_documents": _FLAG,
                "max_chunks_per_doc": _whole(1),
                "max_tokens_per_doc": _whole(1),
            },
            ["query", "documents"],
            False,
        ),
        {
            "Ranked": of(
                {
                    "id": TEXT,
                    "object": {"const": "list"},
                    "model": TEXT,
                    "results": {
                        "type": "array",
                        "items": of(
                            {"index": _WHOLE, "relevance_score": {"type": "number"}, "document": of({"text": TEXT})},
                            "document",
                        ),
                    },
                    "usage": _COUNTED,
                    "meta": _OBJECT,
                }
            )
        },
    ),
}
