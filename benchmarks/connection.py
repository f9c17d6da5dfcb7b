"""A client over bare asyncio streams: HTTP/1.1 on a connection that is kept.

It takes about a fifth of httpx's processor time, which the server under test then has on a machine with few cores, and
it shows what a friendlier client hides: which request was written whole, and how its connection ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass


class Lost(Exception):
    """The connection ended before the answer was whole; the text says how far it came."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        status: of the response.
        headers: by their names in small letters.
        body: all of it; of a stream, all its events.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")


class Connection:
    """One connection, on which one request follows the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, path: str, body: bytes, request_id: str = "") -> Answer:
        """Send a POST request and wait for the whole answer.

        Raises:
            Lost: the connection ended before.
        """
        await self.send(path, body, request_id)
        return await self.receive()

    async def send(self, path: str, body: bytes, request_id: str = "") -> None:
        """Write a POST request; when this returns the operating system has all of it.

        Raises:
            Lost: the connection had ended.
        """
        await self._write(_head(path, body, request_id) + body)

    async def send_part(self, path: str, body: bytes) -> None:
        """Write only the beginning of a POST request, cut anywhere.

        Raises:
            Lost: the connection had ended.
        """
        request = _head(path, body) + body
        await self._write(request[: random.randrange(len(request))])

    async def _write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise Lost(f"while the request was sent: {error}") from error

    async def receive(self) -> Answer:
        """Read the answer to what was sent.

        Raises:
            Lost: the connection ended before its end.
        """
        status, headers = await self._receive_head()
        try:
            body = b"".join([part async for part in self._body(headers)])
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Lost(f"in the body of the answer: {error}") from error
        return Answer(status, headers, body)

    async def receive_parts(self) -> AsyncIterator[bytes]:
        """Yield the body of the answer to what was sent as it comes, chunk by chunk.

        Raises:
            Lost: the connection ended before its end, or the answer is an error.
        """
        status, headers = await self._receive_head()
        if status != 200:
            raise Lost(f"the answer is an error, {status}")
        try:
            async for part in self._body(headers):
                yield part
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Lost(f"in the body of the answer: {error}") from error

    async def _receive_head(self) -> tuple[int, dict[str, str]]:
        try:
            status_line, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except asyncio.IncompleteReadError as error:
            raise Lost(f"{len(error.partial)} bytes into the head of the answer") from error
        except OSError as error:
            raise Lost(f"before the answer: {error}") from error
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        return int(status_line.split(" ")[1]), headers

    async def _body(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        if headers.get("transfer-encoding") != "chunked":
            yield await self._reader.readexactly(int(headers["content-length"]))
            return
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)

    async def close(self) -> None:
        """End the connection, whatever is under way on it."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def _head(path: str, body: bytes, request_id: str = "") -> bytes:
    name = f"x-request-id: {request_id}\r\n" if request_id else ""
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{name}content-length: {len(body)}\r\n\r\n".encode()


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """Connect to a port of this machine for the time of a block.

    Raises:
        Lost: nobody listens there.
    """
    try:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", port))
    except OSError as error:
        raise Lost(f"no connection: {error}") from error
    try:
        yield connection
    finally:
        await connection.close()
