"""OpenAI's API over a service: OpenAI's own client, errors, hostile requests, and what everybody else feels of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import socket
import statistics
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import openai_workers
import pytest
from harness import TESTS, Program, running, written
from openai_workers import Embed, Write, serve

from mosec_asgi import Server, Worker, testing
from mosec_asgi.errors import DefinitionError
from mosec_asgi.protocols import Delta, OpenAI

HELLO = [{"role": "user", "content": "hello big world"}]


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def whole(client: openai.AsyncOpenAI, model: str, messages: Any, *, stream: bool) -> Any:
    """Return a whole completion; one that comes as a stream is put together by the client."""
    if not stream:
        return await client.chat.completions.create(model=model, messages=messages)
    async with client.chat.completions.stream(model=model, messages=messages) as events:
        return await events.get_final_completion()


@contextlib.asynccontextmanager
async def asked(server: Server | None = None, key: str = "none") -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    """Serve in this process; yield OpenAI's client, and a plain one."""
    async with testing.serving(server or serve(shortens=["org/lengths"])) as service:
        client = openai.AsyncOpenAI(
            base_url="http://testserver/v1", api_key=key, http_client=service.client, max_retries=0
        )
        yield client, service.client


async def take(stream: Any, chunks: list[Any]) -> None:
    """Add the chunks of a stream to a list, as they come."""
    async for chunk in stream:
        chunks.append(chunk)


# -- embeddings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("abc", [[3, 97, 0]]),
        (["b", "ab"], [[1, 98, 0], [2, 97, 0]]),
        ([5, 6, 7], [[3, 5, 0]]),
        ([[5, 6], [7]], [[2, 5, 0], [1, 7, 0]]),
    ],
)
@pytest.mark.parametrize("form", ["float", "base64", openai.NOT_GIVEN])
async def test_a_text_or_a_list_of_tokens_becomes_a_vector_in_either_form(
    given: Any, expected: list[list[int]], form: Any
) -> None:
    async with asked() as (client, _):
        answer = await client.embeddings.create(model="lengths", input=given, encoding_format=form)
    vectors = [row.embedding for row in answer.data]
    if form == "base64":
        vectors = [list(struct.unpack("<3f", base64.b64decode(each))) for each in vectors]
    assert vectors == expected
    assert [row.index for row in answer.data] == list(range(len(expected)))
    total = sum(each[0] for each in expected)
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("lengths", total, total)


async def test_dimensions_are_those_of_the_model_unless_it_shortens() -> None:
    async with asked() as (client, _):
        whole = await client.embeddings.create(model="lengths", input="abc", dimensions=3)
        assert whole.data[0].embedding == [3, 97, 0]
        short = (await client.embeddings.create(model="org/lengths", input="abc", dimensions=2)).data[0].embedding
        assert short == pytest.approx([3 / math.hypot(3, 97), 97 / math.hypot(3, 97)])
        for model, dimensions in (("lengths", 2), ("org/lengths", 4)):
            with pytest.raises(openai.BadRequestError, match="have 3 numbers") as caught:
                await client.embeddings.create(model=model, input="abc", dimensions=dimensions)
            assert caught.value.param == "dimensions"


@pytest.mark.parametrize(("text", "told"), [("bad", "a bad text"), ("invalid", "an invalid text")])
async def test_the_text_that_a_worker_refuses_is_named_and_the_status_is_400(text: str, told: str) -> None:
    async with asked() as (client, _):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="lengths", input=["a", "b", text, "c"])
        assert caught.value.body == {
            "message": f"input[2]: {told}",
            "type": "invalid_request_error",
            "param": "input",
            "code": None,
        }
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="lengths", input=text)
        assert caught.value.body["message"] == told


class Numpy(Worker):
    """Vectors of numpy, and what is none."""

    def forward(self, data: str) -> Any:
        import numpy as np

        return {"vector": np.array([0.5, 2], np.float16), "table": np.ones((1, 2)), "text": "x"}[data]


