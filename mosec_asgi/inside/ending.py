"""What ends a worker from within its own code."""

from __future__ import annotations


class Ending(BaseException):
    """Raised in a worker, wherever it is at work, because it is to end: its server has died, or has given it up.

    The only exception that is no fault of a request: it passes through all that catches those. A `BaseException`, so
    that it passes through a `forward` that catches every `Exception` as well.
    """
