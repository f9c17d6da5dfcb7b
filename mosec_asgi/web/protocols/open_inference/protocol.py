"""`OpenInference`: the protocol that a server is given, checked as it is written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mosec_asgi.errors import DefinitionError
from mosec_asgi.web.protocols.seam import MAX_CALLS, Endpoint, Protocol

if TYPE_CHECKING:
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
    ) -> None:
        """Name the models.

        Args:
            models: their routes by their names.
            prefix: of the paths.
            versions: of models, by their names; "1" for those that are left out.
            max_rows: of one request.
            max_tensors: inputs of one request, or outputs that it asks for.
            max_values: of one request that are read one by one: those in JSON, and those of BYTES. Nobody else is
                served meanwhile; 300,000 numbers in JSON take a few hundredths of a second. Numbers that come as
                binary data are not counted.

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
        self._made = Made(prefix, dict(pairs), versions, (max_rows, max_tensors, max_values))

    def endpoints(self) -> Sequence[Endpoint]:
        """Return the endpoints."""
        return self._made.endpoints

    def learn(self, pipelines: Mapping[str, Sequence[type[Worker]]]) -> None:
        """Read what the workers say of their tensors."""
        self._made.common.learn(pipelines)

    def schemas(self) -> Mapping[str, Any]:
        """Return the schemas of requests and answers."""
        return self._made.schemas()


def _check_part(what: str, value: Any) -> None:
    """Check that a text can stand in a path, between two slashes.

    Raises:
        DefinitionError: it cannot.
    """
    right = isinstance(value, str) and value and value.isprintable() and value == value.strip()
    if not right or set(value) & set("/{}?#%"):
        raise DefinitionError(f"{what} stands in a path; it must be a text of letters, digits and such, not {value!r}")
