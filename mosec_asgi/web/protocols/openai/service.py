"""What the endpoints of an `OpenAI` have in common: the names of its models, the keys of its clients, its errors."""

from __future__ import annotations

import hmac
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from mosec_asgi.errors import DefinitionError
from mosec_asgi.streaming import streams
from mosec_asgi.web.protocols.openai.errors import Refused, problem_response
from mosec_asgi.web.protocols.openai.fields import read_object, required, text
from mosec_asgi.web.protocols.seam import Ask, Endpoint, Problem
from mosec_asgi.web.responses import Response

if TYPE_CHECKING:
    from mosec_asgi.web.exchange import Request
    from mosec_asgi.worker import Worker

# The most names that an error mentions.
_MOST = 20


class Common:
    """What all endpoints know.

    Attributes:
        prefix: of their paths.
        aliases: the models' names by other names for them.
        created: when the service was defined, in seconds since 1970.
        keyed: clients must send a key.
    """

    def __init__(self, prefix: str, aliases: Mapping[str, str], keys: Collection[str]) -> None:
        self.prefix = prefix
        self.aliases = dict(aliases)
        self.created = int(time.time())
        self.keyed = bool(keys)
        self._keys = [key.encode() for key in keys]

    def admit(self, request: Request) -> Response | None:
        """Return the answer to a client without a key, where there are keys; see `Endpoint.admit`."""
        if not self._keys:
            return None
        kind, _, key = request.headers.get(b"authorization", b"").strip().partition(b" ")
        if kind.lower() != b"bearer" or not key:
            return _unauthorized("no API key; send it as `authorization: Bearer <key>`")
        # All are compared, so that the time says nothing of how near a wrong one was.
        if not sum([hmac.compare_digest(key.strip(), each) for each in self._keys]):
            return _unauthorized("the API key is not one of this service")
        return None

    def name_of(self, asked: str, models: Collection[str]) -> str:
        """Return the name of the model that a client has named.

        Raises:
            Refused: with 404.
        """
        name = self.aliases.get(asked, asked)
        if name not in models:
            there = ", ".join(map(repr, list(models)[:_MOST])) + (", ..." if len(models) > _MOST else "")
            raise Refused(
                f"model: there is no such model here, only {there}", "model", "model_not_found", HTTPStatus.NOT_FOUND
            )
        return name


class ModelEndpoint(Endpoint):
    """An endpoint that asks models of one kind.

    Attributes:
        models: their routes by their names.
        param: the field that a worker may refuse.
        takes_streams: a worker may be one that streams.
    """

    takes_streams = False

    param: str
    # Of the path, below the prefix.
    name: str

    def __init__(self, common: Common, models: Mapping[str, str]) -> None:
        """Bind to models: their routes by their names."""
        self.common = common
        self.models = dict(models)
        self.admits = common.keyed
        self.path = common.prefix + self.name
        self.routes: Sequence[str] = tuple(dict.fromkeys(self.models.values()))

    def check(self, workers: Mapping[str, type[Worker]]) -> None:
        """Refuse a stream in the place of a value; see `Endpoint.check`."""
        for route, worker in workers.items():
            if streams(worker) and not self.takes_streams:
                raise DefinitionError(
                    f"{self.path} needs a worker that returns one value for an item, and {worker.__name__} of the "
                    f"route {route} streams; derive it from Worker"
                )

    def admit(self, request: Request) -> Response | None:
        """Refuse a client without a key."""
        return self.common.admit(request)

    def ask(self, request: Request) -> Ask | Response:
        """Read a request; see `Endpoint.ask`."""
        try:
            fields = read_object(request.body)
            fields["model"] = name = self.common.name_of(required(fields, "model", text), self.models)
            return self.read(name, self.models[name], fields)
        except Refused as refused:
            return refused.response()

    def read(self, name: str, route: str, fields: dict[str, Any]) -> Ask:
        """Return what a request wants.

        Args:
            name: of the model.
            route: to it.
            fields: of the request, none of them null.

        Raises:
            Refused: a field is wrong.
        """
        raise NotImplementedError

    def answer(self, ask: Ask, results: Sequence[Any]) -> Response:
        """Give results their form; see `Endpoint.answer`."""
        try:
            return self.write(ask, results)
        except Refused as refused:
            return refused.response()

    def write(self, ask: Ask, results: Sequence[Any]) -> Response:
        """Return the answer.

        Raises:
            Refused: it cannot be given as it was asked for.
        """
        raise NotImplementedError

    def error(self, problem: Problem) -> Response:
        """Return what is wrong as OpenAI's object."""
        return problem_response(problem, self.param)


def _unauthorized(message: str) -> Response:
    return Refused(message, None, None, HTTPStatus.UNAUTHORIZED).response()


def new_id(prefix: str) -> str:
    """Return the id of an answer."""
    return f"{prefix}-{uuid.uuid4().hex}"


def parts_of(result: Any, name: str) -> tuple[Any, int]:
    """Return what a worker has made of an item, and how many tokens it has counted for it: 0 where it does not say.

    Args:
        result: the value itself, or a dictionary of it and of `prompt_tokens`.
        name: of the value in such a dictionary.
    """
    if isinstance(result, Mapping) and name in result:
        return result[name], int(result.get("prompt_tokens") or 0)
    return result, 0
