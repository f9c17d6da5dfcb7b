"""`OpenInference`: the protocol that a server is given, checked as it is written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mosec_asgi.errors import DefinitionError
from mosec_asgi.web.protocols.seam import MAX_CALLS, Endpoint, Listener, Protocol

if TYPE_CHECKING:
    from mosec_asgi.web.grpc.server import GrpcListener
    from mosec_asgi.worker import Worker


class OpenInference(Protocol):
    """The open inference protocol, "v2", of KServe and Triton, over HTTP: tensors in, tensors out.

        server.append_worker(Classify, max_batch_size=32, route="/classify")
        server.add_protocol(OpenInference({"classifier": "/classify"}))

    A request of 8 rows is 8 items, which batch with everybody else's. docs/protocols.md says what `forward` is given
    for a row, and what it returns.
    """

    def __init__(
        self,
        models: Mapping[str, str],
        *,
        prefix: str = "/v2",
        versions: Mapping[str, str] | None = None,
        max_rows: int = MAX_CALLS,
        max_tensors: int = 64,
        max_values: int = 300_000,
        grpc_port: int | None = None,
        grpc_host: str = "0.0.0.0",
    ) -> None:
        """Name the models.

        Args:
            models: their routes by their names.
            prefix: of the paths.
            versions: of models, by their names; "1" for those that are left out.
            max_rows: of one request.
            max_tensors: inputs of one request, or outputs that it asks for.
            max_values: of one request that are read one by one: those in JSON, and those of BYTES, each of which counts
                for four. Nobody else is served meanwhile; 300,000 numbers in JSON take a few hundredths of a second.
                Numbers that come as binary data are not counted. An answer in JSON may have four times as many.
            grpc_port: on which the models are served by gRPC as well; 0 for any that is free, which `grpc_port` says
                once the server has started; None for none. It needs the extra `grpc`.
            grpc_host: address to listen on there.

        Raises:
            DefinitionError: an argument does not fit, or numpy is missing; the text says what to change.
        """
        pairs = list(models.items()) if isinstance(models, Mapping) else []
        if not pairs or not all(isinstance(route, str) for _, route in pairs):
            raise DefinitionError(f"OpenInference needs a dictionary such as {{'name': '/route'}}, not {models!r}")
        for name, _ in pairs:
            _check_part("the name of a model", name)
        known = dict(versions or {})
        for name, version in known.items():
            if name not in models:
                raise DefinitionError(f"versions: there is no model {name!r}, only {', '.join(map(repr, models))}")
            _check_part(f"the version of {name}", version)
        if not prefix.startswith("/") or prefix.endswith("/") or set(prefix) & set("{}?#%"):
            raise DefinitionError(f"prefix must begin with a slash and not end with one, such as '/v2', not {prefix!r}")
        for setting, value in (("max_rows", max_rows), ("max_tensors", max_tensors), ("max_values", max_values)):
            if type(value) is not int or value < 1:
                raise DefinitionError(f"{setting} must be a whole number, 1 or more, not {value!r}")
        # Only where it is used: it loads numpy.
        try:
            from mosec_asgi.web.protocols.open_inference.endpoints import Made
        except ImportError as error:
            raise DefinitionError("OpenInference needs numpy: pip install 'mosec-asgi[open-inference]'") from error
        versions = {name: known.get(name, "1") for name, _ in pairs}
        self._listener: GrpcListener | None = None
        self._grpc = None if grpc_port is None else (_checked_host(grpc_host), _checked_port(grpc_port))
        # Not imported: workers, which read the same module, do without. What serves imports it; see `web.grpc`.
        if self._grpc is not None and find_spec("grpc") is None:
            raise DefinitionError("grpc_port needs gRPC: pip install 'mosec-asgi[grpc]'")
        self._made = Made(prefix, dict(pairs), versions, (max_rows, max_tensors, max_values))

    def endpoints(self) -> Sequence[Endpoint]:
        """Return the endpoints."""
        return self._made.endpoints

    def learn(self, pipelines: Mapping[str, Sequence[type[Worker]]]) -> None:
        """Read what the workers say of their tensors."""
        self._made.common.learn(pipelines)

    def listener(self) -> Listener | None:
        """Return what serves the models by gRPC."""
        if self._grpc is None:
            return None
        from mosec_asgi.web.grpc.server import GrpcListener
        from mosec_asgi.web.protocols.open_inference.grpc.endpoints import endpoints_of, streams_of

        endpoints = endpoints_of(self._made.common)
        self._listener = GrpcListener(endpoints, streams_of(endpoints), *self._grpc)
        return self._listener

    @property
    def grpc_port(self) -> int | None:
        """The port of gRPC: that which was asked for, and once the server has started, that on which it listens."""
        if self._listener is not None:
            return self._listener.port
        return None if self._grpc is None else self._grpc[1]

    def schemas(self) -> Mapping[str, Any]:
        """Return the schemas of requests and answers."""
        return self._made.schemas()


def _checked_host(host: Any) -> str:
    if not isinstance(host, str) or not host:
        raise DefinitionError(f"grpc_host must be an address such as '127.0.0.1', not {host!r}")
    return host


def _checked_port(port: Any) -> int:
    if type(port) is not int or not 0 <= port <= 65535:
        raise DefinitionError(f"grpc_port must be a port, from 1 to 65535, or 0 for any that is free, not {port!r}")
    return port


def _check_part(what: str, value: Any) -> None:
    """Check that a text can stand in a path, between two slashes.

    Raises:
        DefinitionError: it cannot.
    """
    right = isinstance(value, str) and value and value.isprintable() and value == value.strip()
    if not right or set(value) & set("/{}?#%"):
        raise DefinitionError(f"{what} stands in a path; it must be a text of letters, digits and such, not {value!r}")
