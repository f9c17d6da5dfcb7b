"""The errors of this package, and what a client sees of them.

    MosecError                      500  "mosec error"
    ├── ClientError                 400  "bad request"
    │   └── DecodingError           400  "decoding error"
    ├── CallError                        `infer` or `stream` was called where or as it cannot be answered
    ├── ValidationError             422  "request validation error"
    └── ServerError                 500  "internal error"
        ├── EncodingError           500  "encoding error"
        └── WrongShape              500  "internal error"       what `forward` returned is no result
    MosecTimeoutError               408  "mosec timeout error"   (a BaseException: see there)
    DefinitionError (ValueError)         a service was written down wrongly
    StartupError (RuntimeError)          a service could not be started
    └── EventLoopError                   the event loop is not asyncio's

A worker raises the first group from `deserialize`, `forward` or `serialize`; the client receives the status and the
text `"<msg>: <details>"`. Any other exception is a bug in the worker: the client receives 500 "inference internal
error" and nothing of its text, which may hold secrets; the log holds the traceback.

Between the parts of a service an error travels as data, as a `Failure`: nothing is raised across a process or a queue.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

INTERNAL_ERROR_TEXT = "inference internal error"


class HTTPStatusCode(enum.IntEnum):
    """mosec's names of the statuses of errors, for programs that use them; any other status will do as well."""

    OK = 200
    BAD_REQUEST = 400
    VALIDATION_ERROR = 422
    INTERNAL_ERROR = 500
    TIMEOUT_ERROR = 408


class MosecError(Exception):
    """Base of the errors that a worker may raise to answer a request.

    Attributes:
        code: the HTTP status that the client receives. A subclass may set its own.
        msg: what stands before the details in the response's text.
        retry_after: of an error that `infer` or `stream` raises: seconds after which trying again may help, or None.
        fields: what a protocol puts into its form of the error, by its own names; None for nothing.
    """

    code: int = HTTPStatus.INTERNAL_SERVER_ERROR
    msg: str = "mosec error"
    retry_after: int | None = None
    fields: Mapping[str, Any] | None = None

    def __init__(self, *args: object, fields: Mapping[str, Any] | None = None) -> None:
        """Make an error.

            raise ClientError("12000 tokens; there is room for 8192", fields={"code": "context_length_exceeded"})

        Args:
            args: of any exception: most often a text, the details.
            fields: see the attributes; texts, numbers, booleans and None by their names. OpenAI's are `type`, `code`
                and `param`. Plain routes and other protocols leave them out.

        Raises:
            TypeError: `fields` is something else.
        """
        super().__init__(*args)
        if fields is not None:
            self.fields = _checked_fields(fields)


class ClientError(MosecError):
    """The request cannot be served through a fault of the client: 400 with the details."""

    code: int = HTTPStatus.BAD_REQUEST
    msg = "bad request"


class DecodingError(ClientError):
    """The request's bytes cannot be decoded: 400 with the details."""

    msg = "decoding error"


class ValidationError(MosecError):
    """The request was decoded, but its values are not acceptable: 422 with the details."""

    code: int = HTTPStatus.UNPROCESSABLE_ENTITY
    msg = "request validation error"


class ServerError(MosecError):
    """The request cannot be served through a fault of the server: 500 with the details.

    The details reach the client. To keep them from it, raise an exception that is no `MosecError`.
    """

    msg = "internal error"


class EncodingError(ServerError):
    """The result cannot be encoded, or the item of an `infer`: 500 with the details."""

    msg = "encoding error"


class WrongShape(ServerError):
    """`forward` did not return what its stage needs: a fault of the worker's code, whatever the items."""


class CallError(MosecError):
    """`infer`, `stream` or `map` was called where, or as, it cannot be answered; the text says what to do.

    Its code is 404 for a route that there is not, 405 for one that is asked in the wrong way, 503 where the server does
    not run, and 500 for a fault of the calling program.
    """

    msg = "call error"

    def __init__(self, text: str, code: int = HTTPStatus.INTERNAL_SERVER_ERROR) -> None:
        super().__init__(text)
        self.code = int(code)


class MosecTimeoutError(BaseException):
    """Raised inside `forward` when the stage's timeout has passed: 408.

    A `BaseException`, so that an `except Exception` around a retry loop in `forward` does not swallow it. `forward` may
    catch it to clean up, and should raise it again.
    """

    code: int = HTTPStatus.REQUEST_TIMEOUT
    msg: str = "mosec timeout error"


class DefinitionError(ValueError):
    """A worker, a stage, a route or a setting was written down wrongly; the text says what to change."""


class StartupError(RuntimeError):
    """The service could not be started; the text holds the reason, and a worker's traceback where there is one."""


class EventLoopError(StartupError):
    """The program runs another event loop than asyncio's, so that no worker can be started."""


def _checked_fields(fields: Any) -> Mapping[str, Any]:
    kinds = (str, int, float, bool, type(None))
    if isinstance(fields, Mapping) and all(
        type(name) is str and type(value) in kinds for name, value in fields.items()
    ):
        return dict(fields)
    raise TypeError(f"the fields of an error are texts, numbers, booleans or None by their names, not {fields!r}")