async def test_a_numpy_vector_stays_one_until_it_is_encoded_and_what_is_none_is_an_error_of_the_server() -> None:
    pytest.importorskip("numpy")
    server = Server()
    server.append_worker(Numpy, route="/numpy")
    server.add_protocol(OpenAI(embeddings={"n": "/numpy"}))
    async with asked(server) as (client, _):
        for form in ("float", openai.NOT_GIVEN):
            answer = await client.embeddings.create(model="n", input="vector", encoding_format=form)
            assert answer.data[0].embedding == [0.5, 2]
        for text, told in (("table", r"array of shape \(1, 2\)"), ("text", "returned str")):
            with pytest.raises(openai.InternalServerError, match=told):
                await client.embeddings.create(model="n", input=text)


# -- rerank ------------------------------------------------------------------------------------------------------------


async def test_documents_come_back_the_best_one_first() -> None:
    async with asked() as (_, client):
        body = {"model": "letters", "query": "abc", "documents": ["xyz", {"text": "abx"}, "abc"]}
        answer = (await client.post("/v1/rerank", json=body)).json()
        ranked = [(row["index"], row["relevance_score"]) for row in answer["results"]]
        assert ranked == [(2, 3.0), (1, 2.0), (0, 0.0)]
        assert "document" not in answer["results"][0]
        answer = (await client.post("/v1/rerank", json={**body, "top_n": 1, "return_documents": True})).json()
        assert answer["results"] == [{"index": 2, "relevance_score": 3.0, "document": {"text": "abc"}}]


# -- chat and completions ----------------------------------------------------------------------------------------------


async def test_a_whole_answer_is_gathered_from_what_the_worker_yields() -> None:
    async with asked() as (client, _):
        answer = await client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=2)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "hello big ", "length")
    assert (answer.model, answer.object) == ("parrot", "chat.completion")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 2, 5)
    assert answer.id.startswith("chatcmpl-")


@pytest.mark.parametrize("counted", [False, True])
async def test_a_stream_has_the_role_first_its_end_and_what_was_counted_last(counted: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if counted else {}
    async with asked() as (client, _):
        stream = await client.chat.completions.create(model="parrot", messages=HELLO, stream=True, **options)
        chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1
    usage = [chunk.usage for chunk in chunks]
    if counted:
        last = chunks.pop()
        assert (last.choices, last.usage.total_tokens) == ([], 6)
        assert usage[:-1] == [None] * len(chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello big world "
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]


async def test_a_stream_ends_with_done() -> None:
    async with asked() as (_, client):
        body = {"model": "parrot", "messages": HELLO, "stream": True}
        answer = await client.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"] == "text/event-stream"
    *chunks, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(json.loads(chunk.removeprefix("data: "))["object"] == "chat.completion.chunk" for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_that_returns_all_at_once_is_a_chat_model_as_well(stream: bool) -> None:
    async with asked() as (client, _):
        answer = await client.chat.completions.create(model="whole", messages=HELLO, stream=stream)
        if stream:
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
        else:
            text = answer.choices[0].message.content
    assert text == "all of it"


@pytest.mark.parametrize("stream", [False, True])
async def test_each_prompt_is_gone_on_with(stream: bool) -> None:
    async with asked() as (client, _):
        answer = await client.completions.create(model="prompts", prompt=["one", "two"], stream=stream)
        if not stream:
            assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "one end"), (1, "two end")]
            assert (answer.object, answer.usage.total_tokens) == ("text_completion", 6)
            return
        texts = {0: "", 1: ""}
        ends = []
        async for chunk in answer:
            [choice] = chunk.choices
            texts[choice.index] += choice.text
            ends += [choice.index] if choice.finish_reason == "stop" else []
    assert (texts, sorted(ends)) == ({0: "one end", 1: "two end"}, [0, 1])


async def test_a_prompt_may_be_tokens() -> None:
    async with asked() as (client, _):
        for prompt, texts in (([1, 2], ["[1, 2] end"]), ([[1], [2]], ["[1] end", "[2] end"])):
            answer = await client.completions.create(model="prompts", prompt=prompt)
            assert [choice.text for choice in answer.choices] == texts


