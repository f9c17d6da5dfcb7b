"""OpenAI's form of an error: its status, and an object that says what is wrong, where, and of which kind it is.

OpenAI's client makes an exception of its own of each, by the status: `BadRequestError`, `NotFoundError`,
`RateLimitError`, ..., with `message`, `param`, `code` and `type`.
"""

import json
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from mosec_asgi import ClientError, Server

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

SCHEMA = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


class Refusal(ClientError):
    """A request that is not served. On its way through the service it is a line of text, like every error there."""

    msg = "refused"

    def __init__(self, message: str, param: str | None, code: str | None = None, status: int = 400) -> None:
        """Say what is wrong.

        Args:
            message: for a person to read.
            param: the field of the request.
            code: for a program to read.
            status: of the response.
        """
        super().__init__(json.dumps({"message": message, "param": param, "code": code}))
        self.code = status


class OpenAIServer(Server):
    """A server whose errors below /v1/ have OpenAI's form, whoever has made them: a worker, or the service itself."""

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request."""
        if scope["type"] == "http" and "/v1/" in scope["path"]:
            send = _Translation(send)
        await super().__call__(scope, receive, send)

    def openapi(self, root_path: str = "") -> dict[str, Any]:
        """Return the document of the service, with the errors as they are here."""
        document = super().openapi(root_path)
        responses = document["components"]["responses"]
        responses["NotFound"] = {**responses["BadRequest"], "description": "There is no such model."}
        document["components"]["schemas"]["Error"] = SCHEMA
        for response in responses.values():
            response["content"] = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        for path in document["paths"].values():
            if "post" in path:
                path["post"]["responses"]["404"] = {"$ref": "#/components/responses/NotFound"}
        return document


class _Translation:
    """Passes a response on; an error is held back until its text is there, and leaves in OpenAI's form."""

    def __init__(self, send: "Send") -> None:
        self._send = send
        self._error: MutableMapping[str, Any] | None = None
        self._text = b""

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
            self._error = message
        elif self._error is None:
            await self._send(message)
        else:
            self._text += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_translated(self._error)

    async def _send_translated(self, start: MutableMapping[str, Any]) -> None:
        body = json.dumps({"error": error_object(start["status"], self._text.decode())}).encode()
        kept = [pair for pair in start["headers"] if pair[0] not in (b"content-type", b"content-length")]
        own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self._send({**start, "headers": [*kept, *own]})
        await self._send({"type": "http.response.body", "body": body})


def error_object(status: int, text: str) -> dict[str, str | None]:
    """Return OpenAI's object for an error of the service.

    Args:
        status: of the response.
        text: its body; that of a `Refusal` says more than the message.
    """
    kind, code = "invalid_request_error", None
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        kind, code = "requests", "rate_limit_exceeded"
    elif status == HTTPStatus.REQUEST_TIMEOUT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        kind = "server_error"
    error: dict[str, str | None] = {"message": text, "type": kind, "param": None, "code": code}
    if text.startswith(f"{Refusal.msg}: "):
        error.update(json.loads(text.removeprefix(f"{Refusal.msg}: ")))
    return error
