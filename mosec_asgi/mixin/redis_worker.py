"""What passes between stages waits in redis; only its key goes through the pipes.

A key is written with an expiry, and deleted once the stage that reads it has answered: not before, because a task whose
worker dies is run again by another one, which reads it again. What is never answered, because a worker or the server
died or the client left, is gone after `redis_ttl` seconds. Keys begin with a random name for each worker, and
count from there: no two meet, and none costs a question to redis.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from mosec_asgi.errors import DefinitionError, ServerError
from mosec_asgi.mixin.library import NeedsLibrary, load
from mosec_asgi.worker import Worker

# Spawned workers inherit it; the name is mosec's.
URL_VARIABLE = "MOSEC_INTERNAL_REDIS_URL"


class RedisShmIPCMixin(NeedsLibrary, Worker):
    """Pass data to the next stage through redis: `class Inference(RedisShmIPCMixin, Worker)`.

    Both stages need it, and `RedisShmIPCMixin.set_redis_url("redis://...")` must be called before the server starts.

    Attributes:
        redis_ttl: seconds until redis drops what was not read. Must be longer than a task may wait between two stages,
            for which the service's `timeout` is a bound.
    """

    _library = "redis"
    _formats_take_time = True
    redis_ttl: int = 300

    _redis_client: Any = None
    _redis_keys: Iterator[bytes] | None = None
    _redis_read: frozenset[bytes] = frozenset()

    @classmethod
    def set_redis_url(cls, url: str) -> None:
        """Set where redis is, for all workers that are started from now on.

        Args:
            url: like `redis://localhost:6379/0` or `unix:///run/redis.sock`.
        """
        os.environ[URL_VARIABLE] = url

    def serialize_ipc(self, data: Any) -> bytes:
        """Put data into redis.

        Args:
            data: what `forward` returned for the request.

        Returns:
            its key.
        """
        client = self._client()
        if self._redis_keys is None:
            name = secrets.token_hex(8)
            self._redis_keys = (b"mosec_asgi:%s:%d" % (name.encode(), number) for number in itertools.count(1))
        key = next(self._redis_keys)
        client.set(key, super().serialize_ipc(data), ex=self.redis_ttl)
        return key

    def deserialize_ipc(self, data: bytes) -> Any:
        """Read data from redis; it is deleted when its task is answered.

        Args:
            data: its key, from the stage before.

        Raises:
            ServerError: redis has it no more.
        """
        # A user's own `deserialize_ipc` that calls this one was given a `bytearray`.
        data = bytes(data)
        payload = self._client().get(data)
        if payload is None:
            raise ServerError(
                "redis has lost what the stage before has left there: it expired after "
                f"{self.redis_ttl} s (redis_ttl), or redis dropped it for want of memory"
            )
        self._redis_read |= {data}
        return super().deserialize_ipc(payload)

    def _answered(self, payloads: Sequence[bytes]) -> None:
        if self._redis_read and (done := self._redis_read.intersection(payloads)):
            # Where redis cannot be reached, they expire.
            with contextlib.suppress(load("redis").RedisError):
                self._client().delete(*done)
            self._redis_read -= done

    def close(self) -> None:
        """Close the connections to redis."""
        super().close()
        if self._redis_client is not None:
            self._redis_client.close()

    def _client(self) -> Any:
        if self._redis_client is None:
            url = os.environ.get(URL_VARIABLE)
            if not url:
                raise DefinitionError(
                    'no redis is known; call RedisShmIPCMixin.set_redis_url("redis://...") before the server starts'
                )
            self._redis_client = load("redis").from_url(url)
        return self._redis_client
