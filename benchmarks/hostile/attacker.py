"""An attack in a process of its own: `python -m hostile.attacker <attack> <port> <seconds>`.

It says "ready" once all is prepared, waits for a line, attacks, and prints what it did and saw as a line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

# Seconds in which something that has to come is awaited.
PATIENCE = 10.0


@dataclass(slots=True)
class Wire:
    """A connection, for bytes as they are."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Write bytes, as fast as they are taken.

        Raises:
            OSError: the connection has ended.
        """
        self.writer.write(data)
        await self.writer.drain()

    async def status(self, seconds: float = PATIENCE) -> int:
        """Read a whole answer and return its status; 0 where the connection ends without one.

        Raises:
            TimeoutError: none came in time.
        """
        return await asyncio.wait_for(self._status(), seconds)

    async def _status(self) -> int:
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return 0
        return int(head.split(" ", 2)[1])

    async def ended(self, seconds: float = PATIENCE) -> bool:
        """Read until the other side ends the connection; whether it does in time."""
        try:
            await asyncio.wait_for(self._read_all(), seconds)
        except (TimeoutError, asyncio.TimeoutError):
            return False
        return True

    async def _read_all(self) -> None:
        with contextlib.suppress(OSError):
            while await self.reader.read(1 << 16):
                pass


@dataclass
class Assault:
    """An attack that runs.

    Attributes:
        port: where the service listens.
        until: when to end, by the monotonic clock.
        done: what was done, and how often.
        problems: what came of it and should not have, and how often.
    """

    port: int
    until: float
    done: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)

    @property
    def goes_on(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self.until

    async def repeat(self, clients: int, pause: float, act: Callable[[], Awaitable[str]]) -> None:
        """Have clients act again and again, each with a pause between; count what they say that came of it."""

        async def client(number: int) -> None:
            await asyncio.sleep(pause * number / clients)
            while self.goes_on:
                try:
                    self.done[await act()] += 1
                except (TimeoutError, asyncio.TimeoutError):
                    self.problems["no answer came"] += 1
                except OSError:
                    self.done["connection ended"] += 1
                await asyncio.sleep(pause)

        await asyncio.gather(*map(client, range(clients)))

    @contextlib.asynccontextmanager
    async def wire(self, *, deaf: bool = False) -> AsyncIterator[Wire]:
        """Connect for the time of a block.

        Args:
            deaf: take as little as can be of what comes before it is asked for.
        """
        sock = socket.socket()
        sock.setblocking(False)
        if deaf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=1024 if deaf else 1 << 16)
        if deaf:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
        try:
            yield Wire(reader, writer)
        finally:
            writer.transport.abort()

    async def ask(self, request: bytes, allowed: set[int]) -> str:
        """Send a request on a connection of its own; its answer must come, and be one of those."""
        async with self.wire() as wire:
            with contextlib.suppress(OSError):
                await wire.send(request)
            status = await wire.status()
        self.check(status, allowed)
        return str(status)

    def check(self, status: int, allowed: set[int]) -> None:
        """Make a note of an answer that should not be; 0 stands for none."""
        if status not in allowed:
            self.problems[f"answered {status}, not {sorted(allowed)}"] += 1


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Return a POST request.

    Args:
        path: where to.
        body: what is sent of the body.
        headers: further ones.
        length: what is said of its length; None for the truth.
    """
    lines = [f"POST {path} HTTP/1.1", "host: a", f"content-length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def main() -> None:
    """Run the attack that the command line names."""
    from hostile.attacks import ATTACKS

    name, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    (attack,) = (attack for attack in ATTACKS if attack.name == name)
    print("ready", flush=True)
    sys.stdin.readline()
    assault = Assault(port, time.monotonic() + seconds)
    asyncio.run(attack.run(assault))
    print(json.dumps({"done": assault.done, "problems": assault.problems}), flush=True)


if __name__ == "__main__":
    main()
