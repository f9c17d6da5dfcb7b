"""Detects clients that leave while they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from starlette.types import Receive

Key = TypeVar("Key", bound=Hashable)

# Seconds; a request that has waited so long gets a task that notices when its client leaves. Most are answered before.
WATCH_AFTER_SECONDS = 0.02


class DisconnectWatch(Generic[Key]):
    """Notices clients that leave while they wait, without a task for each request.

    A request is `add`ed when it begins to wait and `discard`ed when it has its answer. One timer for all starts a task
    only for a request that still waits since the timer's last run; the task waits for the disconnect.
    """

    def __init__(self, on_leave: Callable[[Key], None]) -> None:
        """Watch nothing yet.

        Args:
            on_leave: called with the key of a request whose client has left.
        """
        self._on_leave = on_leave
        self._young: dict[Key, Receive] = {}
        self._seen: set[Key] = set()
        self._watchers: dict[Key, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<DisconnectWatch young={list(self._young)} watched={list(self._watchers)}>"

    def add(self, key: Key, receive: Receive) -> None:
        """Begin to watch a request by its key; `receive`, its messages, is read by the watch alone from here on."""
        self._young[key] = receive
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, self._look)

    def discard(self, key: Key) -> None:
        """End the watch on a request."""
        if self._young.pop(key, None) is None:
            watcher = self._watchers.pop(key, None)
            if watcher is not None:
                watcher.cancel()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        for key in self._seen & self._young.keys():
            self._watchers[key] = loop.create_task(self._watch(key, self._young.pop(key)))
        self._seen = set(self._young)
        self._timer = loop.call_later(WATCH_AFTER_SECONDS, self._look) if self._young else None

    async def _watch(self, key: Key, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":  # noqa: ASYNC110 - nothing sets an event
            # Middleware that sends the body again and again must not block the event loop.
            await asyncio.sleep(WATCH_AFTER_SECONDS)
        self._watchers.pop(key, None)
        self._on_leave(key)
