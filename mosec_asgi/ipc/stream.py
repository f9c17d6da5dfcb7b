"""What is used of a connection's socket: a socket has it, and so has one that encrypts."""

from __future__ import annotations

from typing import Protocol


class Stream(Protocol):
    """Bytes to and from another process. All methods do, and raise, what those of `socket.socket` do."""

    def fileno(self) -> int:
        """Return the descriptor to wait on."""

    def setblocking(self, flag: bool, /) -> None:
        """Say whether the others wait."""

    def send(self, data: bytes | memoryview, /) -> int:
        """Send what there is room for, and return how much that was; where it was not all, the rest comes next."""

    def sendall(self, data: bytes, /) -> None:
        """Send all."""

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0, /) -> int:
        """Receive what has come into a buffer, and return how much that is; 0 at the end.

        After that nothing is left that only a second call would find: one that waits for the descriptor misses nothing.
        """

    def shutdown(self, how: int, /) -> None:
        """End one direction or both."""

    def close(self) -> None:
        """Close it."""
