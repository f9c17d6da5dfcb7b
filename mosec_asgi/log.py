"""Log lines: JSON in production, coloured text with `--debug`.

All loggers of the package hang below `mosec_asgi`; a user's worker logs through `get_logger()`. Importing sets nothing
up. `configure` is called when a service starts, in the server and in every worker process, and leaves a program alone
that has set up logging itself.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from datetime import datetime, timezone

ROOT = "mosec_asgi"
USER = "mosec_asgi.user"
# Attributes that our own calls pass as `extra`, in the order in which they are printed.
EXTRA = ("stage", "worker", "request_id")

_COLOURS = {"DEBUG": "34", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "35"}


def get_logger() -> logging.Logger:
    """Return the logger for a user's workers and server program; it writes in the same form as the server's own."""
    return logging.getLogger(USER)


def internal_logger(name: str) -> logging.Logger:
    """Return the logger of the package's module `name` (its `__name__`)."""
    return logging.getLogger(name)


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _target(record: logging.LogRecord) -> str:
    prefix = "user" if record.name == USER else record.name
    return f"{prefix}::{record.filename}:{record.lineno}"


class JSONFormatter(logging.Formatter):
    """One JSON object a line: timestamp, level, target, and the fields with the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON."""
        fields: dict[str, object] = {"message": record.getMessage()}
        fields.update({key: getattr(record, key) for key in EXTRA if hasattr(record, key)})
        if record.exc_info:
            fields["exc_info"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack_info"] = self.formatStack(record.stack_info)
        line = {
            "timestamp": _timestamp(record),
            "level": record.levelname,
            "target": _target(record),
            "pid": record.process,
            "fields": fields,
        }
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Text for a person at a terminal, the level coloured."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text, a traceback below it."""
        level = f"\x1b[{_COLOURS.get(record.levelname, '0')}m{record.levelname}\x1b[0m"
        extra = "".join(f" {key}={getattr(record, key)}" for key in EXTRA if hasattr(record, key))
        text = f"{_timestamp(record)} {level} {_target(record)} [{record.process}]: {record.getMessage()}{extra}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def configure(level: str, *, text: bool = False, others: Sequence[str] = ()) -> None:
    """Send the package's log lines to standard error, unless the program has set up logging itself.

    Args:
        level: the least level to log: debug, info, warning or error.
        text: coloured text instead of JSON lines.
        others: further loggers to send the same way.
    """
    formatter = TextFormatter() if text else JSONFormatter()
    for name in (ROOT, *others):
        _configure_one(logging.getLogger(name), level.upper(), formatter)


def _configure_one(logger: logging.Logger, level: str, formatter: logging.Formatter) -> None:
    logger.setLevel(level)
    for handler in list(logger.handlers):
        if isinstance(handler.formatter, (JSONFormatter, TextFormatter)):
            logger.removeHandler(handler)
    if logger.handlers:
        return
    logger.propagate = bool(logging.getLogger().handlers)
    if not logger.propagate:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(formatter)
        logger.addHandler(handler)
