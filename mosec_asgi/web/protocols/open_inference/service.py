"""What the endpoints of an `OpenInference` have in common: its models, and the form of its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from mosec_asgi.errors import Failure, raised
from mosec_asgi.streaming import streams
from mosec_asgi.web.protocols.open_inference.inference import Model, NotFound, model_of
from mosec_asgi.web.protocols.open_inference.pieces import whole
from mosec_asgi.web.protocols.open_inference.tensors import Bounds
from mosec_asgi.web.protocols.seam import Ask, Endpoint, Problem, json_response
from mosec_asgi.web.responses import Response

if TYPE_CHECKING:
    from mosec_asgi.web.exchange import Request


_VERSIONED = "/versions/{version}"


class Common:
    """What all endpoints know.

    Attributes:
        prefix: of their paths.
        routes: of the models, by their names.
        versions: of the models, by their names.
        bounds: of one request.
        models: by their names, once it is known what their workers say of them.
        streaming: the names of those whose workers stream.
    """

    def __init__(self, prefix: str, routes: Mapping[str, str], versions: Mapping[str, str], bounds: Bounds) -> None:
        """See the attributes."""
        self.prefix = prefix
        self.routes = dict(routes)
        self.versions = dict(versions)
        self.bounds = bounds
        self.models: dict[str, Model] = {}
        self.streaming: frozenset[str] = frozenset()

    def learn(self, pipelines: Mapping[str, Sequence[type[Any]]]) -> None:
        """Make the models of what their workers say; see `seam.Protocol.learn`."""
        self.models = {
            name: Model.of(name, route, pipelines[route], self.versions[name])
            for name, route in self.routes.items()
            # One that is missing is told of by whoever checks the routes.
            if route in pipelines
        }
        self.streaming = frozenset(name for name, model in self.models.items() if streams(pipelines[model.route][-1]))

    def model_of(self, request: Request) -> Model:
        """Return the model that a path names.

        Raises:
            NotFound: there is none.
        """
        return model_of(self.models, request.path_params["model"], request.path_params.get("version", ""))


class OpenEndpoint(Endpoint):
    """An endpoint of the protocol."""

    def __init__(self, common: Common, path: str) -> None:
        """Bind to what all know; `path` is the rest of the path, behind the prefix."""
        self.common = common
        self.path = common.prefix + path

    def answer(self, ask: Ask, results: Sequence[Any]) -> Response:
        """Never called where nothing is run."""
        raise NotImplementedError

    def error(self, problem: Problem) -> Response:
        """Return what is wrong as an object with `error`."""
        retry = () if problem.retry_after is None else ((b"retry-after", b"%d" % problem.retry_after),)
        return json_response(error_object(problem), status_of(problem), retry)


class Asked(NamedTuple):
    """What was asked for, to be known again when it is answered.

    Attributes:
        model: that was asked.
        wanted: of it.
    """

    model: Model
    wanted: Any


class ModelEndpoint(OpenEndpoint):
    """An endpoint that asks models.

    A model whose name stands in the path as it is has a path of its own, which is found the quick way; all others, and
    those with versions, are found by the parameters of the path.

    Attributes:
        action: the last part of the path.
    """

    action: str

    def __init__(self, common: Common, name: str | None, *, versioned: bool = False) -> None:
        """Bind to the model of a name, or with None to all, whose name is a parameter of the path."""
        version = _VERSIONED if versioned else ""
        super().__init__(common, f"/models/{name or '{model}'}{version}/{self.action}")
        self.name = name
        self.versioned = versioned
        names = list(common.routes) if name is None else [name]
        self.routes = tuple(dict.fromkeys(common.routes[each] for each in names))
        self.max_calls = common.bounds.rows

    def ask(self, request: Request) -> Ask | Response:
        """Read a request; see `Endpoint.ask`."""
        model = self.common.model_of(request) if self.name is None else self.common.models[self.name]
        return self.read(model, request)

    def read(self, model: Model, request: Request) -> Ask:
        """Return what a request wants of a model."""
        raise NotImplementedError

    def wholes(self, model: Model, results: Sequence[Any]) -> Sequence[Any]:
        """Return one result for each item: of a model that streams, all events as one."""
        return [whole(events) for events in results] if model.name in self.common.streaming else results


def status_of(problem: Problem) -> int:
    """Return the status of what went wrong: the protocol has one for all that is wrong with a request's tensors."""
    invalid = problem.code == HTTPStatus.UNPROCESSABLE_ENTITY
    return int(HTTPStatus.BAD_REQUEST) if invalid else problem.code


def error_object(problem: Problem) -> dict[str, Any]:
    """Return what stands in the body of an error; the row that a worker has refused is named."""
    text = str(raised(Failure(problem.code, problem.text))).removeprefix(f"{NotFound.msg}: ")
    # What is no fault of a request is none of a row's either.
    of_row = problem.code in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY) and problem.place is not None
    if of_row and problem.ask is not None and len(problem.ask.items) > 1:
        text = f"row {problem.place}: {text}"
    # A text may hold what is no Unicode, such as a lone surrogate out of a request.
    return {"error": text.encode(errors="backslashreplace").decode()}
