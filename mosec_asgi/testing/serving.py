"""A server without processes, for tests: `async with testing.serving(server) as service`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mosec_asgi.batching.engine import Statistics
from mosec_asgi.defined import DEFAULT_ROUTE
from mosec_asgi.errors import DefinitionError
from mosec_asgi.runtime import stage_names
from mosec_asgi.server import Server
from mosec_asgi.testing.inline import InlineLauncher
from mosec_asgi.testing.script import ScriptedWorker
from mosec_asgi.worker import Worker

if TYPE_CHECKING:
    import httpx
    from starlette.types import ASGIApp


def serving(server: Server, app: ASGIApp | None = None) -> InlineService:
    """Serve with workers in this process, without ports; a test can script the faults of each worker.

        async with testing.serving(server) as service:
            response = await service.client.post("/inference", json=[1, 2])

    All else is as in production: batching, time limits, responses, the settings of the server and the environment, and
    the code that runs the workers. On the event loop of `testing.run`, timeouts and waits take no time.

    Args:
        server: what to serve; the server itself may be called as an ASGI app, too, inside the block.
        app: an app in which `server` is mounted, to which the client's requests go; None for the server itself.
    """
    return InlineService(server, app)


class InlineService:
    """A server that is served with inline workers; made by `serving`."""

    def __init__(self, server: Server, app: ASGIApp | None) -> None:
        self._server = server
        self._app = app or server
        self._exits = contextlib.AsyncExitStack()
        self._client: httpx.AsyncClient | None = None
        runtimes = [runtime for pipeline in server._defined.routes.values() for runtime in pipeline]
        self._workers = {
            (name, number): ScriptedWorker(name, number)
            for runtime, name in stage_names(runtimes).items()
            for number in range(1, runtime.num + 1)
        }

    async def __aenter__(self) -> InlineService:
        from mosec_asgi.service import Platform

        if self._server._running is not None:
            raise RuntimeError("the server runs already; end its service first")
        loop = asyncio.get_running_loop()
        self._server._platform = Platform(lambda plan, loop: InlineLauncher(loop, self._workers), loop.time)
        async with contextlib.AsyncExitStack() as exits:
            exits.callback(setattr, self._server, "_platform", None)
            await exits.enter_async_context(self._server.lifespan())
            exits.push_async_callback(self._close_client)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    @property
    def client(self) -> httpx.AsyncClient:
        """An `httpx.AsyncClient` of the app in this process. Streams arrive as they are sent; closing one disconnects.

        Raises:
            RuntimeError: httpx is not installed.
        """
        if self._client is None:
            try:
                import httpx
            except ImportError as error:
                raise RuntimeError("the client of testing.serving() needs httpx: pip install httpx") from error
            from mosec_asgi.testing.transport import AppTransport

            self._client = httpx.AsyncClient(
                transport=AppTransport(self._app), base_url="http://testserver", timeout=None
            )
        return self._client

    async def infer(self, item: Any, route: str = DEFAULT_ROUTE, **options: Any) -> Any:
        """Run one item through a pipeline; see `Server.infer` for the options."""
        return await self._server.infer(item, route, **options)

    def stream(self, item: Any, route: str = DEFAULT_ROUTE, **options: Any) -> AsyncGenerator[Any, None]:
        """Run one item on a route that streams, and yield its events; see `Server.stream` for the options."""
        return self._server.stream(item, route, **options)

    def worker(self, stage: str | type[Worker], number: int = 1) -> ScriptedWorker:
        """Return a worker, to script its faults and to see what it was called with.

        Args:
            stage: the stage's name, such as "Inference_2", or the worker's class, or its name.
            number: of the worker in its stage, from 1.

        Raises:
            DefinitionError: there is no such worker, or several stages have this class.
        """
        wanted = stage if isinstance(stage, str) else stage.__name__
        names = {name for name, _ in self._workers if wanted in (name, name.rpartition("_")[0])}
        if len(names) == 1:
            found = self._workers.get((next(iter(names)), number))
            if found is not None:
                return found
        there = ", ".join(f"{name} {number}" for name, number in self._workers)
        if len(names) > 1:
            why = f"several stages are of {wanted!r}; name one"
        else:
            why = (
                f"there is no worker {number} of {wanted!r}" if names else f"no stage and no class is called {wanted!r}"
            )
        raise DefinitionError(f"{why}: the workers are {there}")

    @property
    def statistics(self) -> Statistics:
        """The state of the service: the tasks that wait, those that workers have, and the workers that are ready."""
        running = self._server._running
        if running is None:
            raise RuntimeError("the service does not run: look at it inside of `async with`")
        return running.statistics()

    async def _close_client(self) -> None:
        if self._client is not None:
            await self._client.aclose()
