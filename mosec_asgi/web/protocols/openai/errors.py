"""OpenAI's form of an error: a status, and an object that says what is wrong, where, and of which kind it is.

OpenAI's clients make an exception of their own of each, by the status: `BadRequestError`, `NotFoundError`,
`RateLimitError`, ..., with `message`, `param`, `code` and `type`.
"""

from __future__ import annotations

import contextlib
import json
from http import HTTPStatus
from typing import Any

from mosec_asgi.errors import Failure, raised
from mosec_asgi.web.protocols.seam import Problem, json_response
from mosec_asgi.web.responses import Header, Response

# Statuses with a type and a code of their own.
_KINDS: dict[int, tuple[str, str | None]] = {
    HTTPStatus.UNAUTHORIZED: ("invalid_request_error", "invalid_api_key"),
    HTTPStatus.TOO_MANY_REQUESTS: ("requests", "rate_limit_exceeded"),
    HTTPStatus.REQUEST_TIMEOUT: ("server_error", "timeout"),
}


class Refused(Exception):
    """A request that is not served: raised while it is read, or answered.

    Attributes:
        message: for a person to read.
        param: the field of the request that is wrong.
        code: for a program to read.
        status: of the answer.
    """

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = HTTPStatus.BAD_REQUEST
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = int(status)

    def response(self) -> Response:
        """Return the answer."""
        headers = ((b"www-authenticate", b"Bearer"),) if self.status == HTTPStatus.UNAUTHORIZED else ()
        return _response(self.status, error_object(self.status, self.message, self.param, self.code), headers)


def error_object(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return what stands in the body of an error.

    Args:
        status: of the answer.
        message: for a person to read.
        param: the field of the request that is wrong.
        code: for a program to read; that of the status where it is None.
    """
    kind, usual = _KINDS.get(
        status, ("server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error", None)
    )
    return {"error": {"message": message, "type": kind, "param": param, "code": code or usual}}


def status_and_object(problem: Problem, param: str | None) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of what went wrong; `param` is the field that a worker has refused."""
    status, body = _status_and_object(problem, param)
    fields = problem.fields or {}
    # The text is the error's own.
    body["error"].update({name: fields[name] for name in ("type", "param", "code") if name in fields})
    return status, body


def _status_and_object(problem: Problem, param: str | None) -> tuple[int, dict[str, Any]]:
    message = str(raised(Failure(problem.code, problem.text)))
    # OpenAI has one status for all that is wrong with a request's fields.
    status = HTTPStatus.BAD_REQUEST if problem.code == HTTPStatus.UNPROCESSABLE_ENTITY else problem.code
    if problem.ask is None or status != HTTPStatus.BAD_REQUEST:
        return int(status), error_object(status, message)
    place, told = _of_pydantic(message)
    if isinstance(problem.ask.items[0], dict) and place:
        # The item is the request itself.
        param, message = place[0], f"{'.'.join(place)}: {told}"
    elif problem.place is not None and len(problem.ask.items) > 1:
        message = f"{param}[{problem.place}]: {told}"
    else:
        message = told
    return int(status), error_object(status, message, param)


def _of_pydantic(message: str) -> tuple[list[str], str]:
    """Return where and what is wrong, of errors that `PydanticMixin` gives as JSON; of another message, nowhere and it.

    Of several, the deepest: of a union that is the one of the kind that was meant.
    """
    if message.startswith("[{"):
        with contextlib.suppress(ValueError, LookupError, TypeError):
            deepest = max(json.loads(message), key=lambda error: len(error["loc"]))
            return [str(part) for part in deepest["loc"]], str(deepest["msg"])
    return [], message


def problem_response(problem: Problem, param: str | None) -> Response:
    """Return the answer to a request that has failed; see `status_and_object`."""
    status, body = status_and_object(problem, param)
    retry = () if problem.retry_after is None else ((b"retry-after", b"%d" % problem.retry_after),)
    return _response(status, body, retry)


def _response(status: int, body: dict[str, Any], headers: tuple[Header, ...]) -> Response:
    # A text may hold what is not Unicode, such as a lone surrogate out of a request.
    error = body["error"]
    error["message"] = error["message"].encode(errors="backslashreplace").decode()
    return json_response(body, status, headers)