async def test_the_worker_is_given_the_clients_fields_as_they_are_without_those_of_the_protocol() -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    async with asked() as (client, _):
        answer = await client.chat.completions.create(
            model="gpt-4o",
            messages=said("show"),
            stop=["a", "b"],
            max_completion_tokens=9,
            temperature=0,
            n=1,
            tools=tools,
            response_format=form,
            seed=None,
            extra_body={"top_k": 3},
        )
    assert json.loads(answer.choices[0].message.content) == {
        "model": "parrot",
        "messages": said("show"),
        "stop": ["a", "b"],
        "max_completion_tokens": 9,
        "temperature": 0,
        "tools": tools,
        "response_format": form,
        "top_k": 3,
    }


@pytest.mark.parametrize("stream", [True, False])
async def test_tool_calls_without_an_index_stay_apart(stream: bool) -> None:
    async with asked() as (client, _):
        answer = await whole(client, "parrot", said("tools"), stream=stream)
    calls = [(call.id, call.function.name, call.function.arguments) for call in answer.choices[0].message.tool_calls]
    assert calls == [("call_1", "add", "{}"), ("call_2", "stop", "{}")]
    assert stream or answer.usage.total_tokens == 3


class Returns(Worker):
    """Returns a value of a list, by its place there."""

    values: tuple[Any, ...] = ()

    def forward(self, data: Any) -> Any:
        return self.values[int(data["messages"][0]["content"] if isinstance(data, dict) else data[-1])]


class OddVectors(Returns):
    values = (
        [1.0, "x"], [1.0, None], [math.nan, 1.0], [math.inf], [math.inf, -math.inf], [10**400, 0.5],
        np.array([1.0, math.nan], "f4"), np.array([math.inf, -math.inf]), np.array(["a"]), np.array([1j]),
        [1e308, 1e308], np.array([1e200, 1e200]), np.array([1, 2]), [True], np.array([300, 300], "f2"),
    )  # fmt: skip


async def test_vectors_of_anything_but_finite_numbers_are_the_workers_fault() -> None:
    server = Server()
    server.append_worker(OddVectors, route="/e")
    server.add_protocol(OpenAI(embeddings={"odd": "/e"}))
    async with asked(server) as (_, plain):
        statuses = []
        for place in range(10):
            answer = await plain.post(EMBEDDINGS, json={"model": "odd", "input": [7, place]})
            statuses.append(answer.status_code)
            assert "an embedder returned a vector that holds" in answer.text
        for place in range(10, len(OddVectors.values)):
            answer = await plain.post(EMBEDDINGS, json={"model": "odd", "input": [7, place]})
            statuses.append(answer.status_code)
    assert statuses == [500] * 10 + [200] * 5


class OddScores(Returns):
    values = (math.nan, math.inf, 10**400, {"score": 1, "prompt_tokens": None})

    def forward(self, data: Any) -> Any:
        return self.values[int(data[1])]


async def test_scores_that_json_has_no_form_for_are_the_workers_fault() -> None:
    server = Server()
    server.append_worker(OddScores, route="/r")
    server.add_protocol(OpenAI(rerank={"odd": "/r"}))
    async with asked(server) as (_, plain):
        statuses = []
        for place in range(4):
            answer = await plain.post("/v1/rerank", json={"model": "odd", "query": "q", "documents": [str(place)]})
            statuses.append(answer.status_code)
            assert "internal error" not in answer.text
    assert statuses == [500, 500, 500, 200]


