"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from mosec_asgi.events import Delta
from mosec_asgi.web.protocols.openai import described
from mosec_asgi.web.protocols.openai.fields import checked, flag, mapping, objects, required, whole
from mosec_asgi.web.protocols.openai.generation import Generation, Shape, Written
from mosec_asgi.web.protocols.seam import Ask

_CHECKS = {
    "max_completion_tokens": whole(1),
    "tools": objects(),
    "response_format": mapping,
    "parallel_tool_calls": flag,
    "logprobs": flag,
    "top_logprobs": whole(0, 20),
}
_MESSAGES = objects(1, "role")


class Chat(Generation):
    """Goes on with a conversation."""

    name = "/chat/completions"
    param = "messages"
    shape = Shape("chatcmpl", "chat.completion", "chat.completion.chunk")

    def read(self, name: str, route: str, fields: dict[str, Any]) -> Ask:
        """Return the one call of a request: its fields are the item."""
        required(fields, "messages", _MESSAGES)
        checked(fields, _CHECKS)
        wanted = self.wanted(name, fields)
        return Ask(route, [fields], wanted)

    def whole_choice(self, place: int, written: Written) -> dict[str, Any]:
        """Return the message."""
        message: dict[str, Any] = {"role": "assistant", "content": written.text, "refusal": None}
        if written.tool_calls:
            message["content"] = written.text or None
            message["tool_calls"] = [
                {"type": "function", **{key: value for key, value in call.items() if key != "index"}}
                for call in written.tool_calls
            ]
        return {"index": place, "message": message, "logprobs": None, "finish_reason": written.finish_reason}

    def choice(self, place: int, delta: Delta, *, first: bool) -> dict[str, Any]:
        """Return a piece of the message, the first one with its role."""
        told: dict[str, Any] = {"role": "assistant"} if first else {}
        told["content"] = str(delta)
        if delta.tool_calls:
            told["tool_calls"] = list(delta.tool_calls)
        return {"index": place, "delta": told, "logprobs": None, "finish_reason": None}

    def last_choice(self, place: int, finish_reason: str) -> dict[str, Any]:
        """Return the end of the message."""
        return {"index": place, "delta": {}, "logprobs": None, "finish_reason": finish_reason}

    def describe(self) -> dict[str, Any]:
        """Describe the endpoint."""
        example = {
            "model": next(iter(self.models)),
            "messages": [{"role": "user", "content": "Name three colours."}],
            "max_tokens": 8,
        }
        return described.post(
            "openai.chat",
            "Go on with a conversation",
            "ChatRequest",
            "ChatCompletion",
            example,
            self.common.keyed,
            chunk="ChatChunk",
        )
