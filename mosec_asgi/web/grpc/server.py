"""The server of gRPC, on a port of its own: the calls of one service, each of them an endpoint of a protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import grpc

from mosec_asgi import log
from mosec_asgi.errors import Failure, StartupError
from mosec_asgi.messages import OK
from mosec_asgi.web.budget import SMALL
from mosec_asgi.web.exchange import Route, Shared
from mosec_asgi.web.grpc.arrivals import SLOWEST, Arrivals, GivenUp
from mosec_asgi.web.grpc.exchange import Context, GrpcExchange, code_of, headers_in, headers_of
from mosec_asgi.web.grpc.streams import RequestStream
from mosec_asgi.web.grpc.unread import Unread
from mosec_asgi.web.protocols.seam import Endpoint, Listener

# Calls of one connection that run at one time, and all metadata of a call: what a client may hold.
MOST_OF_A_CONNECTION = 256
MOST_METADATA = 64 * 1024
# Milliseconds: between two looks at whether a silent client is still there, for its answer, and of a connection on
# which nothing runs. Clients connect again by themselves.
LOOK_AFTER, ANSWER_WITHIN, IDLE = 60_000, 20_000, 600_000
# Bytes of a message that are taken before it is read.
AHEAD = 64 * 1024
CLOSING = "the service is shutting down"

logger = log.internal_logger(__name__)


class GrpcListener(Listener):
    """Serves endpoints by gRPC: the path of each is `/package.Service/Method`, a body is a message.

    Attributes:
        endpoints: all of them.
        port: that it listens on, once it does.
    """

    def __init__(self, endpoints: Sequence[Endpoint], streams: Sequence[str], host: str, port: int) -> None:
        """Serve nothing yet.

        Args:
            endpoints: to serve.
            streams: the paths of those that take many requests in one call.
            host: address to listen on.
            port: to listen on; 0 for any that is free.
        """
        self.endpoints = endpoints
        self.port = port
        self._streams = frozenset(streams)
        self._host = host
        self._shared: Shared
        self._arrivals: Arrivals
        self._unread: Unread
        self._server: grpc.aio.Server | None = None
        self._open: set[RequestStream] = set()

    async def start(self, routes: Sequence[Route], shared: Shared) -> None:
        """Listen; see `Listener.start`."""
        self._shared = shared
        limits = shared.limits
        # A message may be as large as `limit`, and have so many bytes a second to come.
        self._arrivals = Arrivals(shared.budget.limit // shared.limit, limits.read_timeout + shared.limit / SLOWEST)
        self._unread = Unread(limits)
        server = grpc.aio.server(
            handlers=[_Handlers({route.path: self._handler(route) for route in routes}, shared)],
            options=[
                # Else a second service would share the port, and each get a part of the calls.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", shared.limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", MOST_OF_A_CONNECTION),
                # Else megabytes of each call, whatever the speed of the connection suggests.
                ("grpc.http2.lookahead_bytes", AHEAD),
                ("grpc.http2.bdp_probe", 0),
                ("grpc.max_metadata_size", MOST_METADATA),
                ("grpc.keepalive_time_ms", LOOK_AFTER),
                ("grpc.keepalive_timeout_ms", ANSWER_WITHIN),
                ("grpc.max_connection_idle_ms", IDLE),
            ],
        )
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            self.port = server.add_insecure_port(f"{host}:{self.port}")
        except RuntimeError as error:
            raise StartupError(
                f"gRPC cannot listen on {host}:{self.port}: the port is taken, or not allowed; choose another grpc_port"
            ) from error
        self._server = server
        await server.start()
        logger.info("gRPC listens on %s:%d", host, self.port)

    async def stop(self, grace: float) -> None:
        """Take no more calls, and let those that run finish; see `Listener.stop`."""
        server, self._server = self._server, None
        if server is None:
            return
        for stream in self._open:
            stream.close(CLOSING)
        await server.stop(grace)
        self._arrivals.stop()
        self._unread.ration.say_all()

    def _handler(self, route: Route) -> grpc.RpcMethodHandler:
        # Messages stay bytes: endpoints read and write them.
        if route.path in self._streams:

            async def stream(_: Any, context: Context) -> None:
                await self._stream(route, context)

            return grpc.stream_stream_rpc_method_handler(stream)

        async def unary(_: Any, context: Context) -> bytes:
            return await self._unary(route, context)

        # To a client it is a call of one message. Of such a one gRPC would read as many messages as there are calls,
        # and wait for each without an end.
        return grpc.stream_unary_rpc_method_handler(unary)

    async def _unary(self, route: Route, context: Context) -> bytes:
        try:
            body = await self._arrivals.only(context.read())
        except GivenUp:
            self._shared.metrics.answered(route.path, HTTPStatus.REQUEST_TIMEOUT)
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the message was too long on its way")
        if body is grpc.aio.EOF:
            self._shared.metrics.answered(route.path, HTTPStatus.BAD_REQUEST)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        exchange = GrpcExchange(route, self._shared, headers_of(context), body)
        response = await exchange.respond()
        assert response is not None
        told = [("x-request-id", exchange.request_id)]
        told += [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers]
        context.set_trailing_metadata(told)
        if response.status != OK:
            await context.abort(code_of(response.status), response.body.decode(errors="replace"))
        if (size := len(response.body)) > SMALL:
            connection = self._unread.made(context.peer(), size)
            connection.sends()
            context.add_done_callback(lambda _: connection.took(size))
        return response.body

    async def _stream(self, route: Route, context: Context) -> None:
        stream = RequestStream(route, self._shared, context, self._arrivals, self._unread)
        if self._server is None:
            stream.close(CLOSING)
        self._open.add(stream)
        try:
            why = await stream.serve()
        finally:
            self._open.discard(stream)
        if why:
            await context.abort(grpc.StatusCode.UNAVAILABLE, why)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds what serves a call."""

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler], shared: Shared) -> None:
        self._handlers = handlers
        self._keys = shared.keys
        self._metrics = shared.metrics

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return it; None where there is none, which is answered UNIMPLEMENTED.

        A call without an API key, where there are keys, is answered before any of its messages is read.
        """
        if self._keys is not None:
            failure = self._keys.refusal(headers_in(details.invocation_metadata), details.method)
            if failure is not None:
                if details.method in self._handlers:
                    self._metrics.answered(details.method, failure.code)
                return _refusing(failure)
        return self._handlers.get(details.method)


def _refusing(failure: Failure) -> grpc.RpcMethodHandler:
    async def refuse(_: Any, context: Context) -> None:
        await context.abort(code_of(failure.code), failure.text)

    # That of streams, for whatever kind of call: it asks for no message.
    return grpc.stream_stream_rpc_method_handler(refuse)