class Pieces(Returns):
    values = (["a", Delta("b", finish_reason="stop"), "dropped"],)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_worker_may_return_all_of_its_pieces(stream: bool) -> None:
    server = Server()
    server.append_worker(Pieces, route="/c")
    server.add_protocol(OpenAI(chat={"pieces": "/c"}))
    async with asked(server) as (client, _):
        answer = await whole(client, "pieces", said("0"), stream=stream)
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("ab", "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls_reach_the_client_and_are_joined_in_a_whole_answer(stream: bool) -> None:
    async with asked() as (client, _):
        answer = await whole(client, "parrot", said("tool"), stream=stream)
    [choice] = answer.choices
    [call] = choice.message.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == ("call_1", "add", "{}")
    assert choice.finish_reason == "tool_calls"


async def test_a_stream_that_fails_before_it_has_begun_has_a_status_and_after_that_a_last_event() -> None:
    async with asked() as (client, _):
        with pytest.raises(openai.BadRequestError, match="a word that fails"):
            await client.chat.completions.create(model="parrot", messages=said("fail"), stream=True)
        stream = await client.chat.completions.create(model="parrot", messages=said("one two fail"), stream=True)
        got: list[Any] = []
        with pytest.raises(openai.APIError, match="a word that fails"):
            await take(stream, got)
        assert "".join(chunk.choices[0].delta.content for chunk in got) == "one two "


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_no_text_is_an_error_of_the_server(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def ask(client: Any) -> None:
        answer = await client.chat.completions.create(model="parrot", messages=said("a seven b"), stream=stream)
        await take(answer, [])

    async with asked() as (client, _):
        with pytest.raises(openai.APIError, match="yields text or Delta, not int"):
            await ask(client)


async def test_a_client_that_leaves_its_stream_ends_it_in_the_worker() -> None:
    server = serve()
    async with testing.serving(server) as service:
        service.worker(Write).slow(0.05)
        client = openai.AsyncOpenAI(base_url="http://testserver/v1", api_key="none", http_client=service.client)
        stream = await client.chat.completions.create(model="parrot", messages=said("word " * 500), stream=True)
        async for _ in stream:
            break
        await stream.close()
        while service.statistics.admitted:
            await asyncio.sleep(0.01)


# -- models, keys, errors ----------------------------------------------------------------------------------------------


async def test_models_are_listed_and_found_by_their_names_and_aliases() -> None:
    async with asked() as (client, _):
        names = ["parrot", "whole", "prompts", "lengths", "org/lengths", "letters"]
        assert [model.id async for model in client.models.list()] == names
        assert (await client.models.retrieve("org/lengths")).id == "org/lengths"
        assert (await client.models.retrieve("gpt-4o")).id == "parrot"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("none")


async def test_an_unknown_model_or_one_of_another_kind_is_404() -> None:
    async with asked() as (client, _):
        for name in ("gpt-5", "parrot"):
            with pytest.raises(openai.NotFoundError, match="only 'lengths', 'org/lengths'") as caught:
                await client.embeddings.create(model=name, input="a")
            assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("kind", [list, iter])
async def test_where_there_are_keys_a_client_needs_one_of_them(kind: Any) -> None:
    server = serve(keys=kind(["first", "second"]), shortens=kind(["lengths"]))
    async with asked(server, key="second") as (client, plain):
        assert (await client.embeddings.create(model="lengths", input="a")).model == "lengths"
        wrong = client.with_options(api_key="third")
        for call in (wrong.models.list(), wrong.embeddings.create(model="lengths", input="a")):
            with pytest.raises(openai.AuthenticationError) as caught:
                await call
            assert caught.value.code == "invalid_api_key"
        answer = await plain.post("/v1/embeddings", json={})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert (await plain.post("/embed", json="a")).status_code == 200, "plain routes have no keys"


async def test_a_worker_says_the_code_the_type_and_the_field_of_its_error() -> None:
    async with asked() as (client, plain):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="lengths", input="told")
        assert (caught.value.code, caught.value.type, caught.value.param) == (
            "context_length_exceeded", "tokens", "input",
        )  # fmt: skip
        for stream in (False, True):
            with pytest.raises(openai.APIError, match="too long") as failed:
                await whole(client, "parrot", said("a told b"), stream=stream)
            assert (failed.value.code, failed.value.param) == ("context_length_exceeded", "messages.0")
        answer = await plain.post("/embed", json="told")
        assert (answer.status_code, answer.text) == (400, "bad request: too long"), "plain routes show the text alone"


KEYED = """
from openai_workers import serve

server = serve(keys=["right"])

if __name__ == "__main__":
    server.run()
"""


@pytest.mark.parametrize(
    "arguments", [["server.py", "--port", "{port}"], ["-m", "uvicorn", "server:server", "--port", "{port}"]]
)
def test_a_client_without_a_key_is_refused_before_its_body_is_read(tmp_path: Path, arguments: list[str]) -> None:
    """On all ways: the short one of `run()`, a stream's, and that of any ASGI server."""
    written(tmp_path, KEYED)
    with running([sys.executable, *arguments], tmp_path / "log", cwd=tmp_path) as program:
        program.wait_ready()
        for path in ("/v1/embeddings", "/v1/chat/completions"):
            for key in ("", "authorization: Bearer wrong\r\n"):
                with socket.create_connection(("127.0.0.1", program.port), timeout=10) as client:
                    client.sendall(f"POST {path} HTTP/1.1\r\nhost: a\r\n{key}content-length: 9000000\r\n\r\n".encode())
                    assert client.recv(4096).startswith(b"HTTP/1.1 401")
        for _ in range(3):
            right = program.client.post(
                "/v1/embeddings", json={"model": "lengths", "input": "a"}, headers={"authorization": "Bearer right"}
            )
            assert right.status_code == 200
            wrong = program.client.post("/v1/embeddings", json={}, headers={"authorization": "Bearer wrong"})
            assert wrong.json()["error"]["code"] == "invalid_api_key"


async def test_a_path_or_a_method_that_there_is_not_is_told_in_openais_form_below_the_prefix() -> None:
    async with asked() as (client, plain):
        with pytest.raises(openai.NotFoundError) as caught:
            await client.images.generate(model="none", prompt="a")
        assert caught.value.type == "invalid_request_error"
        answer = await plain.get("/v1/embeddings")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert answer.json()["error"]["message"].startswith("Method Not Allowed")
        assert (await plain.get("/nowhere")).text.startswith("Not Found")


def mangled(path: str, **changes: Any) -> tuple[str, bytes]:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/embeddings": {"model": "lengths", "input": "a"},
        "/v1/chat/completions": {"model": "parrot", "messages": HELLO},
        "/v1/completions": {"model": "prompts", "prompt": "a"},
        "/v1/rerank": {"model": "letters", "query": "a", "documents": ["b"]},
    }
    return path, json.dumps({**bodies[path], **changes}).encode()


