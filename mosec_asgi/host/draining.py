"""The end of a service whose place another has taken on the same socket: no call is lost.

It accepts no more connections; the other does. Clients keep connections open between their requests, and one that is
closed may just then be carrying the next. So each further answer says `connection: close`, which a client does not
mistake, and silent connections stay open for a while, for their next request to come.
"""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from mosec_asgi.web.direct import CLOSE

# Seconds in which a silent connection's next request is waited for. Who comes later finds the connection closed, as
# after the time of `keep_alive`.
SILENCE_SECONDS = 0.5
_POLL_SECONDS = 0.02


async def drain(runner: uvicorn.Server) -> None:
    """Answer what has come, and end the program once its clients have gone."""
    for server in runner.servers:
        server.close()
    state = runner.server_state
    last = copy.copy(state)
    last.default_headers = [*state.default_headers, CLOSE]
    asked: set[object] = set()
    loop = asyncio.get_running_loop()
    end = loop.time() + SILENCE_SECONDS
    while state.connections and loop.time() < end:
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
