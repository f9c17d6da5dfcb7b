"""What `POST /v1/chat/completions` and `/v1/completions` have in common: a text, whole or as it is written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson

from mosec_asgi.errors import ServerError
from mosec_asgi.events import Delta, Event
from mosec_asgi.web.protocols.openai.errors import Refused, status_and_object
from mosec_asgi.web.protocols.openai.fields import checked, flag, mapping, number, one, stops, text, whole
from mosec_asgi.web.protocols.openai.service import ModelEndpoint, new_id
from mosec_asgi.web.protocols.seam import NO_CACHE, Ask, EventForm, Problem, json_response
from mosec_asgi.web.responses import Response

DONE = b"data: [DONE]\n\n"
# What the protocol does itself; all else is the worker's.
OWN = ("stream", "stream_options", "n")
_BIGGEST = 2**63 - 1
CHECKS = {
    "stream": flag,
    "stream_options": mapping,
    "n": whole(1, _BIGGEST),
    "max_tokens": whole(1),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "seed": whole(-_BIGGEST - 1, _BIGGEST),
    "stop": stops,
    "logit_bias": mapping,
    "user": text,
}


class Wanted(NamedTuple):
    """How an answer is to be given.

    Attributes:
        model: the name of the model.
        streamed: as it is written.
        with_usage: with a last chunk that has what was counted.
    """

    model: str
    streamed: bool
    with_usage: bool


class Shape(NamedTuple):
    """What a protocol calls the parts of its answers.

    Attributes:
        id: what the ids begin with.
        whole: the object of a whole answer.
        chunk: the object of a piece.
    """

    id: str
    whole: str
    chunk: str


class Generation(ModelEndpoint):
    """An endpoint whose workers write."""

    shape: Shape
    takes_streams = True

    def wanted(self, name: str, fields: dict[str, Any]) -> Wanted:
        """Return how the answer is to be given, and leave in `fields` what is for the worker.

        Raises:
            Refused: a field is wrong.
        """
        checked(fields, CHECKS)
        if fields.get("n", 1) != 1:
            raise Refused("n: this service writes one answer to a request; leave n out, or send several requests", "n")
        streamed = fields.get("stream", False)
        options = fields.get("stream_options", {})
        if options and not streamed:
            raise Refused("stream_options: it is only for `stream: true`", "stream_options")
        counted = options.get("include_usage")
        with_usage = counted is not None and one("stream_options.include_usage", counted, flag)
        for own in OWN:
            fields.pop(own, None)
        return Wanted(name, streamed, with_usage)

    def stream(self, ask: Ask) -> EventForm | None:
        """Return the form of an answer that is sent as it is written."""
        return TextForm(self, ask) if ask.context.streamed else None

    def write(self, ask: Ask, results: Sequence[Any]) -> Response:
        """Return a whole answer; or all of a stream, of a worker that does not stream."""
        wanted: Wanted = ask.context
        if wanted.streamed:
            form = TextForm(self, ask)
            pieces = [form.piece(each, place) for place, result in enumerate(results) for each in _events(result)]
            headers = ((b"content-type", form.content_type.encode()), *NO_CACHE)
            return Response(HTTPStatus.OK, headers, b"".join([*pieces, form.end()]))
        usage = Usage()
        choices = []
        for place, result in enumerate(results):
            written = Written()
            for event in _events(result):
                written.add(event)
            usage.add(place, written.usage)
            choices.append(self.whole_choice(place, written))
        answer = {
            "id": new_id(self.shape.id),
            "object": self.shape.whole,
            "created": int(time.time()),
            "model": wanted.model,
            "choices": choices,
        }
        if (counted := usage.total()) is not None:
            answer["usage"] = counted
        return json_response(answer)

    def whole_choice(self, place: int, written: Written) -> dict[str, Any]:
        """Return a text in a whole answer."""
        raise NotImplementedError

    def choice(self, place: int, delta: Delta, *, first: bool) -> dict[str, Any]:
        """Return a piece of a text, which does not end with it."""
        raise NotImplementedError

    def last_choice(self, place: int, finish_reason: str) -> dict[str, Any]:
        """Return the end of a text."""
        raise NotImplementedError


class Written:
    """A text that has been written.

    Attributes:
        text: so far.
        tool_calls: in the pieces in which they came, joined by their index.
        finish_reason: why it has ended.
        usage: what was counted for it.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self.tool_calls: list[dict[str, Any]] = []
        self.usage: Mapping[str, Any] | None = None
        self._finish_reason: str | None = None

    def add(self, event: Any) -> None:
        """Take a piece."""
        delta = delta_of(event)
        if self._finish_reason is None:
            self._parts.append(str(delta))
            for call in delta.tool_calls or ():
                _join(self.tool_calls, call)
            self._finish_reason = delta.finish_reason
        self.usage = delta.usage or self.usage

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._parts)

    @property
    def finish_reason(self) -> str:
        """The worker's reason, or that which the answer itself suggests."""
        return self._finish_reason or ("tool_calls" if self.tool_calls else "stop")


