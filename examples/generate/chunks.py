"""OpenAI's form of a stream: `chat.completion.chunk` objects, then `[DONE]`; or one object that says what is wrong."""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from completion import Completion

from mosec_asgi import Event

DONE = "[DONE]"


@dataclass(frozen=True, eq=False, slots=True)
class Refusal:
    """Why a request is not served; equal to nothing but itself, so that it can be its own slot."""

    message: str
    param: str | None = None
    code: str | None = None

    def event(self) -> Event:
        """Return what makes OpenAI's client raise an `APIError`."""
        error = {"message": self.message, "type": "invalid_request_error", "param": self.param, "code": self.code}
        return Event(json.dumps({"error": error}), event="error")


class Answer:
    """The stream of one completion.

    Attributes:
        text: the completion.
    """

    def __init__(self, text: Completion, model: str) -> None:
        self.text = text
        self._common = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._delta = {"role": "assistant"}

    def chunks(self, more: str) -> Iterator[str]:
        """Yield the chunks for what has been written now, the last ones included where the text is done."""
        if more or self._delta:
            yield self._chunk([self._choice({**self._delta, "content": more}, None)])
            self._delta = {}
        if self.text.finish_reason is None:
            return
        yield self._chunk([self._choice({}, self.text.finish_reason)])
        if self.text.prompt.with_usage:
            yield self._chunk([], self._usage())
        yield DONE

    def _choice(self, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "finish_reason": finish_reason}

    def _usage(self) -> dict[str, int]:
        read, written = len(self.text.prompt.tokens), self.text.written
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
        chunk = {**self._common, "choices": choices}
        if self.text.prompt.with_usage:
            # In every chunk, null in all but the last.
            chunk["usage"] = usage
        return json.dumps(chunk)
