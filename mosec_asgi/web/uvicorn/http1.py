"""HTTP/1.1 as `run()` speaks it: uvicorn's protocol over httptools, with a short way for requests to models.

A request that `direct` takes never becomes an ASGI scope. uvicorn's work at the beginning of a message is put off until
its head is complete, and is then done for all other requests. Beyond that:

- **Leaving.** A client may send its next request before it has its answer (pipelining, RFC 9112, section 9.3.2), and
  the server runs them one after the other. When the client leaves, uvicorn tells only the newest of its requests; here
  the one that runs is told as well. A client that has only ended its sending still gets its answers: `eof_received`.
- **Other protocols.** A client may ask to go on in another protocol (curl and Java's client ask for HTTP/2 so), and a
  server may ignore that (RFC 9110, section 7.8). httptools still takes the body for the other protocol, and it would be
  lost. So such a request is parsed again without the headers that ask for the other protocol.
- **Refusing.** A request that cannot be read (not HTTP, too large a head, too slow a sender) is refused once all
  earlier requests are answered, and nothing more is read.
- **Closing.** An answer to a request that has not been read to its end must not be lost: see `ending`.
- **Bounds.** Heads, URLs, the time to arrive, the time that an answer may lie unread, and requests that wait
  (`limits`, `slow_clients`). A read that brings many requests is taken in pieces, and the rest waits for the answers,
  or for the loop's next turn.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, cast

import httptools
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from mosec_asgi.errors import (
    BAD_REQUEST,
    CLOSING,
    NO_ROOM,
    TOO_SLOW,
    Failure,
    head_too_large,
    too_many_headers,
    url_too_long,
)
from mosec_asgi.ipc.arena import LARGE
from mosec_asgi.web.budget import SMALL
from mosec_asgi.web.direct import CLOSE, DirectExchange, DirectRoute, DirectRoutes
from mosec_asgi.web.known_heads import END, MAX_HEAD_SIZE
from mosec_asgi.web.limits import DEFAULT, Limits
from mosec_asgi.web.protocols import plain
from mosec_asgi.web.responses import Header, head_of, headers_of
from mosec_asgi.web.uvicorn.ending import HalfClosed, Lingering
from mosec_asgi.web.uvicorn.gathering import GatheringTransport
from mosec_asgi.web.uvicorn.http10 import UntilClose
from mosec_asgi.web.uvicorn.keep_alive import SilenceTimer
from mosec_asgi.web.uvicorn.shared import Shared
from mosec_asgi.web.uvicorn.slow_clients import Arrival, Unread

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

# Headers about the connection alone, which are left out when a request is parsed again.
_OF_UPGRADES = frozenset((b"connection", b"upgrade", b"http2-settings"))
# A read of up to so many bytes, at most some hundred requests, is given to the parser whole.
PIECE = 4096
# The most headers of a request. Each takes 160 bytes, however small it is: a head of nothing but tiny ones would take
# twenty times its size.
MOST_HEADERS = 1000
# Seconds after which the rest of a read waits for the loop's next turn: one of 256 KiB may be 40,000 chunks of a byte.
TURN_SECONDS = 0.002
# Seconds for which a service that stops drops what still comes behind an answer: that of a request, and the 503 to a
# head which has not come whole, for which the stop takes no longer than for a connection without a request.
ANSWER_SECONDS, HEAD_SECONDS = 0.5, 0.05
# The part of a request that is awaited.
NOTHING, HEAD, BODY = range(3)
NO_ROUTES = DirectRoutes()


class _Trailers(list["tuple[bytes, bytes]"]):
    """What stands behind a body, and is kept nowhere."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        """Drop one."""


class Refused(Exception):
    """Raised in the parser's callbacks to stop it: the connection's next request is refused with `failure`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class Http1Protocol(HttpToolsProtocol):
    """A connection.

    If the app has a method `direct_routes`, it returns, by path, the routes whose requests may take the short way.

    Attributes:
        limits: of what its client may use.
        shared: what it has in common with the other connections of the service.
    """

    limits: ClassVar[Limits] = DEFAULT
    shared: ClassVar[Shared] = Shared(DEFAULT)

    # Slots, since with uvicorn's there would be more than the 30 attributes up to which Python looks them up quickly: a
    # request took 0.3 µs more.
    __slots__ = (
        "_arrival",
        "_asks_for_upgrade",
        "_awaits",
        "_body_came",
        "_bodyless",
        "_exchange",
        "_feeding_again",
        "_half_closed",
        "_head_size",
        "_is_direct",
        "_known",
        "_left",
        "_linger_seconds",
        "_lingering",
        "_newest",
        "_refusal",
        "_routes",
        "_running",
        "_sets_aside",
        "_silence",
        "_unfed",
        "_unread",
        "_work",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        routes = getattr(self.app, "direct_routes", None)
        # uvicorn must see the requests if it has to count or to log them.
        seen = self.access_log or self.limit_concurrency is not None
        self._routes: DirectRoutes = (None if routes is None or seen else routes()) or NO_ROUTES
        self._known = self._routes.known.heads
        # Made with the first request that takes the short way.
        self._exchange: DirectExchange | None = None
        # Work for answers on the short way that takes several turns of the loop.
        self._work: set[asyncio.Task[None]] = set()
        # The newest request is on the short way.
        self._is_direct = False
        # Its route, if its head has come with this read.
        self._newest: DirectRoute | None = None
        # The request in uvicorn's own way that runs, or the last one that did.
        self._running: RequestResponseCycle | None = None
        # The newest request asks for another protocol; it is about to be parsed again.
        self._asks_for_upgrade = False
        # The part of the newest request that is awaited: nothing, the rest of its head, or the rest of its body.
        self._awaits = NOTHING
        # Bytes that are still to come of the newest request's body, where its head was known: the parser sees neither.
        self._left = 0
        # The bytes so far of a head that has not come with one read.
        self._head_size = 0
        # Data that comes is not given to the parser: it must wait for its turn, or nobody wants it any more.
        self._sets_aside = False
        # Data that was read and not yet given to the parser.
        self._unfed = b""
        self._feeding_again = False
        # The failure to send once all earlier requests are answered; nothing more is read.
        self._refusal: Failure | None = None
        # An answer was sent and the connection will be closed; data that comes is dropped.
        self._lingering: Lingering | None = None
        # The most seconds of that, once the service stops.
        self._linger_seconds = 0.0
        # The client has ended its sending.
        self._half_closed: HalfClosed | None = None
        # Something of the newest request's body has come with this read; else bytes since then that brought nothing of
        # it: trailers, extensions of chunks.
        self._body_came = False
        self._bodyless = 0
        self._arrival: Arrival | None = None
        self._unread: Unread | None = None
        self._silence: SilenceTimer

    # -- a connection's life -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._silence = SilenceTimer(transport, self.limits.keep_alive, self.loop)
        self.logger = self.shared.logger  # type: ignore[assignment]  # as it is used
        super().connection_made(transport)
        self.flow = _Flow(transport)
        if isinstance(transport, GatheringTransport):
            transport.on_close = self._closes_late
        # The first request may take as long as the next.
        self._silence.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and tell the request that runs."""
        if self._is_direct:
            self.cycle = None  # type: ignore[assignment]  # as before the first request
        super().connection_lost(exc)
        self._silence.stop()
        if self._exchange is not None:
            self._exchange.close()
        for work in self._work:
            work.cancel()
        for waiting in (self._arrival, self._unread, self._lingering, self._half_closed):
            if waiting is not None:
                waiting.stop()
        # They have this connection: none must wait for the garbage collector.
        self._arrival = self._unread = self._lingering = self._half_closed = None
        if isinstance(self.transport, GatheringTransport):
            self.transport.lost()
        self._unfed = b""
        # Requests that wait for their turn are dropped.
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Take in what the client sends."""
        self._silence.end()
        if self._sets_aside:
            self._set_aside(data)
            return
        at_beginning = not self._awaits
        if at_beginning and self._take_known(data):
            return
        if self._left:
            self._take_more(data)
            return
        self._newest = None
        if len(data) > PIECE:
            self._feed_pieces(data)
        elif self._awaits == HEAD:
            self._feed(data)
        else:
            # The usual case of `_feed`.
            try:
                self.parser.feed_data(data)
            except (httptools.HttpParserUpgrade, httptools.HttpParserError) as error:
                self._parser_stopped(data, error)
        if at_beginning and self._newest is not None and self._awaits != HEAD:
            self._learn(self._newest, data)
        if self._awaits or self._arrival is not None:
            self._look_at_arrival(len(data))

    def _take_known(self, data: bytes) -> bool:
        """Take a request whose head has come before, and which has come whole, or is large; whether it is one."""
        end = data.find(END, 0, MAX_HEAD_SIZE) + len(END)
        known = self._known.get(data[:end])
        if known is None:
            return False
        route, headers, size = known
        exchange = self._exchange
        came = len(data) - end
        if (
            (came != size and (came > size or size < LARGE))
            or exchange is None
            or not (self.cycle is None or self.cycle.response_complete)
            or self.flow.write_paused
            or (size > SMALL and not route.shared.budget.has_room(size))
        ):
            return False
        self._is_direct = True
        self.cycle = exchange  # type: ignore[assignment]  # as in `on_headers_complete`
        exchange.begin(route, headers)
        # Without a copy where the engine makes one.
        exchange.feed(memoryview(data)[end:] if size >= LARGE and route.takes_pieces else data[end:])
        if came == size:
            exchange.end()
        else:
            self._left = size - came
            self._awaits = BODY
            self._look_at_arrival(len(data))
        return True

    def _take_more(self, data: bytes) -> None:
        """Take more of the body of a request whose head was known, and what comes behind it."""
        exchange, left = self._exchange, self._left
        assert exchange is not None
        piece, rest = (data, b"") if len(data) <= left else (data[:left], data[left:])
        exchange.feed(piece)
        self._left = left - len(piece)
        if not self._left:
            self._awaits = NOTHING
            exchange.end()
        self._look_at_arrival(len(piece))
        if rest:
            self.data_received(rest)

    def _learn(self, route: DirectRoute, data: bytes) -> None:
        """Keep the head of a request, if a read has brought that and its body, or a part of a large one, alone."""
        end = data.find(END, 0, MAX_HEAD_SIZE) + len(END)
        exchange = self._exchange
        if end >= len(END) and exchange is not None:
            size = int(exchange.headers[b"content-length"])
            came = len(data) - end
            # All that came is of this body, so the head is its own, and not that of a request before it. Where the body
            # has not come whole, its size tells nothing: another head and a part of the body may be as long.
            if came == size if not self._awaits else size >= LARGE and came == size - exchange.body_left:
                self._routes.known.learn(data[:end], route, exchange.headers, size)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Take note that the client sends no more: it may be gone, or wait for its answers.

        No system call tells which. But every answer begins with the same bytes. So these are sent, and the kernel of a
        client that is gone answers them by a reset. The request runs until the reset comes, or to its end if none
        comes.

        Returns:
            keep the connection.
        """
        if self._lingering or not self._waits_for_answer() or not isinstance(self.transport, GatheringTransport):
            return False
        self._silence.stop()
        self.cycle.keep_alive = False
        running = self._running
        begun = running is not None and running.response_started and not running.response_complete
        if not begun:
            self.transport.begin_answer(b"HTTP/1.1 ")
        self._half_closed = HalfClosed(self.transport, self.loop)
        return True

    def pause_writing(self) -> None:
        """Stop sending, and close the connection if its client reads nothing for too long."""
        super().pause_writing()
        if self._unread is None:
            self._unread = Unread(self, self._is_not_read)
        self._unread.begin()

    def resume_writing(self) -> None:
        """Go on sending: all that was written has been taken."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.end()
        cycle = self._running
        if self.pipeline and (cycle is None or cycle.response_complete) and not self.transport.is_closing():
            self._start_asgi_task(*self.pipeline.pop())

    def shutdown(self) -> None:
        """Answer the requests that have come, and close; of one whose head has not come whole nothing is waited for."""
        if self._lingering:
            self._lingering.hurry(ANSWER_SECONDS)
        elif self._awaits == HEAD and (self.cycle is None or self.cycle.response_complete):
            self._linger_seconds = HEAD_SECONDS
            self._send_refusal(CLOSING)
        else:
            self._linger_seconds = ANSWER_SECONDS
            super().shutdown()

    # -- from the socket to the parser -------------------------------------------------------------------------------

    def _feed(self, data: bytes | memoryview) -> None:
        """Give data to the parser."""
        was_in_head = self._awaits == HEAD
        if was_in_head:
            self._head_size += len(data)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserUpgrade, httptools.HttpParserError) as error:
            self._parser_stopped(data, error)
        if self._awaits == HEAD:
            if self._head_size > self.limits.max_head_size:
                self._refuse(head_too_large(self.limits.max_head_size))
            elif len(self.headers) > MOST_HEADERS:
                self._refuse(too_many_headers(MOST_HEADERS))

    def _parser_stopped(self, data: bytes | memoryview, error: Exception) -> None:
        """Go on after the parser has stopped, or refuse what it cannot read.

        A loop: a read may hold many requests that ask for another protocol.
        """
        rest = data
        while isinstance(error, httptools.HttpParserUpgrade):
            if not self._asks_for_upgrade:
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                return
            rest = self._without_wish(bytes(rest[error.args[0] :]))
            try:
                self.parser.feed_data(rest)
            except (httptools.HttpParserUpgrade, httptools.HttpParserError) as another:
                error = another
            else:
                return
        cause = error.__context__
        self._refuse(cause.failure if isinstance(cause, Refused) else BAD_REQUEST)

    def _feed_pieces(self, data: bytes) -> None:
        """Give the parser a large read in pieces: a body whole, and not too many requests at a time."""
        view, at, begun, left = memoryview(data), 0, 0, 0
        if self._awaits == BODY and self._is_direct and self._exchange is not None:
            left = self._exchange.body_left
        began = time.perf_counter()
        while at < len(data) and self._refusal is None and not self._lingering:
            # The newest of those that wait may have come in part.
            most = self.limits.pipelined
            if len(self.pipeline) >= most or (begun >= most and not self._awaits):
                self._wait_to_feed(data[at:])
                return
            size = left or PIECE
            if not self._awaits:
                # The head alone, so that its body can be taken whole.
                begun += 1
                head = data.find(b"\r\n\r\n", at, at + PIECE)
                size = PIECE if head < 0 else head + 4 - at
            piece = view[at : at + size]
            at += len(piece)
            was_in_body = self._awaits == BODY
            self._feed(piece)
            left = 0 if was_in_body or self._awaits != BODY or self._refusal is not None else self._declared()
            if not left and at < len(data) and not self._refusal and time.perf_counter() - began > TURN_SECONDS:
                self._wait_to_feed(data[at:])
                return

    def _declared(self) -> int:
        """Return the bytes of the newest request's body, of which nothing has come; 0 where they are not declared."""
        exchange = self._exchange
        headers = exchange.headers if self._is_direct and exchange else dict(self.cycle.scope["headers"])
        length = headers.get(b"content-length", b"")
        return int(length) if length.isdigit() and len(length) < 20 else 0

    def _wait_to_feed(self, rest: bytes) -> None:
        """Let the rest of a read wait: for answers if many requests wait for theirs, else for the loop's next turn."""
        self._unfed = rest
        self._sets_aside = True
        self.flow.pause_reading()
        self._hold_reading(True)
        if len(self.pipeline) < self.limits.pipelined:
            self._feed_again_soon()

    def _hold_reading(self, held: bool) -> None:
        if isinstance(self.flow, _Flow):
            self.flow.held = held

    def _feed_again_soon(self) -> None:
        if not self._feeding_again:
            self._feeding_again = True
            self.loop.call_soon(self._feed_again)

    def _feed_again(self) -> None:
        self._feeding_again = False
        rest, self._unfed = self._unfed, b""
        if not rest or self.transport.is_closing():
            return
        self._sets_aside = False
        self._hold_reading(False)
        self._feed_pieces(rest)
        if self._awaits or self._arrival is not None:
            self._look_at_arrival(0)
        if not self._unfed and not self.pipeline:
            self.flow.resume_reading()

    def _set_aside(self, data: bytes) -> None:
        """Take data that is not for the parser: nobody wants it any more, or it must wait for its turn."""
        if self._lingering:
            self._lingering.heard()
        elif self._unfed and self._refusal is None:
            self._unfed += data

    def _without_wish(self, rest: bytes) -> bytes:
        """Return the newest request's head without its wish for another protocol, and the data behind it."""
        self._asks_for_upgrade = False
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        head = [b"%b %b HTTP/%b" % (method, self.url, version)]
        head += [b"%b: %b" % header for header in self.headers if header[0] not in _OF_UPGRADES]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            head.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        # As in uvicorn.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join([*head, b"", rest])

    # -- from the parser ---------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Prepare only the objects in which the head of a request is collected."""
        self.url = b""
        self.headers = []
        self._awaits = HEAD

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header; what uvicorn looks for in each header is looked for once, when all have come."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Choose the request's way."""
        # Before anything is said of its body: one that is refused here is not the newest request yet. A head that came
        # with the first piece of a read is small.
        if self._head_size:
            self._check_head()
        if len(self.url) > self.limits.max_url_size:
            raise Refused(url_too_long(self.limits.max_url_size))
        self._awaits = BODY
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
        self._newest = route
        self.cycle = exchange  # type: ignore[assignment]  # which has what uvicorn asks of one
        exchange.begin(route, headers)

    def _check_head(self) -> None:
        """Refuse a request whose head has come whole, and is too large or has too many headers."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        self._head_size = 0
        if size > self.limits.max_head_size:
            raise Refused(head_too_large(self.limits.max_head_size))
        if len(self.headers) > MOST_HEADERS:
            raise Refused(too_many_headers(MOST_HEADERS))

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
        if not self.parser.should_upgrade():
            # Behind a body come trailers, which are no headers of the request (RFC 9110, section 6.5.1).
            self.headers = _Trailers()
        exchange = self._exchange
        if exchange is not None and not exchange.response_complete and len(self.pipeline) == 1:
            # The request waits behind one on the short way, and uvicorn would stop reading until that one is answered.
            # But only reading shows that the client has left. A third request stops the reading for good.
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """Take in a piece of a request's body."""
        if self._is_direct and self._exchange is not None:
            self._exchange.feed(body)
        else:
            self._body_came = True
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Take note of a request's end."""
        if self._asks_for_upgrade:
            return
        self._awaits = NOTHING
        if self._is_direct and self._exchange is not None:
            self._exchange.end()
        else:
            super().on_message_complete()

    # -- responses ---------------------------------------------------------------------------------------------------

    def own_headers(self) -> list[Header]:
        """Return the headers that each response of the connection has."""
        return self.server_state.default_headers

    def respond(self, head: bytes, body: bytes | memoryview, *, close: bool) -> None:
        """Send a response, and go on with the next request; of a `memoryview` nothing is kept."""
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
        if close or self.pipeline or self._awaits or self.flow.read_paused:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._silence.begin()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work that takes several turns of the event loop, and drop it when the connection ends."""
        task = self.loop.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for it."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self._unfed and len(self.pipeline) <= self.limits.pipelined // 2:
            self._feed_again_soon()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal is not None:
            self._send_refusal(self._refusal)
        elif self._half_closed:
            self.transport.close()
        elif not self._unfed and not self._awaits:
            self._silence.begin()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self.flow.write_paused:
            # The answer before it is still unread. Its own would wait beside that, where nobody counts it.
            self.pipeline.append((cycle, app))
            return
        self._running = cycle
        if cycle.scope["http_version"] == "1.0":
            app = UntilClose(cast(ASGIApp, app), cycle)  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    # -- refusing, and closing ---------------------------------------------------------------------------------------

    def _waits_for_answer(self) -> bool:
        """Whether any request that has come whole waits for its answer."""
        newest = self.cycle is not None and not self.cycle.response_complete
        return bool(self.pipeline) or (newest and not self._awaits)

    def _refuse(self, failure: Failure) -> None:
        """Read no more, and send the client the failure once its earlier requests are answered."""
        if self._refusal is not None or self._lingering or self.transport.is_closing():
            return
        self.shared.ration.log(logging.WARNING, "a request is refused: %s", failure.text)
        self._refusal, self._unfed, self._sets_aside = failure, b"", True
        self._stop_arrival()
        reading = self.cycle if self._awaits == BODY else None
        if reading is not None and not reading.response_complete:
            self._drop_unread(reading)
        elif self.pipeline or (self.cycle is not None and not self.cycle.response_complete):
            return
        else:
            self._send_refusal(failure)

    def _drop_unread(self, cycle: RequestResponseCycle) -> None:
        """Refuse the newest request, of which a part has come."""
        assert self._refusal is not None
        if self._is_direct and self._exchange is not None:
            self._exchange.drop(self._refusal)
            return
        waiting = [entry for entry in self.pipeline if entry[0] is not cycle]
        if len(waiting) < len(self.pipeline):
            self.pipeline.clear()
            self.pipeline.extend(waiting)
            return
        # The request runs: the app is told that its client has left.
        begun = cycle.response_started
        cycle.disconnected = True
        cycle.message_event.set()
        if begun:
            self.transport.close()
        else:
            self._send_refusal(self._refusal)

    def _send_refusal(self, failure: Failure) -> None:
        response = plain.failed(failure)
        own = self.own_headers()
        headers = [*own, *headers_of(response, [] if CLOSE in own else [CLOSE])]
        self.transport.write(head_of(response.status, headers) + response.body)
        self.transport.close()

    def _closes_late(self) -> bool:
        """Close later if the client still sends; see `limits.LINGER_SECONDS`.

        Returns:
            this object closes the transport later.
        """
        if self._lingering:
            return True
        if self._half_closed or not (self._awaits or self._refusal is not None or self._unfed):
            return False
        self._sets_aside = True
        self._silence.stop()
        self._stop_arrival()
        self._unfed = b""
        self._hold_reading(False)
        self.flow.resume_reading()
        self._lingering = Lingering(self.loop, self._end_lingering)
        if self._linger_seconds:
            self._lingering.hurry(self._linger_seconds)
        return True

    def _end_lingering(self) -> None:
        if isinstance(self.transport, GatheringTransport):
            self.transport.end()

    # -- clients that are slow ---------------------------------------------------------------------------------------

    def _look_at_arrival(self, size: int) -> None:
        """Watch the arrival of a request that has not come whole with its first read."""
        if not self._awaits:
            self._stop_arrival()
            return
        in_head = self._awaits == HEAD
        if self._is_direct and not in_head and self._exchange is not None and not self._exchange.hold_body():
            self._refuse(NO_ROOM)
            return
        brought = self._is_direct or self._body_came
        self._body_came = False
        if self._arrival is None or self._arrival.in_head != in_head:
            self._stop_arrival()
            self._arrival = Arrival(self, self._arrival_is_over, in_head=in_head)
            self._bodyless = 0
        elif in_head:
            # Nothing but its end gives a head more time; its size has a bound of its own.
            return
        elif brought:
            self._bodyless = 0
            self._arrival.brought(size)
        else:
            self._bodyless += size
            if self._bodyless > self.limits.max_head_size:
                self._refuse(head_too_large(self.limits.max_head_size))

    def _stop_arrival(self) -> None:
        if self._arrival is not None:
            self._arrival.stop()
            self._arrival = None

    def _arrival_is_over(self) -> None:
        """Give up on a request that does not arrive."""
        self._arrival = None
        if self.cycle is not None and self.cycle.response_complete and self._awaits == BODY:
            # The request has its answer, and the rest of it is of no use.
            self.transport.abort()
        else:
            self._refuse(TOO_SLOW)

    def _is_not_read(self, reason: str) -> None:
        self.shared.ration.log(logging.WARNING, reason)
        self.transport.abort()


class _Flow(FlowControl):
    """uvicorn's flow control, which does not resume reading while data that was read waits.

    Attributes:
        held: data waits.
    """

    held = False

    def resume_reading(self) -> None:
        """Go on reading."""
        if not self.held:
            super().resume_reading()