EMBEDDINGS, CHAT, COMPLETIONS, RERANK = "/v1/embeddings", "/v1/chat/completions", "/v1/completions", "/v1/rerank"


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ((EMBEDDINGS, b""), None),
        ((EMBEDDINGS, b"{"), None),
        ((EMBEDDINGS, b"[]"), None),
        ((EMBEDDINGS, b'"text"'), None),
        ((EMBEDDINGS, b'{"model": NaN}'), None),
        ((EMBEDDINGS, b"[" * 100_000), None),
        ((CHAT, b'{"model":"parrot","messages":' + b"[" * 5000 + b"]" * 5000 + b"}"), None),
        (mangled(EMBEDDINGS, model=7), "model"),
        (mangled(EMBEDDINGS, model=None), "model"),
        (mangled(EMBEDDINGS, input=None), "input"),
        (mangled(EMBEDDINGS, input=""), "input"),
        (mangled(EMBEDDINGS, input=[]), "input"),
        (mangled(EMBEDDINGS, input=[""]), "input"),
        (mangled(EMBEDDINGS, input=["a", 1]), "input"),
        (mangled(EMBEDDINGS, input=["a", ["b"]]), "input"),
        (mangled(EMBEDDINGS, input=[1, "a"]), "input"),
        (mangled(EMBEDDINGS, input=[[1], []]), "input"),
        (mangled(EMBEDDINGS, input=[-1]), "input"),
        (mangled(EMBEDDINGS, input=[True]), "input"),
        (mangled(EMBEDDINGS, input=[1.5]), "input"),
        (mangled(EMBEDDINGS, input=[10**300]), "input"),
        (mangled(EMBEDDINGS, input={"a": 1}), "input"),
        (mangled(EMBEDDINGS, input=5), "input"),
        (mangled(EMBEDDINGS, input=["a"] * 50_000), "input"),
        (mangled(EMBEDDINGS, input=[1] * 300_001), "input"),
        (mangled(EMBEDDINGS, input=[[1] * 1000] * 301), "input"),
        (mangled(EMBEDDINGS, **{"x" * 100_000: 1}), "x" * 40),
        (mangled(CHAT, messages=[{"role": "user"}] * 5000), "messages"),
        (mangled(EMBEDDINGS, dimensions=0), "dimensions"),
        (mangled(EMBEDDINGS, dimensions="3"), "dimensions"),
        (mangled(EMBEDDINGS, encoding_format="hex"), "encoding_format"),
        (mangled(EMBEDDINGS, encoding_format=["float"]), "encoding_format"),
        (mangled(EMBEDDINGS, truncate=True), "truncate"),
        (mangled(CHAT, messages=[]), "messages"),
        (mangled(CHAT, messages="hello"), "messages"),
        (mangled(CHAT, messages=["hello"]), "messages"),
        (mangled(CHAT, messages=[{"content": "a"}]), "messages"),
        (mangled(CHAT, n=2), "n"),
        (mangled(CHAT, n=10**18), "n"),
        (mangled(CHAT, n=-1), "n"),
        (mangled(CHAT, n="1"), "n"),
        (mangled(CHAT, stream="yes"), "stream"),
        (mangled(CHAT, stream_options={"include_usage": True}), "stream_options"),
        (mangled(CHAT, stream=True, stream_options={"include_usage": 1}), "stream_options.include_usage"),
        (mangled(CHAT, stream=True, stream_options=[]), "stream_options"),
        (mangled(CHAT, max_tokens=0), "max_tokens"),
        (mangled(CHAT, max_tokens=10**400), None),
        (mangled(CHAT, max_tokens=10**30), "max_tokens"),
        (mangled(CHAT, max_completion_tokens=True), "max_completion_tokens"),
        (mangled(CHAT, temperature=3), "temperature"),
        (mangled(CHAT, temperature="hot"), "temperature"),
        (mangled(CHAT, stop=["a"] * 5), "stop"),
        (mangled(CHAT, stop=[1]), "stop"),
        (mangled(CHAT, tools={}), "tools"),
        (mangled(CHAT, tools=[1]), "tools"),
        (mangled(CHAT, response_format="json"), "response_format"),
        (mangled(COMPLETIONS, prompt=[]), "prompt"),
        (mangled(COMPLETIONS, prompt=["a"] * 129), "prompt"),
        (mangled(COMPLETIONS, best_of=2), "best_of"),
        (mangled(RERANK, query=""), "query"),
        (mangled(RERANK, documents=[]), "documents"),
        (mangled(RERANK, documents="a"), "documents"),
        (mangled(RERANK, documents=[{"title": "a"}]), "documents"),
        (mangled(RERANK, documents=["a"] * 2049), "documents"),
        (mangled(RERANK, top_n=0), "top_n"),
    ],
)
async def test_a_wrong_request_is_400_in_openais_form_and_names_the_field(
    sent: tuple[str, bytes], param: str | None
) -> None:
    path, body = sent
    async with asked() as (_, client):
        answer = await client.post(path, content=body)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json"), answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["type"], error["param"]) == ("invalid_request_error", param), error
        assert len(error["message"]) < 400


