"""What one side says to the other: all of a turn of the event loop as one frame, and so as one write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mosec_asgi.ipc.channel import Channel
from mosec_asgi.remote import frames

# Seconds for which the other side may wait to hear what is not urgent, unless that is much. Else it would be woken for
# each, most often just before it is told something else.
LATER_SECONDS = 0.005


class Outbox:
    """Gathers what is to be said over a channel."""

    def __init__(
        self,
        channel: Channel,
        loop: asyncio.AbstractEventLoop,
        on_failed: Callable[[Any, ValueError], object],
        last: Callable[[], Any] = lambda: None,
    ) -> None:
        """Begin with nothing.

        Args:
            channel: to the other side.
            loop: whose turns these are.
            on_failed: called with each entry that cannot be said, and why.
            last: returns what is said beside the rest, whenever something is sent; false for nothing.
        """
        self._channel = channel
        self._loop = loop
        self._on_failed = on_failed
        self._last = last
        self._said: list[Any] = []
        self._flushing = False
        # How much is said later, as a part of what would be too much.
        self._later = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_clear(self) -> bool:
        """Whether all that was said is on its way."""
        return not self._said and self._channel.is_clear

    def say(self, entry: Any) -> None:
        """Say something at the end of this turn."""
        self._said.append(entry)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def say_later(self, entry: Any, part: float) -> None:
        """Say what is not urgent: with what is said next, or in a moment, or at once where much has gathered.

        Args:
            entry: what to say.
            part: how much it is, as a part of much.
        """
        self._said.append(entry)
        self._later += part
        if self._later >= 1:
            self.flush_soon()
        elif self._timer is None:
            self._timer = self._loop.call_later(LATER_SECONDS, self._flush_later)

    def flush_soon(self) -> None:
        """Send what there is to say at the end of this turn."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what there is to say."""
        self._flushing, self._later = False, 0.0
        last = self._last()
        if last:
            self._said.append(last)
        said = self._said
        if said:
            self._said = []
            try:
                self._channel.send(frames.encode(said))
            except ValueError:
                self._send_apart(said)

    def close(self) -> None:
        """Say nothing more."""
        self._said = []
        self._last = lambda: None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush_later(self) -> None:
        self._timer = None
        self.flush()

    def _send_apart(self, said: list[Any]) -> None:
        """Send what can be sent of that which cannot be sent as a whole."""
        encoded, failed = frames.encode_apart(said)
        for frame in encoded:
            self._channel.send(frame)
        for entry, error in failed:
            self._on_failed(entry, error)
        # What is said in their place.
        if self._said:
            self.flush()
