"""Lines of the input, and the records that become of them.

A record begins with what names its line, so that a run that goes on finds it without reading the rest:

    {"line":17,"output":{"label":"cat"}}
    {"line":18,"code":422,"error":"request validation error: no text","input":{"txt":"..."}}

and in the form of OpenAI's batches, whose records of errors have `line`, `code` and `input` beside what these have:

    {"id":"batch_req_17","custom_id":"a","response":{"status_code":200,"request_id":"line-17","body":{}},"error":null}
"""

from __future__ import annotations

import re
import sys
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import orjson

from mosec_asgi import formats
from mosec_asgi.calls.mapping import Ask
from mosec_asgi.errors import INTERNAL_ERROR_TEXT, DecodingError, MosecError, ValidationError, describe
from mosec_asgi.reply import Reply

OPENAI_KEYS = frozenset(("custom_id", "method", "url", "body"))
_PLAIN = re.compile(rb'\{"line":([1-9]\d{0,17}),')
_OPENAI = re.compile(rb'\{"id":"batch_req_([1-9]\d{0,17})",')
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


class Line(NamedTuple):
    """A line of the input, or a row.

    Attributes:
        number: its place, from 1.
        size: how much of the input it is, in the reader's unit.
        raw: its JSON, not decoded; None where `value` is what it holds.
        value: what it holds.
        fault: why it cannot be read; empty where it can.
    """

    number: int
    size: int
    raw: bytes | None = None
    value: Any = None
    fault: str = ""


class Failed(NamedTuple):
    """What has become of a line that failed.

    Attributes:
        code: the status that a client would have got.
        text: of the answer.
        asked: it has come to the engine.
    """

    code: int
    text: str
    asked: bool = True


class Form(Protocol):
    """How lines are read as calls, and what their records look like.

    Attributes:
        name: what `--format` calls it.
    """

    name: str

    def ask(self, line: Line) -> Ask:
        """Return the call for a line.

        Raises:
            MosecError: there is none; it says why.
        """

    def output(self, line: Line, value: Any, status: int) -> bytes:
        """Return the record of a result.

        Raises:
            EncodingError: it has no form in JSON.
        """

    def error(self, line: Line, failed: Failed) -> bytes:
        """Return the record of a line that failed."""

    def number(self, record: bytes) -> int | None:
        """Return the number of the line whose record begins so; None where it is no record."""


class Plain:
    """A line is an item."""

    def __init__(self, name: str, route: str, column: str | None = None) -> None:
        """Prepare.

        Args:
            name: of the input's format.
            route: that all items are for.
            column: what of a line is the item; None for all of it.
        """
        self.name = name
        self._route = route
        self._column = column

    def ask(self, line: Line) -> Ask:
        """Return the call for a line."""
        value = _value(line)
        if self._column is not None:
            if not isinstance(value, dict) or self._column not in value:
                raise ValidationError(f"the line has no {self._column!r}, which --column names")
            value = value[self._column]
        return Ask(self._route, value, request_id(line))

    def output(self, line: Line, value: Any, status: int) -> bytes:
        """Return the record of a result."""
        return b'{"line":%d,"output":%b}\n' % (line.number, encoded(value))

    def error(self, line: Line, failed: Failed) -> bytes:
        """Return the record of a line that failed."""
        row = {"line": line.number, "code": failed.code, "error": failed.text, "input": _input(line)}
        return orjson.dumps(row) + b"\n"

    def number(self, record: bytes) -> int | None:
        """Return the number of the line of a record."""
        return _number(_PLAIN, record)


