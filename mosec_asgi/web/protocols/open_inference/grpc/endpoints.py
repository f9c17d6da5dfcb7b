"""The methods of the protocol's service, each of them an endpoint: its body is a message, and so is its answer."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from mosec_asgi.errors import ClientError, MosecError, describe
from mosec_asgi.version import __version__
from mosec_asgi.web.protocols.open_inference.grpc import open_inference_pb2 as pb
from mosec_asgi.web.protocols.open_inference.grpc.messages import infer_response, parsed, parsed_infer, read_infer
from mosec_asgi.web.protocols.open_inference.inference import PLATFORM, NotFound, model_of
from mosec_asgi.web.protocols.open_inference.pieces import piece_of, whole
from mosec_asgi.web.protocols.open_inference.service import Asked, Common, error_object, status_of
from mosec_asgi.web.protocols.open_inference.tensors import shown
from mosec_asgi.web.protocols.seam import Ask, Endpoint, EventForm, Problem
from mosec_asgi.web.responses import Response

if TYPE_CHECKING:
    from mosec_asgi.web.exchange import Request

SERVICE = "inference.GRPCInferenceService"
HEALTH = "/grpc.health.v1.Health/Check"
EXTENSIONS = ("parameters", "model_stream_infer")
# `grpc.health.v1.HealthCheckResponse` with the status SERVING, or NOT_SERVING.
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"


def endpoints_of(common: Common) -> list[Endpoint]:
    """Return all methods."""
    kinds = (ServerLive, ServerReady, ModelReady, ServerMetadata, ModelMetadata, ModelInfer, ModelStreamInfer, Health)
    return [kind(common) for kind in kinds]


def streams_of(endpoints: Sequence[Endpoint]) -> list[str]:
    """Return the paths of the methods that take many requests in one call."""
    return [endpoint.path for endpoint in endpoints if isinstance(endpoint, ModelStreamInfer)]


class Method(Endpoint):
    """A method that answers without having anything run."""

    path: str = ""

    def __init__(self, common: Common) -> None:
        """Bind to what all know."""
        self.common = common
        self.path = self.path or f"/{SERVICE}/{type(self).__name__}"

    def ready(self, *routes: str) -> bool:
        """Whether all of some routes can answer."""
        standing = self.standing
        return standing is not None and all(standing.ready(route) for route in routes)

    def answer(self, ask: Ask, results: Sequence[Any]) -> Response:
        """Never called where nothing is run."""
        raise NotImplementedError

    def error(self, problem: Problem) -> Response:
        """Return what is wrong as a text."""
        retry = () if problem.retry_after is None else ((b"retry-after", b"%d" % problem.retry_after),)
        return Response(status_of(problem), retry, error_object(problem)["error"].encode())


class ServerLive(Method):
    """The server answers."""

    is_health = True

    def ask(self, request: Request) -> Ask | Response:
        """Answer at once."""
        return _answer(pb.ServerLiveResponse(live=True))


class ServerReady(Method):
    """All models can answer."""

    is_health = True

    def ask(self, request: Request) -> Ask | Response:
        """Answer at once."""
        return _answer(pb.ServerReadyResponse(ready=self.ready(*self.common.routes.values())))


class ModelReady(Method):
    """A model can answer."""

    def ask(self, request: Request) -> Ask | Response:
        """Answer at once."""
        asked = parsed(pb.ModelReadyRequest, request.body)
        model = model_of(self.common.models, asked.name, asked.version)
        return _answer(pb.ModelReadyResponse(ready=self.ready(model.route)))


class ServerMetadata(Method):
    """What the server is."""

    def ask(self, request: Request) -> Ask | Response:
        """Answer at once."""
        return _answer(pb.ServerMetadataResponse(name=PLATFORM, version=__version__, extensions=EXTENSIONS))


class ModelMetadata(Method):
    """What a model takes and returns."""

    def ask(self, request: Request) -> Ask | Response:
        """Answer at once."""
        asked = parsed(pb.ModelMetadataRequest, request.body)
        model = model_of(self.common.models, asked.name, asked.version)
        return _answer(pb.ModelMetadataResponse(**model.metadata()))


class Health(Method):
    """gRPC's own health check, as Kubernetes and load balancers ask it: of the server, or of the protocol's service."""

    is_health = True
    path = HEALTH

    def ask(self, request: Request) -> Ask | Response:
        """Answer at once."""
        # The only field of `HealthCheckRequest`, `service`, is a text with the number 1, as `name` is here.
        service = parsed(pb.ModelReadyRequest, request.body).name
        if service not in ("", SERVICE):
            raise NotFound(f"there is no service {shown(service)} here, only {SERVICE}")
        ready = self.ready(*self.common.routes.values())
        return Response(HTTPStatus.OK, (), _SERVING if ready else _NOT_SERVING)


class ModelInfer(Method):
    """Tensors in, tensors out."""

    def __init__(self, common: Common) -> None:
        """Bind to all models."""
        super().__init__(common)
        self.routes = tuple(dict.fromkeys(common.routes.values()))
        self.max_calls = common.bounds.rows

    def ask(self, request: Request) -> Ask | Response:
        """Return a call for each row."""
        return self.read(parsed_infer(request.body))

    def read(self, message: pb.ModelInferRequest) -> Ask:
        """Return what a request wants."""
        model = model_of(self.common.models, message.model_name, message.model_version)
        wanted = read_infer(message, self.common.bounds)
        return Ask(model.route, model.items(wanted.request), Asked(model, wanted), wanted.timeout)

    def answer(self, ask: Ask, results: Sequence[Any]) -> Response:
        """Return the outputs, of all rows in their order."""
        return _answer(self.outputs(ask, self.wholes(ask, results)))

    def wholes(self, ask: Ask, results: Sequence[Any]) -> Sequence[Any]:
        """Return one result for each row: of a model that streams, all events as one."""
        streams = ask.context.model.name in self.common.streaming
        return [whole(events) for events in results] if streams else results

    def outputs(self, ask: Ask, results: Sequence[Any], *, final: bool | None = None) -> pb.ModelInferResponse:
        """Return an answer with outputs."""
        model, wanted = ask.context
        outputs = model.outputs_of(wanted.request, results)
        return infer_response(model, wanted, outputs, self.common.bounds, final=final)


class ModelStreamInfer(ModelInfer):
    """A request of a stream: its answer, each event of a model that streams, and what goes wrong is a message of it."""

    def ask(self, request: Request) -> Ask | Response:
        """Return a call for each row; what is wrong with a request is told with its id."""
        message = parsed_infer(request.body)
        try:
            ask = self.read(message)
            if len(ask.items) > 1 and ask.context.model.name in self.common.streaming:
                raise ClientError(f"a model that streams takes one row with each request, not {len(ask.items)}")
        except MosecError as error:
            failure = describe(error)
            return _failed(Problem(failure.code, failure.text), message.id)
        return ask

    def answer(self, ask: Ask, results: Sequence[Any]) -> Response:
        """Return the only answer."""
        return _answer(pb.ModelStreamInferResponse(infer_response=self.outputs(ask, results, final=True)))

    def stream(self, ask: Ask) -> EventForm | None:
        """Return the form of a stream of answers."""
        return _Answers(self, ask)

    def error(self, problem: Problem) -> Response:
        """Return what is wrong as a message."""
        return _failed(problem, "" if problem.ask is None else problem.ask.context.wanted.request.id)


class _Answers(EventForm):
    """An answer for each event."""

    comment = None

    def __init__(self, method: ModelStreamInfer, ask: Ask) -> None:
        self._method = method
        self._ask = ask

    def piece(self, event: Any, place: int) -> bytes:
        """Return an event as the answer to a request of one row."""
        answer = self._method.outputs(self._ask, [piece_of(event)], final=False)
        return pb.ModelStreamInferResponse(infer_response=answer).SerializeToString()

    def end(self) -> bytes:
        """Return the last answer, without outputs, where the client wants one."""
        model, wanted = self._ask.context
        if not wanted.empty_final:
            return b""
        answer = infer_response(model, wanted, (), self._method.common.bounds, final=True)
        return pb.ModelStreamInferResponse(infer_response=answer).SerializeToString()

    def failure(self, problem: Problem) -> bytes | None:
        """Return what went wrong as a message."""
        return self._method.error(problem).body


def _answer(message: Message) -> Response:
    return Response(HTTPStatus.OK, (), message.SerializeToString())


def _failed(problem: Problem, request_id: str) -> Response:
    told = pb.ModelStreamInferResponse(error_message=error_object(problem)["error"])
    # By which a client knows of which request it is.
    told.infer_response.id = request_id
    return Response(status_of(problem), (), told.SerializeToString())