async def test_what_the_service_itself_refuses_has_openais_form_too() -> None:
    server = Server(max_request_size=100, timeout=50)
    server.append_worker(Embed, max_batch_size=2, route="/embed")
    server.add_protocol(OpenAI(embeddings={"e": "/embed"}))
    async with testing.serving(server) as service:
        large = await service.client.post("/v1/embeddings", content=b"x" * 101)
        assert (large.status_code, large.json()["error"]["type"]) == (413, "invalid_request_error")
        body = {"model": "e", "input": "a"}
        wrong = await service.client.post("/v1/embeddings", json=body, headers={"x-request-timeout": "soon"})
        assert (wrong.status_code, "x-request-timeout" in wrong.json()["error"]["message"]) == (400, True)
        service.worker(Embed).hang()
        late = await service.client.post("/v1/embeddings", json=body)
        assert (late.status_code, late.json()["error"]["type"]) == (408, "server_error")
        server.close()
        closing = await service.client.post("/v1/embeddings", json=body)
        assert (closing.status_code, closing.headers["retry-after"]) == (503, "1")
        service.worker(Embed).resume()


async def test_over_capacity_is_a_rate_limit_error_with_the_time_to_come_back() -> None:
    server = Server(capacity=1)
    server.append_worker(Embed, max_batch_size=2, route="/embed")
    server.add_protocol(OpenAI(embeddings={"e": "/embed"}))
    async with testing.serving(server) as service:
        service.worker(Embed).slow(0.2)
        client = openai.AsyncOpenAI(
            base_url="http://testserver/v1", api_key="x", http_client=service.client, max_retries=0
        )
        first = asyncio.ensure_future(client.embeddings.create(model="e", input="a"))
        while not service.statistics.admitted:
            await asyncio.sleep(0)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.embeddings.create(model="e", input="a")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert (await first).model == "e"


