"""What a server is to serve: stages by their routes, and protocols; each is checked against what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from mosec_asgi import paths
from mosec_asgi.errors import DefinitionError
from mosec_asgi.route_checks import check_labels, check_parameters, check_pipeline, check_routes
from mosec_asgi.runtime import Runtime, stage_names

if TYPE_CHECKING:
    from mosec_asgi.web.protocols.seam import Protocol

DEFAULT_ROUTE = "/inference"
# The server's own paths; user routes must keep off them.
RESERVED_ROUTES = frozenset(
    {
        "/",
        "/livez",
        "/readyz",
        "/metrics",
        "/dashboard",
        "/dashboard/",
        "/dashboard/data",
        "/openapi",
        "/openapi/metadata.json",
        "/openapi/swagger",
        "/openapi/swagger/",
    }
)


class Defined:
    """What was defined so far. Each method raises `DefinitionError` where something does not fit, and changes nothing.

    Attributes:
        routes: the stages of each.
        protocols: in the order in which they were added.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.routes: dict[str, list[Runtime]] = {}
        self.protocols: list[Protocol] = []

    def append(self, runtime: Runtime, route: str | list[str]) -> None:
        """Append a stage to the pipeline of one route, or of several."""
        routes = route if isinstance(route, (list, tuple)) else [route]
        if not routes:
            raise DefinitionError("route is an empty list; name at least one path, or leave it out for /inference")
        for path in routes:
            _check_route(path)
            check_pipeline(path, [*self.routes.get(path, ()), runtime])
        self._define({**self.routes, **{path: [*self.routes.get(path, ()), runtime] for path in routes}})

    def register(self, routes: Mapping[str, Sequence[Runtime]]) -> None:
        """Define all pipelines at once."""
        if not isinstance(routes, Mapping) or not routes:
            raise DefinitionError(
                f'register_runtime needs a dictionary such as {{"{DEFAULT_ROUTE}": [Runtime(YourWorker)]}}, '
                f"not {routes!r}"
            )
        if self.routes:
            raise DefinitionError("register_runtime defines all routes at once; call it alone, and once")
        for path, runtimes in routes.items():
            _check_route(path)
            if (
                not isinstance(runtimes, (list, tuple))
                or not runtimes
                or not all(isinstance(runtime, Runtime) for runtime in runtimes)
            ):
                raise DefinitionError(f"the route {path} needs a list of one or more Runtime objects, not {runtimes!r}")
            check_pipeline(path, runtimes)
        check_parameters(routes)
        self._define({path: list(runtimes) for path, runtimes in routes.items()})

    def add_protocol(self, protocol: Protocol) -> None:
        """Add a protocol; the routes that it asks may be defined later."""
        from mosec_asgi.web.protocols.seam import Endpoint, Protocol

        if not isinstance(protocol, Protocol):
            raise DefinitionError(
                f"add_protocol needs an object of a subclass of mosec_asgi.protocols.Protocol, such as "
                f"OpenAI(chat={{'name': '/route'}}), not {protocol!r}"
            )
        for endpoint in protocol.endpoints():
            if not isinstance(endpoint, Endpoint):
                raise DefinitionError(f"the endpoints of a protocol are Endpoint objects, not {endpoint!r}")
            _check_route(endpoint.path)
        self._check_paths(list(self.routes), [*self.protocols, protocol])
        self.protocols.append(protocol)

    def check(self) -> None:
        """Check that there is something to serve, and that nothing is missing."""
        if not self.routes:
            raise DefinitionError("the server has no stage to serve: call append_worker(YourWorker) first")
        # Only here: the worker that reads them may have been appended last.
        check_parameters(self.routes)
        self._check_protocols()

    @staticmethod
    def _check_paths(routes: Sequence[str], protocols: Sequence[Protocol]) -> None:
        """Check that no two paths are the same."""
        taken = [endpoint.path for protocol in protocols for endpoint in protocol.endpoints()]
        for path in taken:
            if path in routes or taken.count(path) > 1:
                raise DefinitionError(
                    f"the path {path} is both a protocol's and another's; give the worker another route, or the "
                    "protocol another prefix"
                )
        paths.check_distinct([*routes, *taken])

    def _check_protocols(self) -> None:
        """Check that the routes which protocols ask are there."""
        pipelines = {path: [runtime.worker for runtime in pipeline] for path, pipeline in self.routes.items()}
        for protocol in self.protocols:
            protocol.learn(pipelines)
            for endpoint in protocol.endpoints():
                for route in endpoint.routes:
                    if route not in self.routes:
                        raise DefinitionError(
                            f"{type(protocol).__name__} asks the route {route!r} for {endpoint.path}, and there are "
                            f"only {', '.join(self.routes)}; name one of these, or append a worker with that route"
                        )
                endpoint.check({route: pipelines[route][-1] for route in endpoint.routes})

    def _define(self, routes: dict[str, list[Runtime]]) -> None:
        check_routes(routes)
        check_labels(routes)
        self._check_paths(list(routes), self.protocols)
        self.routes = routes
        for runtime, name in stage_names([runtime for pipeline in routes.values() for runtime in pipeline]).items():
            runtime.name = name


# Characters that no route holds, and why.
_NO_ROUTE = {
    "?": "a query is a part of a request, not of its route; leave it out, and requests with any query reach the route",
    "#": "a fragment is never sent to a server; leave it out",
}


def _check_route(path: Any) -> None:
    if not isinstance(path, str) or not path.startswith("/"):
        raise DefinitionError(f"a route is a path that begins with a slash, not {path!r}")
    for character, what in _NO_ROUTE.items():
        if character in path:
            raise DefinitionError(f"the route {path!r} holds {character!r}: {what}")
    paths.parameters(path)
    if (decoded := unquote(path)) != path:
        raise DefinitionError(
            f"the route {path!r} is percent-encoded, and requests are matched by their decoded path; write {decoded!r}"
        )
    if path in RESERVED_ROUTES:
        raise DefinitionError(
            f"the route {path} is the server's own ({', '.join(sorted(RESERVED_ROUTES))}); use another"
        )
