"""Two stages with redis between them."""

from __future__ import annotations

import os
from typing import Any

from mosec import Server, Worker
from mosec.mixin import RedisShmIPCMixin


class Repeat(RedisShmIPCMixin, Worker):
    def forward(self, data: dict[str, Any]) -> bytes:
        return data["text"].encode() * data["times"]


class Measure(RedisShmIPCMixin, Worker):
    resp_mime_type = "application/octet-stream"

    def forward(self, data: list[bytes]) -> list[bytes]:
        return [b"%d " % len(item) + item[:8] for item in data]

    def serialize(self, data: bytes) -> bytes:
        return data


if __name__ == "__main__":
    RedisShmIPCMixin.set_redis_url(os.environ["TESTS_REDIS_URL"])
    server = Server()
    server.append_worker(Repeat, num=2)
    server.append_worker(Measure, max_batch_size=8)
    server.run()
