"""HTTP/1.1 as `run()` speaks it: uvicorn's protocol over httptools, with a short way for requests to models.

A request that `direct` takes never becomes an ASGI scope. What uvicorn does when a message begins is put off until its
head is complete, and is done for all others as if nothing had been.

A client may send its next request before it has its answer (pipelining, RFC 9112, section 9.3.2), and the server runs
them one after the other. When the client leaves, uvicorn tells only the newest of its requests, and the one that runs,
for which a worker is at work, would go on in vain. Here that one is told as well.

A client may ask to go on in another protocol (curl and Java's client ask for HTTP/2 so), and a server may ignore that
(RFC 9110, section 7.8). httptools takes what follows the head for the other protocol all the same, and the body would
be lost: such a request is read again without its wish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from mosec_asgi.web.direct import DirectExchange, DirectRoute
from mosec_asgi.web.responses import Header
from mosec_asgi.web.uvicorn.gathering import GatheringTransport
from mosec_asgi.web.uvicorn.keep_alive import SilenceTimer

INVALID = "Invalid HTTP request received."
# Headers that are about the connection alone, and are not read again.
_OF_UPGRADES = frozenset((b"connection", b"upgrade", b"http2-settings"))


class Http1Protocol(HttpToolsProtocol):
    """A connection.

    An app that has routes for the short way says so by a method `direct_routes`, which returns them by their paths.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        routes = getattr(self.app, "direct_routes", None)
        # Where uvicorn is to count or to log requests, it must see them.
        seen = self.access_log or self.limit_concurrency is not None
        self._routes: Mapping[bytes, DirectRoute] = {} if routes is None or seen else routes()
        # Made with the first request that takes the short way.
        self._exchange: DirectExchange | None = None
        # What answers on the short way take several turns of the loop for.
        self._work: set[asyncio.Task[None]] = set()
        # The newest request is on the short way.
        self._is_direct = False
        # The request of uvicorn's that runs, or was the last to.
        self._running: RequestResponseCycle | None = None
        # The newest request asks for another protocol; it is about to be read again.
        self._asks_for_upgrade = False
        self._silence: SilenceTimer

    # -- a connection's life -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._silence = SilenceTimer(transport, self.timeout_keep_alive, self.loop)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and let the request know that runs."""
        if self._is_direct:
            self.cycle = None  # type: ignore[assignment]  # as before the first request
        super().connection_lost(exc)
        self._silence.stop()
        if self._exchange is not None:
            self._exchange.close()
        for work in self._work:
            work.cancel()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Take in what the client sends."""
        self._silence.end()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._asks_for_upgrade:
                self._read_again(data[upgrade.args[0] :])
            elif self._should_upgrade():
                self.handle_websocket_upgrade()
        except httptools.HttpParserError:
            self.logger.warning(INVALID)
            self.send_400_response(INVALID)

    def _read_again(self, rest: bytes) -> None:
        """Read the newest request again, without its wish for another protocol."""
        self._asks_for_upgrade = False
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        head = [b"%b %b HTTP/%b" % (method, self.url, version)]
        head += [b"%b: %b" % header for header in self.headers if header[0] not in _OF_UPGRADES]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            head.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn's own.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"\r\n".join([*head, b"", rest]))

    # -- from the parser ---------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Take in no more than what the head of a request is collected in."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header; what uvicorn looks for in each is looked for once, in all of them."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Choose the request's way."""
        parser = self.parser
        if parser.should_upgrade() and parser.get_method() != b"CONNECT" and not self._should_upgrade():
            self._asks_for_upgrade = True
            return
        route = self._routes.get(self.url)
        headers = dict(self.headers)
        if route is None or not self._is_usual() or not route.takes(headers):
            self.expect_100_continue = headers.get(b"expect", b"").lower() == b"100-continue"
            self._begin_as_uvicorn()
            return
        exchange = self._exchange
        if exchange is None:
            exchange = self._exchange = DirectExchange(self, route.shared)
        self._is_direct = True
        self.cycle = exchange  # type: ignore[assignment]  # which has what uvicorn asks of one
        exchange.begin(route, headers)

    def _is_usual(self) -> bool:
        """Whether this is a POST that is answered next, and at once, and is not the connection's last."""
        parser = self.parser
        return (
            (self.cycle is None or self.cycle.response_complete)
            and parser.get_method() == b"POST"
            and parser.should_keep_alive()
            and parser.get_http_version() == "1.1"
            and not self.flow.write_paused
        )

    def _begin_as_uvicorn(self) -> None:
        self._is_direct = False
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        # The list that is in the scope.
        self.headers += headers
        super().on_headers_complete()
        exchange = self._exchange
        if exchange is not None and not exchange.response_complete and len(self.pipeline) == 1:
            # It waits behind one on the short way, and uvicorn reads no more until that is answered. But only reading
            # tells that the client has left. A third that comes ends the reading for good.
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """Take in a piece of a request's body."""
        if self._is_direct and self._exchange is not None:
            self._exchange.feed(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Take note of a request's end."""
        if self._asks_for_upgrade:
            return
        if self._is_direct and self._exchange is not None:
            self._exchange.end()
        else:
            super().on_message_complete()

    # -- responses ---------------------------------------------------------------------------------------------------

    def own_headers(self) -> list[Header]:
        """Return the headers that each response has, whatever answers."""
        return self.server_state.default_headers

    def respond(self, head: bytes, body: bytes, *, close: bool) -> None:
        """Send a response, and go on with the next request."""
        transport = self.transport
        if transport.is_closing():
            return
        if isinstance(transport, GatheringTransport):
            transport.write_response(head, body)
        else:
            transport.write(head + body)
        if close:
            transport.close()
        # The usual case of `on_response_complete`.
        if self.pipeline or close or self.flow.read_paused:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._silence.begin()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what takes several turns of the event loop, and drop it when the connection ends."""
        task = self.loop.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for it."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._silence.begin()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)