class OpenAIBatch:
    """A line is a request, as in the files of OpenAI's batches."""

    name = "openai-batch"

    def __init__(self, route: str | None = None) -> None:
        """Prepare.

        Args:
            route: that all requests are for; None for that which their `url` says.
        """
        self._route = route

    def ask(self, line: Line) -> Ask:
        """Return the call for a line."""
        row = _value(line)
        if not isinstance(row, dict) or not row.keys() >= OPENAI_KEYS:
            raise ValidationError(f"the line is no request of a batch: it needs {', '.join(sorted(OPENAI_KEYS))}")
        if not isinstance(row["custom_id"], str) or not isinstance(row["url"], str):
            raise ValidationError("the custom_id and the url of a request are texts")
        if row["method"] != "POST":
            raise ValidationError(f"the method of a request is POST, not {row['method']!r}")
        return Ask(self._route or path_of(row["url"]), row["body"], request_id(line))

    def output(self, line: Line, value: Any, status: int) -> bytes:
        """Return the record of a result."""
        return b'{"id":"batch_req_%d","custom_id":%b,"response":%b,"error":null}\n' % (
            line.number,
            encoded(_custom_id(line)),
            b'{"status_code":%d,"request_id":"%b","body":%b}' % (status, request_id(line).encode(), encoded(value)),
        )

    def error(self, line: Line, failed: Failed) -> bytes:
        """Return the record of a line that failed."""
        error = {"code": str(failed.code), "message": failed.text}
        response = {"status_code": failed.code, "request_id": request_id(line), "body": {"error": error}}
        row = {
            "id": f"batch_req_{line.number}",
            "custom_id": orjson.Fragment(encoded(_custom_id(line))),
            "response": response if failed.asked else None,
            "error": None if failed.asked else error,
            "line": line.number,
            "code": failed.code,
            "input": _input(line),
        }
        return orjson.dumps(row) + b"\n"

    def number(self, record: bytes) -> int | None:
        """Return the number of the line of a record."""
        return _number(_OPENAI, record)


def is_openai_batch(raw: bytes) -> bool:
    """Whether a file whose first line this is seems to be one of OpenAI's batches."""
    try:
        row = formats.loads_json(raw)
    except DecodingError:
        return False
    return isinstance(row, dict) and row.keys() == OPENAI_KEYS


def path_of(url: str) -> str:
    """Return the path of a URL, which may be nothing but one."""
    try:
        return urlsplit(url).path
    except ValueError:
        return url


def request_id(line: Line) -> str:
    """Return what the logs call the call for a line."""
    return f"line-{line.number}"


def encoded(value: Any) -> bytes:
    """Return a result as JSON; NaN is null.

    Raises:
        EncodingError: it cannot be encoded as JSON; the text names its type.
    """
    try:
        return orjson.dumps(value, option=_OPTIONS)
    except TypeError:
        return formats.dumps_rare(value, _plain)


def opened(result: Any) -> tuple[Any, int]:
    """Return the value of a result, and the status that its response would have.

    Raises:
        MosecError: the result is an error, or a reply that says one.
    """
    if isinstance(result, MosecError):
        raise result
    if not isinstance(result, Reply):
        return result, HTTPStatus.OK
    if result.status < HTTPStatus.BAD_REQUEST:
        return result.value, result.status
    error = MosecError(encoded(result.value).decode())
    error.code = result.status
    raise error


def failure(error: MosecError) -> Failed:
    """Return what a line is told that failed with an error: the text that a client would get."""
    described = describe(error)
    # These stand for an answer of the service's own, whose text says all.
    own = type(error) is MosecError or str(error) == INTERNAL_ERROR_TEXT
    text = str(error) if own and str(error) else described.text
    return Failed(described.code, text)


def _value(line: Line) -> Any:
    if line.fault:
        raise DecodingError(line.fault)
    if line.raw is None:
        return line.value
    try:
        return formats.loads_json(line.raw)
    except DecodingError as error:
        raise DecodingError(str(error).replace("the body is", "the line is", 1)) from error


def _input(line: Line) -> Any:
    """Return what a line holds, for its record of an error: as it stands there where it is JSON, else as text."""
    if line.raw is None:
        return orjson.Fragment(_encoded_loosely(line.value))
    try:
        orjson.loads(line.raw)
    except orjson.JSONDecodeError:
        return line.raw.decode(errors="replace")
    return orjson.Fragment(line.raw)


def _encoded_loosely(value: Any) -> bytes:
    """Return a row as JSON; values that have no form there, such as bytes, as Python writes them."""
    return formats.dumps_rare(value, repr)


def _custom_id(line: Line) -> str | None:
    try:
        # As its item was read: a NaN in the body must not cost the line its name.
        row = formats.loads_json(line.raw or b"")
    except DecodingError:
        return None
    name = row.get("custom_id") if isinstance(row, dict) else None
    return name if isinstance(name, str) else None


def _number(pattern: re.Pattern[bytes], record: bytes) -> int | None:
    found = pattern.match(record)
    return int(found[1]) if found and record.endswith(b"}\n") else None


def _plain(value: Any) -> Any:
    """Return a model of pydantic or msgspec, or numpy's values, as plain Python."""
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    # Loaded by whoever has made it.
    msgspec = sys.modules.get("msgspec")
    if msgspec is not None and isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    return formats.plain(value)