@dataclass(frozen=True, slots=True)
class Failure:
    """An error on its way to the client, as data.

    Attributes:
        code: the HTTP status.
        text: the response's text.
        retry_after: seconds after which the client may try again, or None where trying again is no remedy.
        fields: what a protocol puts into its form of the error; see `MosecError`.
    """

    code: int
    text: str
    retry_after: int | None = None
    fields: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Make a plain number of the status: `str` of an `HTTPStatus` is its name before Python 3.11."""
        object.__setattr__(self, "code", int(self.code))


# The client has left: nginx's number for it, which nobody is there to read.
CANCELLED = 499
CLIENT_LEFT = Failure(CANCELLED, "the client left")

# What the service itself answers, in place of a worker.
INTERNAL_ERROR = Failure(HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL_ERROR_TEXT)
# The first two words are mosec's.
TIMED_OUT = Failure(
    HTTPStatus.REQUEST_TIMEOUT,
    "inference timeout: not done within the service's setting `timeout` (milliseconds; --timeout, MOSEC_TIMEOUT), or "
    "the request's own x-request-timeout (milliseconds); the shorter one counts, raise that",
)
STALLED = Failure(HTTPStatus.REQUEST_TIMEOUT, "inference timeout: the client does not read its stream")
# To come again is no remedy: this is the answer that it would get anyway, only at once.
TOO_LONG = Failure(
    HTTPStatus.REQUEST_TIMEOUT,
    "inference timeout: the model takes longer than this request may; allow more by the header `x-request-timeout` "
    "(milliseconds), or by the setting `timeout` (milliseconds)",
)
# See `not_begun`.
NOT_BEGUN = (
    "inference timeout: {} did not begin it, as it needs {:.0f} ms and {:.0f} ms were left; allow more by {} "
    "(milliseconds), or add workers"
)
WORKER_DIED = Failure(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error: the worker died while it ran this request")
CLOSING = Failure(HTTPStatus.SERVICE_UNAVAILABLE, "the service is shutting down", retry_after=1)
STAGE_DOWN = Failure(
    HTTPStatus.SERVICE_UNAVAILABLE, "the model is not available: its workers do not start", retry_after=5
)
LOADING = Failure(
    HTTPStatus.SERVICE_UNAVAILABLE, "the models are still being loaded; GET /readyz says which", retry_after=5
)
ENGINE_AWAY = Failure(
    HTTPStatus.SERVICE_UNAVAILABLE, "the engine of this service is not running; retry in a second", retry_after=1
)
ENGINE_LOST = Failure(
    HTTPStatus.SERVICE_UNAVAILABLE, "the engine of this service has ended before it had answered", retry_after=1
)
NOT_STARTED = Failure(HTTPStatus.SERVICE_UNAVAILABLE, "the service could not be started", retry_after=5)
WRONG_LOOP = Failure(
    HTTPStatus.SERVICE_UNAVAILABLE, "the service could not be started: it needs an event loop of asyncio"
)

# A request without an API key, where there are keys.
NO_KEY = Failure(
    HTTPStatus.UNAUTHORIZED, "no API key; send it as `authorization: Bearer <key>`, or as `x-api-key: <key>`"
)
WRONG_KEY = Failure(HTTPStatus.UNAUTHORIZED, "the API key is not one of this service")
KEY_IS_FOR_OTHERS = Failure(HTTPStatus.FORBIDDEN, "the API key is not for this path")

# What is wrong with a request before it is a call.
NO_DATA = Failure(HTTPStatus.BAD_REQUEST, "no data provided")
BAD_TIMEOUT = Failure(
    HTTPStatus.BAD_REQUEST, "the header x-request-timeout must be a whole number of milliseconds, at least 1"
)
BAD_REQUEST = Failure(HTTPStatus.BAD_REQUEST, "Invalid HTTP request received.")
TOO_SLOW = Failure(
    HTTPStatus.REQUEST_TIMEOUT, "the request has not arrived in time (the settings `read_timeout` and `least_rate`)"
)
NO_ROOM = Failure(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "there is no room for the body now, beside those of other requests (the setting `body_memory`)",
    retry_after=1,
)


def too_large(limit: int) -> Failure:
    """Return the failure of a body over `limit` bytes."""
    text = f"the body is larger than the {limit} bytes that this service accepts"
    return Failure(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)


def head_too_large(limit: int) -> Failure:
    """Return the failure of a request whose head is over `limit` bytes."""
    text = f"the headers are larger than the {limit} bytes that this service accepts (the setting `max_head_size`)"
    return Failure(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)


def too_many_headers(limit: int) -> Failure:
    """Return the failure of a request that has more than `limit` headers."""
    text = f"there are more than the {limit} headers that this service accepts"
    return Failure(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)


def url_too_long(limit: int) -> Failure:
    """Return the failure of a request whose path and query are over `limit` bytes."""
    text = f"the URL is longer than the {limit} bytes that this service accepts (the setting `max_url_size`)"
    return Failure(HTTPStatus.REQUEST_URI_TOO_LONG, text)


def unknown_encoding(encoding: str, remedy: str) -> Failure:
    """Return the failure of a body in a content-encoding that the service does not read."""
    text = f"the content-encoding {encoding!r} is not supported: {remedy}"
    return Failure(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text)


def broken_body(encoding: str, reason: str) -> Failure:
    """Return the failure of a body that is not what its content-encoding says."""
    text = f"the body is no {encoding}, as its content-encoding says: {reason}"
    return Failure(HTTPStatus.BAD_REQUEST, text)


def at_capacity(retry_after: int) -> Failure:
    """Return the failure of a request that comes while `capacity` others are not yet answered."""
    text = "too many requests: the service is at its capacity"
    return Failure(HTTPStatus.TOO_MANY_REQUESTS, text, retry_after)


def too_late(retry_after: int) -> Failure:
    """Return the failure of a request that would not be done in time."""
    text = "too many requests: this one would not be done in time"
    return Failure(HTTPStatus.TOO_MANY_REQUESTS, text, retry_after)


# What has taken too long where nothing could interrupt it: the server does not see which method it was.
UNSEEN = "`forward`, `deserialize` or `serialize`"


def too_slow(seconds: float, what: str = "`forward`") -> MosecTimeoutError:
    """Return what ends a call of `forward`, or a step of a stream, that has taken longer than its stage allows.

    Args:
        seconds: that the stage allows.
        what: has taken longer, where it is another method of the worker, or may be one.
    """
    return MosecTimeoutError(
        f"{what} took longer than {seconds:g} s; to give it more, raise `timeout` (seconds) of its stage, and the "
        "service's setting `timeout` (milliseconds) above that"
    )


def batch_hint(error: BaseException) -> str:
    """Return what to say beside an exception of a `forward` that takes batches and seems not to know it; or nothing."""
    text = str(error) if isinstance(error, (TypeError, AttributeError)) else ""
    if "list indices must be" in text or "'list' object" in text:
        return " (with max_batch_size > 1 `forward` is given a list of items, and returns a list of results)"
    return ""


def overloaded(retry_after: int) -> Failure:
    """Return the failure of a request that comes while more come than can be served, and enough wait."""
    text = "too many requests: more come than the model can do, and its queue is kept short"
    return Failure(HTTPStatus.TOO_MANY_REQUESTS, text, retry_after)


def over_target(retry_after: int) -> Failure:
    """Return the failure of a request that would be at a stage for longer than the stage's `latency_target`."""
    text = "too many requests: this one would be at a stage for longer than its latency_target"
    return Failure(HTTPStatus.TOO_MANY_REQUESTS, text, retry_after)


