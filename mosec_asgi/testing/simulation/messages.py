"""What crosses in a simulation beside the service's own messages, and how messages cross. No I/O."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

from mosec_asgi.messages import Cancels, Chunks, Credits, Payload, Results, Tasks

M = TypeVar("M")


class Ready(NamedTuple):
    """A worker says that it has loaded and warmed up."""


class Failed(NamedTuple):
    """A worker says that it could not start, and why."""

    traceback: str


Asked: TypeAlias = Tasks | Cancels | Credits
Said: TypeAlias = Ready | Failed | Results | Chunks


def as_it_is(message: M) -> M:
    """Pass a message on."""
    return message


def over_a_socket(message: M) -> M:
    """Pass on what comes out where a message is pickled and unpickled on its way.

    Raises:
        ValueError: something else comes out.
    """
    copy: M = pickle.loads(pickle.dumps(message))
    if type(copy) is not type(message) or copy != message:
        raise ValueError(f"{message!r} is {copy!r} after its way")
    return copy


class Held:
    """A payload in memory that a link shares with its worker."""

    __slots__ = ("_dropped", "_on_drop", "_on_misuse", "_payload")

    def __init__(self, payload: bytes, on_drop: Callable[[], None], on_misuse: Callable[[str], Exception]) -> None:
        """Hold a payload.

        Args:
            payload: the bytes.
            on_drop: called when they are dropped.
            on_misuse: returns what to raise where they are used after that.
        """
        self._payload = payload
        self._on_drop = on_drop
        self._on_misuse = on_misuse
        self._dropped = False

    def __len__(self) -> int:
        return len(self._payload)

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        """Leave this memory as plain bytes."""
        return bytes, (self.read(),)

    def read(self) -> bytes:
        """Return the payload as bytes."""
        self._require_held("read")
        return self._payload

    def lend(self) -> memoryview:
        """Return the payload as bytes."""
        return memoryview(self.read())

    def copy(self) -> bytes:
        """Return the payload as bytes."""
        return self.read()

    def load(self) -> bytes:
        """Return the payload in place of dropping it: nothing is pickled in a simulation."""
        payload = self.read()
        self.drop()
        return payload

    def drop(self) -> None:
        """Give the memory back."""
        self._require_held("dropped")
        self._dropped = True
        self._on_drop()

    def _require_held(self, what: str) -> None:
        if self._dropped:
            raise self._on_misuse(f"the payload {self._payload!r} was {what} after it had been dropped")


def as_bytes(payload: Payload) -> bytes:
    """Return a payload's bytes, which stay where they are."""
    return payload if isinstance(payload, bytes) else payload.read()