def _join(calls: list[dict[str, Any]], piece: Mapping[str, Any]) -> None:
    """Add a piece of a tool call to those that have come: pieces of one index are one call, and texts go on."""
    index = _index_of(piece, len(calls))
    known = next((call for call in calls if call["index"] == index), None)
    if known is None:
        calls.append({**piece, "index": index, "function": dict(piece.get("function") or {})})
        return
    for name, value in (piece.get("function") or {}).items():
        # Pieces in OpenAI's form may say null for what is not in them.
        if value is not None:
            known["function"][name] = (known["function"].get(name) or "") + value


def _index_of(call: Mapping[str, Any], following: int) -> Any:
    """Return by which pieces of a tool call are joined; one that does not say it is a new call."""
    index = call.get("index")
    return following if index is None else index


class Usage:
    """What was counted for all texts of an answer."""

    def __init__(self) -> None:
        self._counted: dict[int, Mapping[str, Any]] = {}

    def add(self, place: int, usage: Mapping[str, Any] | None) -> None:
        """Take what was counted for a text; the last word counts."""
        if usage:
            self._counted[place] = usage

    def total(self) -> dict[str, Any] | None:
        """Return the sum; None where nothing was counted."""
        if not self._counted:
            return None
        several = list(self._counted.values())
        prompt, completion = (
            sum(int(each.get(name) or 0) for each in several) for name in ("prompt_tokens", "completion_tokens")
        )
        more = dict(several[0]) if len(several) == 1 else {}
        own = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return {**more, **own}


class TextForm(EventForm):
    """An answer that is sent as it is written: chunks, then `[DONE]`."""

    def __init__(self, endpoint: Generation, ask: Ask) -> None:
        """Begin with nothing written."""
        wanted: Wanted = ask.context
        self._endpoint = endpoint
        self._count = len(ask.items)
        self._usage = Usage()
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        # The indices of the tool calls of each text. One that has some would end by "tool_calls".
        self._calls: dict[int, list[Any]] = {}
        self._common = {
            "id": new_id(endpoint.shape.id),
            "object": endpoint.shape.chunk,
            "created": int(time.time()),
            "model": wanted.model,
        }
        self._with_usage = wanted.with_usage

    def piece(self, event: Any, place: int) -> bytes:
        """Return the chunks of an event."""
        delta = delta_of(event)
        self._usage.add(place, delta.usage)
        if place in self._ended:
            return b""
        if delta.tool_calls:
            delta = self._placed(delta, place)
        chunks = b""
        if delta or delta.tool_calls or place not in self._begun:
            chunks = self._chunk([self._endpoint.choice(place, delta, first=place not in self._begun)])
            self._begun.add(place)
        return chunks + self._last(place, delta.finish_reason) if delta.finish_reason else chunks

    def end(self) -> bytes:
        """Return the ends of the texts that have none, what was counted, and `[DONE]`."""
        chunks = []
        for place in range(self._count):
            if place not in self._begun:
                chunks.append(self.piece("", place))
            if place not in self._ended:
                chunks.append(self._last(place, "tool_calls" if place in self._calls else "stop"))
        if self._with_usage and (usage := self._usage.total()) is not None:
            chunks.append(self._chunk([], usage))
        return b"".join([*chunks, DONE])

    def failure(self, problem: Problem) -> bytes | None:
        """Return what went wrong as an object, for which clients look in each chunk."""
        return _event(status_and_object(problem, self._endpoint.param)[1])

    def _placed(self, delta: Delta, place: int) -> Delta:
        """Return a piece whose tool calls have their index, by which clients join pieces; one without is a new call."""
        known = self._calls.setdefault(place, [])
        placed = []
        for call in delta.tool_calls or ():
            index = _index_of(call, len(known))
            if index not in known:
                known.append(index)
            placed.append({**call, "index": index})
        return Delta(str(delta), finish_reason=delta.finish_reason, usage=delta.usage, tool_calls=placed)

    def _last(self, place: int, reason: str) -> bytes:
        self._ended.add(place)
        return self._chunk([self._endpoint.last_choice(place, reason)])

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        chunk = {**self._common, "choices": choices}
        if self._with_usage:
            # In every chunk, null in all but the last.
            chunk["usage"] = usage
        return _event(chunk)


def _events(result: Any) -> list[Any]:
    """Return the pieces of a result: those of a stream, or what a worker returns, be it one or a list of them."""
    return result if isinstance(result, list) else [result]


def delta_of(event: Any) -> Delta:
    """Return what a worker has yielded, or returned, as a piece of text.

    Raises:
        ServerError: it is none.
    """
    if isinstance(event, Delta):
        return event
    if isinstance(event, Event):
        event = event.data
    if isinstance(event, (bytes, bytearray)):
        event = bytes(event).decode(errors="replace")
    if isinstance(event, str):
        return Delta(event)
    raise ServerError(f"a language model yields text or Delta, not {type(event).__name__}")


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
