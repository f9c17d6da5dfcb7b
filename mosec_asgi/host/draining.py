"""The end of a service that others go on without: no call is lost.

It accepts no more connections; another service does, on the same socket or behind the same balancer. Clients and
balancers keep connections open between their requests, and one that is closed may just then be carrying the next. So
each further answer says `connection: close`, which a client does not mistake, and silent connections stay open for a
while, for their next request to come.
"""

from __future__ import annotations

import asyncio
import copy
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from mosec_asgi.web.direct import CLOSE

# Seconds in which a silent connection's next request is waited for where another process has taken over; at a stop the
# setting `stop_delay` says how many. Who comes later finds the connection closed, as after the time of `keep_alive`.
SILENCE_SECONDS = 0.5
_POLL_SECONDS = 0.02


class DrainingServer(uvicorn.Server):
    """uvicorn, which drains before it shuts down, whatever has asked for the end."""

    def __init__(self, config: uvicorn.Config, admit_no_more: Callable[[], object], stop_delay: float) -> None:
        """Prepare.

        Args:
            config: uvicorn's.
            admit_no_more: called when it has drained; what comes then is refused.
            stop_delay: seconds in which a silent connection's next request is waited for, where this is a stop.
        """
        super().__init__(config)
        self._admit_no_more = admit_no_more
        self._stop_delay = stop_delay
        self._drained = False

    async def drain(self) -> None:
        """Answer what has come, and end the program once its clients have gone: another has taken over."""
        self._drained = True
        await drain(self, SILENCE_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down as uvicorn does, behind what still comes on the connections that there are."""
        if not self._drained:
            await drain(self, self._stop_delay)
        self._admit_no_more()
        await super().shutdown(sockets)


async def drain(runner: uvicorn.Server, seconds: float) -> None:
    """Answer what has come, and end the program once its clients have gone, or have been silent for so many seconds."""
    for server in runner.servers:
        server.close()
    state = runner.server_state
    last = copy.copy(state)
    last.default_headers = [*state.default_headers, CLOSE]
    asked: set[object] = set()
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while state.connections and loop.time() < end and not runner.force_exit:
        new = state.connections - asked
        asked |= new
        for connection in new:
            _ask_to_leave(connection, last)
        await asyncio.sleep(_POLL_SECONDS)
    runner.should_exit = True


def _ask_to_leave(connection: Any, last: ServerState) -> None:
    if isinstance(connection, HttpToolsProtocol):
        connection.server_state = last
    elif hasattr(connection, "cycles"):
        # HTTP/2 says by a frame of its own that it ends.
        connection.shutdown()
    # Else nothing has come, and it is not known yet which of the two it will be.
