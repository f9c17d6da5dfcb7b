"""Every response belongs to its request: bodies of all sizes, over many connections, through three stages."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import signal
import textwrap
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import Program, python, running, written

PROGRAM = """
    from mosec_asgi import Server
    from workers import Cut, Digest, Join

    if __name__ == "__main__":
        server = Server(timeout=60_000)
        server.append_worker(Cut, num={replicas})
        server.append_worker(Digest, num={replicas}, max_batch_size=16, max_wait_time=5)
        server.append_worker(Join, num={replicas})
        server.run()
"""
CONNECTIONS = 64
STAGES = ("Cut_1", "Digest_2", "Join_3")
SMALL, LARGE = 20_000, 5_000_000
# One in so many bodies is larger than SMALL.
RARE = 20


def bodies(count: int, seed: int) -> list[bytes]:
    """Return bodies from 1 byte to 5 MB, each beginning with its number as far as it is long enough."""
    rng = random.Random(seed)
    noise = rng.randbytes(LARGE)
    sizes = [1, 2, 3, 65_535, 65_536, 65_537, LARGE]
    while len(sizes) < count:
        low, high = (SMALL, LARGE) if rng.randrange(RARE) == 0 else (1, SMALL)
        # Log-uniform: as many between 10 and 100 bytes as between 1 and 10 kB.
        sizes.append(int(low * (high / low) ** rng.random()))
    rng.shuffle(sizes)
    return [(b"%015d " % number + noise[rng.randrange(1000) :])[:size] for number, size in enumerate(sizes)]


def answer_to(body: bytes) -> bytes:
    return body[:16] + b" " + hashlib.sha256(body).hexdigest().encode()


class Connection:
    """A kept HTTP connection, with as little around it as can be: the client shares two cores with the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def post(self, body: bytes, request_id: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer."""
        self._writer.write(
            b"POST /inference HTTP/1.1\r\nhost: test\r\nx-request-id: %s\r\ncontent-length: %d\r\n\r\n"
            % (request_id.encode(), len(body))
        )
        self._writer.write(body)
        await self._writer.drain()
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        return int(status.split()[1]), headers, await self._reader.readexactly(int(headers["content-length"]))

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def ask_all(
    port: int, requests: list[bytes], check: Callable[[int, tuple[int, dict[str, str], bytes]], None]
) -> None:
    """Send all requests over `CONNECTIONS` connections, and check each answer with the number of its request."""
    numbers = iter(range(len(requests)))

    async def one_connection() -> None:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", port))
        for number in numbers:
            check(number, await connection.post(requests[number], f"request-{number}"))
        await connection.close()

    connections: list[Awaitable[None]] = [one_connection() for _ in range(CONNECTIONS)]
    await asyncio.wait_for(asyncio.gather(*connections), 120)


@contextmanager
def serving(folder: Path, replicas: int) -> Iterator[Program]:
    file = written(folder, textwrap.dedent(PROGRAM.format(replicas=replicas)))
    with running(python(file), folder / "output.log") as program:
        program.wait_ready()
        yield program


async def test_every_response_belongs_to_its_request(tmp_path: Path) -> None:
    requests = bodies(5000, seed=1)
    answered: Counter[int] = Counter()

    def check(number: int, answer: tuple[int, dict[str, str], bytes]) -> None:
        status, headers, body = answer
        assert (status, headers["x-request-id"]) == (200, f"request-{number}")
        assert body == answer_to(requests[number])
        answered[number] += 1

    with serving(tmp_path, replicas=2) as program:
        await ask_all(program.port, requests, check)
        assert answered == Counter(range(5000))
        assert 'throughput_total{code="200",endpoint="/inference"} 5000' in program.client.get("/metrics").text


async def test_no_request_is_lost_or_confused_while_workers_are_killed(tmp_path: Path) -> None:
    """Each of the six workers is killed once, of each stage by turns, so that no request meets two dying ones."""
    requests = bodies(1500, seed=2)
    answered: Counter[int] = Counter()
    killed: list[int] = []

    def check(number: int, answer: tuple[int, dict[str, str], bytes]) -> None:
        status, headers, body = answer
        assert (status, headers["x-request-id"], body) == (200, f"request-{number}", answer_to(requests[number]))
        answered[number] += 1
        if answered.total() % 200 == 0 and len(killed) < 6:
            turn, stage = divmod(len(killed), 3)
            killed.append(ready_workers(program, STAGES[stage])[turn])
            os.kill(killed[-1], signal.SIGKILL)

    with serving(tmp_path, replicas=2) as program:
        await ask_all(program.port, requests, check)
        assert answered == Counter(range(1500))
        assert len(set(killed)) == 6


def ready_workers(program: Program, stage: str) -> list[int]:
    """Return the processes of a stage's workers that have said that they are ready, the dead ones included."""
    rows = [row["fields"] for row in program.lines() if row["fields"].get("stage") == stage]
    found = [re.fullmatch(r"worker is ready after .* s \(.*\), process (\d+)", row["message"]) for row in rows]
    return [int(match[1]) for match in found if match]
