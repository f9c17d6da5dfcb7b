"""The endpoints of an `OpenInference`, and what they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mosec_asgi.web.protocols.open_inference import described
from mosec_asgi.web.protocols.open_inference.generate import Generate, GenerateStream
from mosec_asgi.web.protocols.open_inference.infer import Infer
from mosec_asgi.web.protocols.open_inference.service import Common
from mosec_asgi.web.protocols.open_inference.state import (
    Live,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    Ready,
    RepositoryIndex,
    ServerMetadata,
)
from mosec_asgi.web.protocols.open_inference.tensors import Bounds
from mosec_asgi.web.protocols.seam import Endpoint

_TELLING = (ModelMetadata, ModelReady, ModelConfig)
_ASKING = (Infer, Generate, GenerateStream)


class Made:
    """All endpoints of a protocol.

    Attributes:
        common: what they share.
        endpoints: themselves.
    """

    def __init__(
        self, prefix: str, routes: Mapping[str, str], versions: Mapping[str, str], bounds: tuple[int, int, int]
    ) -> None:
        """Make them; see `OpenInference`."""
        self.common = common = Common(prefix, routes, versions, Bounds(*bounds))
        self.endpoints: Sequence[Endpoint] = [
            ServerMetadata(common),
            Live(common),
            Ready(common),
            RepositoryIndex(common),
            *(each(common, versioned=versioned) for versioned in (False, True) for each in _TELLING),
            # A path of its own for each model, and with parameters for versions, and for models that are not there.
            *(each(common, name) for name in routes for each in _ASKING),
            *(each(common, None, versioned=versioned) for versioned in (False, True) for each in _ASKING),
        ]

    def schemas(self) -> Mapping[str, Any]:
        """Return the schemas that the endpoints' descriptions name."""
        return described.schemas_of(self.common)