# -- everybody else ----------------------------------------------------------------------------------------------------


async def percentile(service: Any, seconds: float, *, many: bool) -> float:
    """Return the 99th percentile of what 32 clients of one text wait for, beside one of 256 texts or not."""
    loop = asyncio.get_running_loop()
    until, took = loop.time() + seconds, []

    async def ask(texts: list[str]) -> float:
        began = loop.time()
        answer = await service.client.post("/v1/embeddings", json={"model": "lengths", "input": texts})
        assert [row["embedding"][0] for row in answer.json()["data"]] == [len(text) for text in texts]
        return loop.time() - began

    async def one_by_one(number: int) -> None:
        while loop.time() < until:
            took.append(await ask(["x" * (number + 1)]))

    async def together() -> None:
        while loop.time() < until:
            await ask(["x" * (place % 97 + 1) for place in range(256)])

    await asyncio.gather(*map(one_by_one, range(32)), *([together()] if many else []))
    return statistics.quantiles(took, n=100)[98]


def test_clients_of_one_text_are_not_kept_waiting_behind_all_texts_of_another() -> None:
    waited = {}

    def served(many: bool) -> Callable[[], Coroutine[Any, Any, None]]:
        async def check() -> None:
            async with testing.serving(serve()) as service:
                service.worker(Embed).slow(0.010)
                waited[many] = await percentile(service, 2.0, many=many)

        return check

    for many in (False, True):
        testing.run(served(many)())
    assert waited[True] <= 3 * waited[False], waited


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A service of real processes, under uvicorn."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "openai_workers:server", "--port", "{port}", "--app-dir", str(TESTS)]
    with running(command, log) as program:
        program.wait_ready()
        yield program


