"""The errors of the house, and what a client sees of them.

    MosecError                      500  "mosec error"
    ├── ClientError                 400  "bad request"
    │   └── DecodingError           400  "decoding error"
    ├── ValidationError             422  "request validation error"
    └── ServerError                 500  "internal error"
        ├── EncodingError           500  "encoding error"
        └── WrongShape              500  "internal error"       what `forward` returned is no result
    MosecTimeoutError               408  "mosec timeout error"   (a BaseException: see there)
    DefinitionError (ValueError)         a service was written down wrongly
    StartupError (RuntimeError)          a service could not be started

A worker raises the first group from `deserialize`, `forward` or `serialize`; the client receives the status and the
text `"<msg>: <details>"`. Any other exception is a bug in the worker: the client receives 500 "inference internal
error" and nothing of its text, which may hold secrets; the log holds the traceback.

Inside the house an error travels as data, as a `Failure`: nothing is raised across a process or a queue.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

INTERNAL_ERROR_TEXT = "inference internal error"


class MosecError(Exception):
    """Base of the errors that a worker may raise to answer a request.

    Attributes:
        code: the HTTP status that the client receives. A subclass may set its own.
        msg: what stands before the details in the response's text.
    """

    code: int = HTTPStatus.INTERNAL_SERVER_ERROR
    msg: str = "mosec error"


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
    """The result cannot be encoded: 500 with the details."""

    msg = "encoding error"


class WrongShape(ServerError):
    """`forward` did not return what its stage needs: a fault of the worker's code, whatever the items."""


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


@dataclass(frozen=True, slots=True)
class Failure:
    """An error on its way to the client, as data.

    Attributes:
        code: the HTTP status.
        text: the response's text.
        retry_after: seconds after which the client may try again, or None where trying again is no remedy.
    """

    code: int
    text: str
    retry_after: int | None = None


# The answer to a request that was not done in time. The first two words are mosec's.
NOT_IN_TIME = Failure(
    HTTPStatus.REQUEST_TIMEOUT,
    "inference timeout: not done within the service's setting `timeout` (milliseconds; --timeout, MOSEC_TIMEOUT), or "
    "the request's own x-request-timeout (milliseconds); the shorter one counts, raise that",
)


def too_slow(seconds: float) -> MosecTimeoutError:
    """Return what ends a call of `forward`, or a step of a stream, that has taken longer than its stage allows.

    Args:
        seconds: that the stage allows.
    """
    return MosecTimeoutError(
        f"`forward` took longer than {seconds:g} s; to give it more, raise `timeout` (seconds) of its stage, and the "
        "service's setting `timeout` (milliseconds) above that"
    )


def batch_hint(error: BaseException) -> str:
    """Return what to say beside an exception of a `forward` that takes batches and seems not to know it; or nothing."""
    text = str(error) if isinstance(error, (TypeError, AttributeError)) else ""
    if "list indices must be" in text or "'list' object" in text:
        return " (with max_batch_size > 1 `forward` is given a list of items, and returns a list of results)"
    return ""


def describe(error: BaseException) -> Failure:
    """Turn an exception that a worker raised into the failure that its client is told.

    Args:
        error: what `deserialize`, `forward` or `serialize` raised, or what `forward` put into its result list.

    Returns:
        the status and `"<msg>: <details>"`, on one line; an exception that is no error of this module tells nothing.
    """
    if not isinstance(error, (MosecError, MosecTimeoutError)):
        return Failure(HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL_ERROR_TEXT)
    try:
        details = str(error).replace("\n", " - ") or error.msg
    except Exception:
        # A subclass may have a `__str__` of its own, with faults of its own.
        details = error.msg
    # A subclass may set any code; one that says success, or nothing, would hide the error.
    valid = isinstance(error.code, int) and 400 <= error.code < 600
    code = int(error.code) if valid else HTTPStatus.INTERNAL_SERVER_ERROR
    return Failure(code, f"{error.msg}: {details}")
