"""How much of a stream is on its way to its client, which bounds what may follow. Pure.

Flow control by credit, as in HTTP/2 (RFC 9113, section 5.2): a worker may send while fewer than `limit` bytes of the
stream are outstanding (sent, and not reported back as taken). The piece that reaches the limit goes out whole. What the
client takes is reported to the worker once it adds up to a quarter of the limit, so that small streams cost no frame at
all. A worker that sends beyond the limit is broken.
"""

from __future__ import annotations


class Flow:
    """The state of one stream, as the server sees it.

    Attributes:
        events: pieces that have come.
        last: when the last one came.
    """

    __slots__ = ("_limit", "_outstanding", "_unreported", "events", "last")

    def __init__(self, limit: int) -> None:
        """Begin a stream of which at most `limit` bytes, and one piece more, may be outstanding."""
        self.events = 0
        self.last = 0.0
        self._limit = limit
        self._outstanding = 0
        self._unreported = 0

    @property
    def full(self) -> bool:
        """Whether its worker has to wait for the client."""
        return self._outstanding >= self._limit

    def came(self, size: int, now: float) -> bool:
        """Note a piece; False where the worker was not free to send it."""
        if self.full:
            return False
        self.events += 1
        self.last = now
        self._outstanding += size
        return True

    def taken(self, size: int) -> int:
        """Note what the client has taken; return the bytes to report to the worker now, 0 for none."""
        self._unreported += size
        if self._unreported * 4 < self._limit:
            return 0
        report, self._unreported = self._unreported, 0
        self._outstanding -= report
        return report