@pytest.fixture
def client(program: Program) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{program.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_blocking_client_embeds_and_chats_and_streams(client: Any) -> None:
    answer = client.embeddings.create(model="small", input=["a", "bcd"])
    assert [row.embedding for row in answer.data] == [[1, 97, 0], [3, 98, 0]]
    whole = client.chat.completions.create(model="parrot", messages=HELLO)
    pieces = client.chat.completions.create(model="parrot", messages=HELLO, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
    assert whole.choices[0].message.content == text == "hello big world "


async def test_the_asynchronous_client_embeds_and_streams(program: Program) -> None:
    async with openai.AsyncOpenAI(base_url=f"{program.url}/v1", api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(
            *(client.embeddings.create(model="lengths", input=["x" * n, "y"]) for n in range(1, 20))
        )
        assert [answer.data[0].embedding[0] for answer in answers] == list(range(1, 20))
        stream = await client.chat.completions.create(model="parrot", messages=HELLO, stream=True)
        assert [chunk async for chunk in stream]


def test_curl_reads_a_stream_event_by_event(program: Program) -> None:
    body = json.dumps({"model": "parrot", "messages": HELLO, "stream": True})
    command = ["curl", "-sN", f"{program.url}/v1/chat/completions", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    events = [line for line in done.stdout.splitlines() if line]
    assert all(line.startswith("data: ") for line in events)
    assert events[-1] == "data: [DONE]"


def test_langchain_chats_and_streams_and_embeds(program: Program) -> None:
    langchain = pytest.importorskip("langchain_openai")
    options: Any = {"base_url": f"{program.url}/v1", "api_key": "none", "max_retries": 0}
    chat = langchain.ChatOpenAI(model="parrot", **options)
    answer = chat.invoke("hello big world")
    assert (answer.content, answer.usage_metadata["total_tokens"]) == ("hello big world ", 6)
    assert "".join(chunk.content for chunk in chat.stream("hello big world")) == "hello big world "
    # Texts as they are: to make tokens of them it would fetch a vocabulary of OpenAI's.
    embedder = langchain.OpenAIEmbeddings(model="lengths", check_embedding_ctx_length=False, **options)
    assert embedder.embed_documents(["a", "bcd"]) == [[1, 97, 0], [3, 98, 0]]


def test_plain_requests_and_those_of_openai_share_batches(program: Program, client: Any) -> None:
    def ask(number: int) -> list[float]:
        if number % 2:
            vector: list[float] = client.embeddings.create(model="lengths", input="x" * number).data[0].embedding
            return vector
        answer = program.client.post("/embed", json="x" * number).json()
        return list(answer["embedding"])

    answers = program.ask_together("Embed_1", ask, list(range(1, 33)))
    assert [vector[0] for vector in answers] == list(range(1, 33))


def test_the_openapi_document_and_swagger_show_the_endpoints(program: Program) -> None:
    document = program.client.get("/openapi/metadata.json").json()
    for path in ("/v1/models", "/v1/models/{model}", EMBEDDINGS, CHAT, COMPLETIONS, RERANK):
        assert path in document["paths"]
    validator = pytest.importorskip("openapi_spec_validator").OpenAPIV31SpecValidator(document)
    assert list(validator.iter_errors()) == []
    [request] = document["paths"][CHAT]["post"]["requestBody"]["content"].values()
    assert request["schema"] == {"$ref": "#/components/schemas/openai.ChatRequest"}
    names = document["components"]["schemas"]["openai.ChatRequest"]["properties"]["model"]["enum"]
    assert names == ["parrot", "whole", "gpt-4o"]
    assert program.client.get("/openapi/swagger/").status_code == 200


# Which vectors can be cut, and how, no schema says.
SCHEMATHESIS = """
warnings = false
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "408"]

[checks.negative_data_rejection]
expected-statuses = ["4xx"]

[generation]
allow-extra-parameters = false
"""


def test_whatever_schemathesis_makes_up_is_answered_within_the_contract(program: Program, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    written(tmp_path, SCHEMATHESIS, "schemathesis.toml")
    command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "run", f"{program.url}/openapi/metadata.json"]
    command += ["--url", program.url, "--include-path-regex", "^/v1", "--phases", "examples,coverage,fuzzing"]
    command += ["--checks", "all", "--max-examples", "20", "--seed", "3", "--suppress-health-check", "all"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout


# -- definitions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "needs a model"),
        ({"chat": {}}, "chat must be a dictionary"),
        ({"chat": "/route"}, "chat must be a dictionary"),
        ({"chat": {"a": 1}}, "chat must be a dictionary"),
        ({"chat": {"a": "/a"}, "aliases": {"b": "c"}}, "aliases: 'b'"),
        ({"chat": {"a": "/a"}, "shortens": ["a"]}, "shortens must be"),
        ({"chat": {"a": "/a"}, "keys": "secret"}, "keys must be a list"),
        ({"chat": {"a": "/a"}, "keys": []}, "at least one; leave it out"),
        ({"chat": {"a": "/a"}, "keys": iter(())}, "at least one; leave it out"),
        ({"chat": {"a": "/a"}, "aliases": ["b"]}, "aliases must be a dictionary"),
        ({"chat": {"a": "/a"}, "prefix": "v1/"}, "prefix must begin"),
    ],
)
def test_a_wrong_definition_says_what_to_change(options: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        OpenAI(**options)


def test_what_a_server_cannot_serve_is_refused() -> None:
    server = Server()
    server.append_worker(Embed, max_batch_size=2, route="/v1/embeddings")
    with pytest.raises(DefinitionError, match="both a protocol's and another's"):
        server.add_protocol(OpenAI(embeddings={"e": "/v1/embeddings"}))
    with pytest.raises(DefinitionError, match="needs an object of a subclass"):
        server.add_protocol(OpenAI)  # type: ignore[arg-type]
    server.add_protocol(OpenAI(chat={"e": "/nowhere"}))
    with pytest.raises(DefinitionError, match="asks the route '/nowhere'"):
        server.openapi()
    with pytest.raises(DefinitionError, match="both a protocol's and another's"):
        server.append_worker(Embed, max_batch_size=2, route="/v1/chat/completions")
    server = Server()
    server.append_worker(Write, route="/write")
    server.add_protocol(OpenAI(embeddings={"e": "/write"}))
    with pytest.raises(DefinitionError, match="Write of the route /write streams"):
        server.openapi()


def test_the_module_of_the_workers_is_what_the_tests_serve() -> None:
    assert openai_workers.server._defined.protocols
