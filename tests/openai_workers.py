"""Workers for tests of protocols: an embedder, a reranker, and two that write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mosec_asgi import ClientError, Server, SSEWorker, ValidationError, Worker
from mosec_asgi.protocols import Delta, OpenAI


class Embed(Worker):
    """A text's length, and its first letter; "bad" is refused."""

    def forward(self, data: list[Any]) -> list[Any]:
        return [self.one(item) for item in data]

    def one(self, item: Any) -> Any:
        if item == "bad":
            return ClientError("a bad text")
        if item == "told":
            return ClientError("too long", fields={"code": "context_length_exceeded", "type": "tokens", "more": 1})
        if item == "invalid":
            return ValidationError("an invalid text")
        first = ord(item[0]) if isinstance(item, str) else item[0]
        return {"embedding": [float(len(item)), float(first), 0.0], "prompt_tokens": len(item)}


class Score(Worker):
    """How many letters two texts share."""

    def forward(self, data: list[str]) -> float:
        query, document = data
        return float(len(set(query) & set(document)))


class Write(SSEWorker):
    """Says again what was said, word by word; some words are orders."""

    def forward(self, data: dict[str, Any]) -> Iterator[Any]:
        words = str(data["messages"][-1].get("content") or "").split()
        if words == ["show"]:
            yield json.dumps(data)
            return
        if words == ["tool"]:
            yield Delta(tool_calls=[{"index": 0, "id": "call_1", "function": {"name": "add", "arguments": "{"}}])
            yield Delta(tool_calls=[{"index": 0, "function": {"arguments": "}"}}])
            return
        if words == ["tools"]:
            # As whole calls, without their places, and with null for what is not there.
            yield Delta(tool_calls=[{"id": "call_1", "function": {"name": "add", "arguments": None}}])
            yield Delta(tool_calls=[{"id": "call_2", "index": None, "function": {"name": "stop", "arguments": "{}"}}])
            yield Delta(tool_calls=[{"index": 0, "function": {"name": None, "arguments": "{}"}}])
            yield Delta(usage={"prompt_tokens": None, "completion_tokens": 3})
            return
        for word in words[: data.get("max_tokens", 100)]:
            if word == "told":
                raise ClientError("too long", fields={"code": "context_length_exceeded", "param": "messages.0"})
            if word == "fail":
                raise ValidationError("a word that fails")
            yield 7 if word == "seven" else f"{word} "
        short = len(words) > data.get("max_tokens", 100)
        counted = {"prompt_tokens": len(words), "completion_tokens": min(len(words), data.get("max_tokens", 100))}
        yield Delta(finish_reason="length" if short else "stop", usage=counted)


class Complete(SSEWorker):
    """Goes on with a prompt."""

    def forward(self, data: dict[str, Any]) -> Iterator[Any]:
        yield str(data["prompt"])
        yield Delta(" end", usage={"prompt_tokens": 2, "completion_tokens": 1})


class Whole(Worker):
    """Writes all at once."""

    def forward(self, data: dict[str, Any]) -> Any:
        return Delta("all of it", usage={"prompt_tokens": 1, "completion_tokens": 3})


def serve(**more: Any) -> Server:
    """Return a server of all of them."""
    server = Server(timeout=20_000)
    server.append_worker(Embed, max_batch_size=32, route="/embed")
    server.append_worker(Score, route="/score")
    server.append_worker(Write, route="/write")
    server.append_worker(Complete, route="/complete")
    server.append_worker(Whole, route="/whole")
    server.add_protocol(
        OpenAI(
            embeddings={"lengths": "/embed", "org/lengths": "/embed"},
            rerank={"letters": "/score"},
            chat={"parrot": "/write", "whole": "/whole"},
            completions={"prompts": "/complete"},
            **{"aliases": {"gpt-4o": "parrot", "small": "lengths"}, **more},
        )
    )
    return server


server = serve(shortens=["org/lengths"])

if __name__ == "__main__":
    server.run()
