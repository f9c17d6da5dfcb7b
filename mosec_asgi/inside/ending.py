"""The exception that ends a worker from within its own code."""

from __future__ import annotations


class Ending(BaseException):
    """Raised in a worker, whatever it does, because it must end: its server has died, or has given it up.

    This is the only exception that is not the fault of a request, and code that catches those faults lets it pass. It
    is a `BaseException`, so that a `forward` that catches every `Exception` lets it pass as well.
    """
