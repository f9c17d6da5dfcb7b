"""What one request's body may cost the event loop: in processor time, before it is with its worker."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from openai_workers import serve

from mosec_asgi.calls.objects import Objects
from mosec_asgi.testing import serving
from mosec_asgi.web.protocols.openai.chat import Chat
from mosec_asgi.web.protocols.openai.completions import MOST_BESIDE
from mosec_asgi.web.protocols.openai.errors import Refused
from mosec_asgi.web.protocols.openai.rerank import MOST_QUERY
from mosec_asgi.web.protocols.openai.service import Common
from mosec_asgi.web.protocols.openai.weight import MOST_BRACKETS, MOST_COMMAS, MOST_TEXTS, check_weight
from mosec_asgi.web.protocols.seam import Ask
from mosec_asgi.web.responses import Response

HEAD = b'{"model": "m", "messages": [{"role": "user", "content": "%b"}], "more": [%b]}'


def body(more: bytes, content: bytes = b"") -> bytes:
    return HEAD % (content, more)


def repeated(piece: bytes, size: int = 1_000_000) -> bytes:
    return b",".join([piece] * (size // (len(piece) + 1)))


HEAVY = {
    "objects": repeated(b'{"a":1}'),
    "lists": repeated(b"[]"),
    "deep lists": repeated(b"[" * 120 + b"]" * 120),
    "deep objects": repeated(b'{"a":' * 120 + b"1" + b"}" * 120),
    "numbers": repeated(b"1"),
    "floats": repeated(b"1.5"),
    "texts": repeated(b'""'),
    "names": b"{" + b",".join(b'"%d":1' % number for number in range(90_000)) + b"}",
    "huge integers": b"9" * 20 + b"," + repeated(b"{}"),
    "long integers": repeated(b"9" * 300),
}


def processor_seconds(work: Callable[[], Any]) -> float:
    """Return the least of three: others may run beside us, and the collector of garbage within."""
    gc.collect()
    taken = []
    for _ in range(3):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def all_of_it(data: bytes) -> Ask | Response:
    """Do what the event loop does with a request until it is with its worker, or refused."""

    class Request:
        body = data
        path_params: dict[str, Any] = {}
        headers: dict[bytes, bytes] = {}

    asked = Chat(Common("/v1", {}, ()), {"m": "/m"}).ask(Request())  # type: ignore[arg-type]
    if isinstance(asked, Ask):
        Objects().payload(asked.items[0], apart=False)
    return asked


@pytest.mark.parametrize("kind", HEAVY)
def test_a_megabyte_of_anything_costs_less_than_to_read_a_megabyte_of_objects(kind: str) -> None:
    yardstick = processor_seconds(lambda: orjson.loads(body(HEAVY["deep objects"])))
    assert processor_seconds(lambda: all_of_it(body(HEAVY[kind]))) < 1.2 * yardstick


@pytest.mark.parametrize(
    ("most", "piece", "what"),
    [
        (MOST_BRACKETS, b"[]", "lists and objects"),
        (MOST_BRACKETS, b"{}", "lists and objects"),
        (MOST_TEXTS, b'""', "texts"),
        (MOST_COMMAS, b"1", "values"),
    ],
)
def test_a_body_of_too_many_values_is_refused_by_their_kind(most: int, piece: bytes, what: str) -> None:
    check_weight(b",".join([piece] * most))
    with pytest.raises(Refused, match=f"{what}, and one request may have {most}"):
        check_weight(b",".join([piece] * (most + 2)))


@pytest.mark.parametrize("text", [b"[{", rb"\"[{\"", rb"\\[{", rb"\\\"{[", b",", rb"\u005b,"])
def test_what_stands_in_a_text_is_not_counted(text: bytes) -> None:
    answer = all_of_it(body(b"", text * 200_000))
    assert isinstance(answer, Ask)
    assert len(answer.items[0]["messages"][0]["content"]) >= 200_000


def test_the_end_of_a_text_is_found_behind_escaped_backslashes() -> None:
    with pytest.raises(Refused, match="lists and objects"):
        check_weight(rb'["a\\", ' + b"[" * (MOST_BRACKETS + 1))


async def test_fields_that_each_of_several_prompts_has_with_it_are_bounded() -> None:
    async with serving(serve()) as service:
        for prompts, status in (["a"], 200), (["a", "b"], 400):
            fields = {"model": "prompts", "prompt": prompts, "more": "x" * MOST_BESIDE}
            answer = await service.client.post("/v1/completions", json=fields)
            assert answer.status_code == status
            assert ("several prompts" in answer.text) == (status == 400)


async def test_the_query_that_each_of_several_documents_has_with_it_is_bounded() -> None:
    async with serving(serve()) as service:
        for documents, size in (["a"], MOST_QUERY + 1), (["a", "b"], MOST_QUERY):
            fields = {"model": "letters", "query": "q" * size, "documents": documents}
            assert (await service.client.post("/v1/rerank", json=fields)).status_code == 200
        fields = {"model": "letters", "query": "é" * (MOST_QUERY // 2 + 1), "documents": ["a", "b"]}
        answer = await service.client.post("/v1/rerank", json=fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "query")
        assert f"may have {MOST_QUERY} where there are several documents" in answer.text
