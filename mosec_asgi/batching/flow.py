"""How much of a stream is on its way to its client, which bounds what may follow. Pure.

Flow control by credit, as in HTTP/2 (RFC 9113, section 5.2): a worker may send while fewer than `limit` bytes of the
stream are outstanding, that is sent and not reported back as taken; the piece that reaches the limit goes out whole.
What the client takes is reported back in lots of a quarter of the limit, so that a quick reader of small events costs
no frame at all. A worker that sends beyond the limit is broken.

A stage before the last may send pieces as well. Its worker is told no more once its task has gone on, and the next one
begins with all its room: the most that can be outstanding is the limit for each stage that sends.
"""

from __future__ import annotations


class Flow:
    """The state of one stream, as the server sees it.

    Attributes:
        events: pieces that have come.
        quiet: none of them is from the stage that the task is at.
        last: when the last one came.
    """

    __slots__ = ("_earlier", "_limit", "_outstanding", "_unreported", "events", "last", "quiet")

    def __init__(self, limit: int) -> None:
        """Begin a stream of which at most `limit` bytes, and one piece more, may be outstanding."""
        self.events = 0
        self.quiet = True
        self.last = 0.0
        self._limit = limit
        self._outstanding = 0
        self._unreported = 0
        # Sent by workers of earlier stages, and not taken.
        self._earlier = 0

    @property
    def full(self) -> bool:
        """Whether its worker has to wait for the client."""
        return self._outstanding >= self._limit

    def came(self, size: int, now: float) -> bool:
        """Note a piece; False where the worker was not free to send it."""
        if self._outstanding >= self._limit:
            return False
        self.events += 1
        self.quiet = False
        self.last = now
        self._outstanding += size
        return True

    def taken(self, size: int) -> int:
        """Note what the client has taken; return the bytes to report to the worker now, 0 for none."""
        if self._earlier:
            # Taken in the order in which it was sent.
            earlier = min(size, self._earlier)
            self._earlier -= earlier
            size -= earlier
        self._unreported += size
        if self._unreported * 4 < self._limit:
            return 0
        report, self._unreported = self._unreported, 0
        self._outstanding -= report
        return report

    def go_on(self) -> None:
        """Begin anew with the worker of the next stage."""
        self._earlier += self._outstanding - self._unreported
        self._outstanding = self._unreported = 0
        self.quiet = True
