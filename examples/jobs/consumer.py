"""A model behind a queue: jobs come from a stream of redis, and `server.infer` runs them. There is no HTTP.

    redis-server &
    python examples/jobs/consumer.py
    python examples/jobs/submit.py "To be, or not to be" "Tomorrow, and tomorrow"

A job is acknowledged once its result is kept. One that a consumer had when it died is claimed by another. On SIGTERM a
consumer takes no more jobs, and finishes those that it has. REDIS_URL says where redis is.
"""

import asyncio
import json
import os
import signal
import socket
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mosec_asgi import MosecError, Server, ValidationError, Worker

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
STREAM, GROUP, NAME = "jobs", "models", f"{socket.gethostname()}-{os.getpid()}"
# Jobs that this consumer has at a time: enough for a batch to run and another one to wait.
MOST_JOBS = 64
# Seconds for which a job is tried before it is left to another consumer, and after which one that is left is claimed.
PATIENCE = 30.0
LEFT_AFTER = float(os.environ.get("LEFT_AFTER", "60"))
# Seconds for which redis keeps a result.
KEPT = 3600


class Read(Worker[Any, dict[str, int]]):
    """Count the words of a text."""

    def forward(self, data: list[Any]) -> list[dict[str, int] | ValidationError]:
        """Return the number for each text of a batch."""
        return [{"words": len(t.split())} if isinstance(t, str) else ValidationError("no text") for t in data]


server = Server(timeout=10_000)
server.append_worker(Read, max_batch_size=32)


async def run(redis: Redis, job: str, text: str) -> None:
    """Run a job, keep its result or why it failed, and acknowledge it; leave one to others that finds no room here."""
    given_up = asyncio.get_running_loop().time() + PATIENCE
    while True:
        try:
            result = {"result": await server.infer(text, request_id=job)}
        except MosecError as error:
            # Too many calls, or no worker just now: the job is as good as before.
            if error.code in (429, 503):
                if asyncio.get_running_loop().time() > given_up:
                    return
                await asyncio.sleep(error.retry_after or 1)
                continue
            result = {"error": str(error), "code": error.code}
        await redis.set(f"result:{job}", json.dumps(result), ex=KEPT)
        await redis.xack(STREAM, GROUP, job)
        return


async def consume(redis: Redis, stop: asyncio.Event) -> None:
    """Take jobs until the end is asked for, and finish them."""
    running: set[asyncio.Task[None]] = set()
    while not stop.is_set():
        room = MOST_JOBS - len(running)
        claimed: Any = await redis.xautoclaim(STREAM, GROUP, NAME, int(LEFT_AFTER * 1000), count=room)
        left = claimed[1]
        found: Any = await redis.xreadgroup(GROUP, NAME, {STREAM: ">"}, count=room, block=None if left else 500)
        jobs = left + [job for _, fresh in found for job in fresh]
        running |= {asyncio.create_task(run(redis, job, fields["text"])) for job, fields in jobs}
        if len(running) == MOST_JOBS:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in [task for task in running if task.done()]:
            running.remove(task)
            task.result()
    await asyncio.gather(*running)


async def main() -> None:
    """Serve the queue until SIGTERM or ctrl-c."""
    async with server, Redis.from_url(REDIS_URL, decode_responses=True) as redis:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            await redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        print(f"{NAME} takes jobs from {REDIS_URL}", flush=True)
        await consume(redis, stop)


if __name__ == "__main__":
    asyncio.run(main())
