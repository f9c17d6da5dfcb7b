"""`GET /v1/models` and `/v1/models/{id}`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from mosec_asgi.web.protocols.openai import described
from mosec_asgi.web.protocols.openai.errors import Refused, problem_response
from mosec_asgi.web.protocols.openai.service import Common
from mosec_asgi.web.protocols.seam import Ask, Endpoint, Problem, json_response
from mosec_asgi.web.responses import Response

if TYPE_CHECKING:
    from mosec_asgi.web.exchange import Request


class Models(Endpoint):
    """The list of all models."""

    methods = ("GET",)

    def __init__(self, common: Common, names: Collection[str]) -> None:
        """List models by their names."""
        self.common = common
        self.names = names
        self.admits = common.keyed
        self.path = f"{common.prefix}/models"
        self.below = f"{common.prefix}/" if common.prefix else ""

    def admit(self, request: Request) -> Response | None:
        """Refuse a client without a key."""
        return self.common.admit(request)

    def ask(self, request: Request) -> Ask | Response:
        """Answer at once."""
        try:
            return json_response(self.told(request))
        except Refused as refused:
            return refused.response()

    def told(self, request: Request) -> dict[str, Any]:
        """Return what is asked for."""
        return {"object": "list", "data": [self.model(name) for name in self.names]}

    def model(self, name: str) -> dict[str, Any]:
        """Return what is told of a model."""
        return {"id": name, "object": "model", "created": self.common.created, "owned_by": "mosec_asgi"}

    def answer(self, ask: Ask, results: Sequence[Any]) -> Response:
        """Never called: nothing is run."""
        raise NotImplementedError

    def error(self, problem: Problem) -> Response:
        """Return what is wrong as OpenAI's object."""
        return problem_response(problem, None)

    def describe(self) -> dict[str, Any]:
        """Describe the list."""
        return described.get("openai.models", "The models of this service", "ModelList", keyed=self.common.keyed)


class OneModel(Models):
    """One model."""

    def __init__(self, common: Common, names: Collection[str]) -> None:
        """See `Models`."""
        super().__init__(common, names)
        # A name may hold slashes.
        self.path = f"{common.prefix}/models/{{model:path}}"
        self.below = ""

    def told(self, request: Request) -> dict[str, Any]:
        """Return the model that the path names."""
        return self.model(self.common.name_of(request.path_params["model"], self.names))

    def describe(self) -> dict[str, Any]:
        """Describe a model."""
        item = described.get("openai.model", "A model of this service", "Model", keyed=self.common.keyed, missing=True)
        item["get"]["parameters"] = [
            {
                "name": "model",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "enum": [*self.names, *self.common.aliases]},
            }
        ]
        return item
