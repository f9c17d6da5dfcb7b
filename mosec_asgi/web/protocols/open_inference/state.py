"""What may be asked of a service and its models beside inference: by GET, and Triton's index of models by POST."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from mosec_asgi.version import __version__
from mosec_asgi.web.protocols.open_inference import described
from mosec_asgi.web.protocols.open_inference.description import Tensor
from mosec_asgi.web.protocols.open_inference.inference import PLATFORM, Model
from mosec_asgi.web.protocols.open_inference.service import Common, OpenEndpoint
from mosec_asgi.web.protocols.seam import Ask, json_response
from mosec_asgi.web.responses import Response

if TYPE_CHECKING:
    from mosec_asgi.web.exchange import Request

EXTENSIONS = ("binary_tensor_data", "generate", "model_configuration", "model_repository", "parameters")


class _State(OpenEndpoint):
    """Answers without having anything run."""

    methods = ("GET",)

    def ready(self, route: str | None = None) -> bool:
        """Whether a route, or each of them, can answer."""
        return self.standing is not None and self.standing.ready(route)


class ServerMetadata(_State):
    """`GET /v2`: what the server is."""

    def __init__(self, common: Common) -> None:
        """Bind; the form of errors holds for all paths below."""
        super().__init__(common, "")
        self.below = f"{common.prefix}/"

    def ask(self, request: Request) -> Ask | Response:
        """Answer at once."""
        return json_response({"name": PLATFORM, "version": __version__, "extensions": EXTENSIONS})

    def describe(self) -> dict[str, Any]:
        """Describe it."""
        return described.get("server", "What the server is", "ServerMetadata")


class Live(_State):
    """`GET /v2/health/live`: it answers."""

    is_health = True

    def __init__(self, common: Common) -> None:
        """Bind."""
        super().__init__(common, "/health/live")

    def ask(self, request: Request) -> Ask | Response:
        """Answer at once."""
        return json_response({"live": True})

    def describe(self) -> dict[str, Any]:
        """Describe it."""
        return described.get("live", "Whether the server answers", "Live")


class Ready(_State):
    """`GET /v2/health/ready`: 200 when each stage of each model of this protocol has a worker, else 503."""

    is_health = True

    def __init__(self, common: Common) -> None:
        """Bind."""
        super().__init__(common, "/health/ready")

    def ask(self, request: Request) -> Ask | Response:
        """Answer at once."""
        ready = all(self.ready(route) for route in self.common.routes.values())
        return json_response({"ready": ready}, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    def describe(self) -> dict[str, Any]:
        """Describe it."""
        return described.get("ready", "Whether all models can answer", "Ready", unready=True)


class _OfModel(_State):
    """Tells of the model that the path names, in any version or in one.

    Attributes:
        name: of the operation.
        rest: of the path.
    """

    name: str
    rest: str = ""

    def __init__(self, common: Common, *, versioned: bool) -> None:
        """Bind; `versioned` is the path that names a version."""
        super().__init__(common, f"/models/{{model}}{'/versions/{version}' if versioned else ''}{self.rest}")
        self.versioned = versioned

    def ask(self, request: Request) -> Ask | Response:
        """Answer at once."""
        return self.told(self.common.model_of(request))

    def told(self, model: Model) -> Response:
        """Return what is told of a model."""
        raise NotImplementedError

    def item(self, summary: str, schema: str, *, unready: bool = False) -> dict[str, Any]:
        """Return the path's item for the OpenAPI document."""
        name = f"{self.name}_version" if self.versioned else self.name
        parameters = described.of_path(self.common, versioned=self.versioned)
        return described.get(name, summary, schema, parameters, unready=unready)


class ModelMetadata(_OfModel):
    """`GET /v2/models/{model}`: what it takes and returns."""

    name = "model"

    def told(self, model: Model) -> Response:
        """Return its metadata."""
        return json_response(model.metadata())

    def describe(self) -> dict[str, Any]:
        """Describe it."""
        return self.item("What a model takes and returns", "ModelMetadata")


class ModelReady(_OfModel):
    """`GET /v2/models/{model}/ready`: 200 when each of its stages has a worker, else 503."""

    name = "model_ready"
    rest = "/ready"

    def told(self, model: Model) -> Response:
        """Return whether it is."""
        ready = self.ready(model.route)
        told = {"name": model.name, "ready": ready}
        return json_response(told, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    def describe(self) -> dict[str, Any]:
        """Describe it."""
        return self.item("Whether a model can answer", "ModelReady", unready=True)


class ModelConfig(_OfModel):
    """`GET /v2/models/{model}/config`: its metadata in the words of Triton, as its load testers ask for it."""

    name = "model_config"
    rest = "/config"

    def told(self, model: Model) -> Response:
        """Return its configuration; a request may have as many rows as a batch of Triton's."""
        return json_response(
            {
                "name": model.name,
                "platform": PLATFORM,
                "backend": PLATFORM,
                "max_batch_size": self.common.bounds.rows,
                "input": [_configured(tensor) for tensor in model.inputs.tensors.values()],
                "output": [_configured(tensor) for tensor in model.outputs.tensors.values()],
                "model_transaction_policy": {"decoupled": model.name in self.common.streaming},
            }
        )

    def describe(self) -> dict[str, Any]:
        """Describe it."""
        return self.item("What a model takes and returns, in Triton's words", "ModelConfig")


def _configured(tensor: Tensor) -> dict[str, Any]:
    kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    # Without the rows.
    return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": list(tensor.shape[1:])}


class RepositoryIndex(_State):
    """`POST /v2/repository/index`: all models, as Triton's clients ask for them."""

    methods = ("POST",)

    def __init__(self, common: Common) -> None:
        """Bind."""
        super().__init__(common, "/repository/index")

    def ask(self, request: Request) -> Ask | Response:
        """Answer at once; whatever the body says."""
        models = self.common.models.values()
        return json_response(
            [
                {
                    "name": model.name,
                    "version": model.version,
                    "state": "READY" if self.ready(model.route) else "UNAVAILABLE",
                    "reason": "",
                }
                for model in models
            ]
        )

    def describe(self) -> dict[str, Any]:
        """Describe it."""
        return described.index()
