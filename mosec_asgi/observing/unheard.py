"""What OpenTelemetry says of headers that it cannot read is not heard: it repeats them in the log, each time.

A client decides what stands in its headers, and how many requests it sends; one header may be worth a hundred lines.
All else that these loggers say is heard.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Those of the propagators that OpenTelemetry has by default, and of what they make.
LOGGERS = (
    "opentelemetry.baggage.propagation",
    "opentelemetry.trace.propagation.tracecontext",
    "opentelemetry.trace.span",
)


class _Filter(logging.Filter):
    """Drops what is said in a thread while it reads headers."""

    def __init__(self) -> None:
        super().__init__()
        self.now = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is heard."""
        return not getattr(self.now, "reads", False)


_FILTER = _Filter()


def install() -> None:
    """Have `unheard` take effect. Idempotent."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)


@contextmanager
def unheard() -> Iterator[None]:
    """Drop what these loggers say in this thread meanwhile."""
    _FILTER.now.reads = True
    try:
        yield
    finally:
        _FILTER.now.reads = False