def gave_way(retry_after: int) -> Failure:
    """Return the failure of a request that waited, and whose place another one was given, as not all can be served."""
    text = (
        "too many requests: this one gave its place to one of a higher priority, or of a tenant that has asked for less"
    )
    return Failure(HTTPStatus.TOO_MANY_REQUESTS, text, retry_after)


def not_begun(stage: str, needs: float, left: float, setting: str) -> Failure:
    """Return the failure of a request that no worker has begun, as it could not be finished in time any more.

    Args:
        stage: the name of the stage that has dropped it.
        needs: seconds that it would take.
        left: seconds that it had left.
        setting: what allows it more.
    """
    text = NOT_BEGUN.format(stage, needs * 1000, left * 1000, setting)
    return Failure(HTTPStatus.REQUEST_TIMEOUT, text)


# What a failure's text begins with, where it is one of these.
_KNOWN = (DecodingError, ClientError, ValidationError, EncodingError, ServerError)


def raised(failure: Failure) -> MosecError:
    """Return what `infer` raises for a failure: the error that a worker has raised, as far as its text tells which."""
    kinds = {400: ClientError, 422: ValidationError, 500: ServerError}
    kind, text = kinds.get(failure.code, MosecError), failure.text
    for known in _KNOWN:
        if known.code == failure.code and text.startswith(f"{known.msg}: "):
            kind, text = known, text.removeprefix(f"{known.msg}: ")
            break
    error = kind(text)
    error.code = failure.code
    error.retry_after = failure.retry_after
    error.fields = failure.fields
    return error


def describe(error: BaseException) -> Failure:
    """Turn an exception that a worker raised into the failure that its client is told.

    Args:
        error: what `deserialize`, `forward` or `serialize` raised, or what `forward` put into its result list.

    Returns:
        the status and `"<msg>: <details>"`, on one line; an exception that is no error of this module tells nothing.
    """
    if not isinstance(error, (MosecError, MosecTimeoutError)):
        return INTERNAL_ERROR
    try:
        details = str(error).replace("\n", " - ") or error.msg
    except Exception:
        # A subclass may have a `__str__` of its own, with faults of its own.
        details = error.msg
    # A subclass may set any code; one that says success, or nothing, or that nobody waits, would hide the error.
    valid = isinstance(error.code, int) and 400 <= error.code < 600 and error.code != CANCELLED
    code = int(error.code) if valid else HTTPStatus.INTERNAL_SERVER_ERROR
    return Failure(code, f"{error.msg}: {details}", fields=getattr(error, "fields", None))
