"""The server's entrance as an ASGI app, where there is more to it than a request to a service that runs.

That is the lifespan, a request before the workers have loaded, and a request to an app whose lifespan nobody runs.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from mosec_asgi import log
from mosec_asgi.errors import CLOSING, NOT_STARTED, WRONG_LOOP, DefinitionError, EventLoopError, Failure, StartupError
from mosec_asgi.lifetime import GivenUp, Lifetime, Running
from mosec_asgi.ration import Ration, later_in_thread

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


logger = log.internal_logger(__name__)


class Entrance:
    """Brings requests to the service of one server, and starts and stops it as ASGI servers say."""

    def __init__(self, lifetime: Lifetime, answers_early: Callable[[], bool]) -> None:
        """Bind it to a server.

        Args:
            lifetime: starts and stops its service.
            answers_early: whether requests are answered while the workers load; see `Server.on_answering`.
        """
        self._lifetime = lifetime
        self._answers_early = answers_early
        # The log already says that the server runs on the wrong kind of event loop.
        self._told_of_loop = False
        # A start that fails is tried again at the next request.
        self._ration = Ration(logger, later_in_thread)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or follow the life of the app."""
        if scope["type"] == "http":
            running = self._lifetime.running or self._lifetime.answering
            if running is None or not running.is_here():
                running = await self._start_late(scope, send)
                if running is None:
                    return
            await running.app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._follow_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _follow_lifespan(self, receive: Receive, send: Send) -> None:
        import asyncio

        await receive()
        entered = False
        try:
            await self._lifetime.enter()
            entered = True
        except EventLoopError as error:
            # Some ASGI servers bury the reason under tracebacks. So the app starts, logs the reason, and answers 503.
            self._tell_of_loop(error)
        except GivenUp:
            # The server has heard the signal too, and stops as soon as the app has started. To call the start failed
            # would be an error in its log, and in its exit code.
            pass
        except (StartupError, DefinitionError, asyncio.CancelledError) as error:
            await send({"type": "lifespan.startup.failed", "message": str(error) or "the start was interrupted"})
            return
        except Exception:
            # Whatever it is, such as a fault of a middleware: to raise it would say that there is no lifespan at all.
            await send({"type": "lifespan.startup.failed", "message": traceback.format_exc()})
            return
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()
        except asyncio.CancelledError:
            # Nobody waits for the end, as after a second ctrl-c; to raise this would be logged as a fault of the app.
            self._lifetime.force_stop()
            return
        if entered:
            await self._lifetime.leave()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start_late(self, scope: Scope, send: Send) -> Running | None:
        """Start at the first request, for an app whose lifespan nobody runs."""
        if self._lifetime.given_up:
            await _refuse(scope, send, CLOSING)
            return None
        if self._answers_early():
            # The workers have not started, and the program is about to end.
            await _refuse(scope, send, NOT_STARTED)
            return None
        if not self._lifetime.is_starting and not self._told_of_loop:
            logger.warning(
                "starting the workers at the first request, because the server's lifespan is not run; to start them "
                "with the app in which the server is mounted, pass `lifespan=server.lifespan` to that app"
            )
        try:
            return await self._lifetime.start_late()
        except EventLoopError as error:
            self._tell_of_loop(error)
            await _refuse(scope, send, WRONG_LOOP)
        except GivenUp:
            await _refuse(scope, send, CLOSING)
        except (StartupError, DefinitionError) as error:
            request_id = await _refuse(scope, send, NOT_STARTED)
            self._ration.fault(
                logging.ERROR,
                "the service could not be started: %s",
                error,
                error=error,
                extra={"request_id": request_id},
                traced=False,
            )
        return None

    def _tell_of_loop(self, error: EventLoopError) -> None:
        if not self._told_of_loop:
            self._told_of_loop = True
            logger.error("%s. Until then each request is answered 503", error)


async def _refuse(scope: Scope, send: Send, failure: Failure) -> str:
    """Answer a request to a service that does not run; return the request's id."""
    from mosec_asgi.version import SERVER
    from mosec_asgi.web.asgi import send_response
    from mosec_asgi.web.exchange import RequestIds
    from mosec_asgi.web.protocols import plain

    request_id = RequestIds().of(dict(scope["headers"]))
    headers = [(b"x-request-id", request_id.encode()), (b"server", SERVER.encode())]
    await send_response(send, plain.failed(failure), headers)
    return request_id
