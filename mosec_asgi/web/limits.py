"""What a client of `run()` may use, as data; see the settings of the same names."""

from __future__ import annotations

from dataclasses import dataclass

from mosec_asgi.config import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a connection.

    Attributes:
        keep_alive: seconds between two requests.
        read_timeout: seconds for the head of a request to arrive, and the same again for the beginning of its body; the
            most that a body may pause.
        least_rate: bytes a second at which a body has to arrive, and an answer has to be taken, after that.
        stall_timeout: seconds in which an answer that is not taken has to move.
        max_head_size: bytes of a request line and its headers.
        max_url_size: bytes of a request's path and query.
        pipelined: the most requests that wait for their turn on one connection, or are begun in one turn of the loop.
        answer_memory: bytes of answers that may lie unread, on all connections together.
    """

    keep_alive: float = 75.0
    read_timeout: float = 20.0
    least_rate: int = 1000
    stall_timeout: float = 30.0
    max_head_size: int = 64 * 1024
    max_url_size: int = 16 * 1024
    pipelined: int = 32
    answer_memory: int = 256 * 1024 * 1024


DEFAULT = Limits()


class Patience:
    """How long a body is still waited for.

    What arrives brings time, at `least_rate`, but never more than to `read_timeout` from then on: else a client could
    send much at once, and hold it for hours by next to nothing.
    """

    __slots__ = ("_least_rate", "_most", "until")

    def __init__(self, limits: Limits, now: float) -> None:
        """Begin to wait.

        Args:
            limits: what the body may take.
            now: seconds, of any clock.
        """
        self._most = limits.read_timeout
        self._least_rate = limits.least_rate
        self.until = now + self._most

    def arrived(self, size: int, now: float) -> None:
        """Take note of bytes that have come."""
        self.until = min(self.until + size / self._least_rate, now + self._most)


def http_limits(settings: Settings, memory: int) -> Limits:
    """Return the limits that the settings give.

    Args:
        settings: of the service.
        memory: bytes that its process may use.
    """
    return Limits(
        keep_alive=settings.keep_alive / 1000,
        read_timeout=settings.read_timeout / 1000,
        least_rate=settings.least_rate,
        stall_timeout=settings.stall_timeout / 1000,
        max_head_size=settings.max_head_size,
        max_url_size=settings.max_url_size,
        pipelined=settings.pipelined,
        answer_memory=settings.answer_memory or memory // 4,
    )


# An answer may be given before its request has been read. If a socket is closed with unread data, the client's kernel
# drops all that has arrived, the answer too. So what the client still sends is read and dropped: for so many seconds at
# most, and while the client does not pause for longer than the second number. nginx has the same numbers.
LINGER_SECONDS = 30.0
LINGER_SILENCE_SECONDS = 5.0
