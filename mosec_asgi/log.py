"""Log lines: JSON in production, text with `--debug` and on a terminal, where it is coloured.

All loggers of the package hang below `mosec_asgi`; a user's worker logs through `get_logger()`. Importing sets nothing
up. The first `get_logger()` does, so that no line is lost before the start. `configure` is called when a service
starts, in the server and in every worker process. Both leave a program alone that has set up logging itself.

A worker's lines say who speaks: its stage, its number, and the requests that it is at work on. Nobody attaches these
to anything beforehand. A line that is logged asks the speaker; see `speak_as`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any, TypeAlias

from mosec_asgi.log_output import handler_for_stderr

ROOT = "mosec_asgi"
USER = "mosec_asgi.user"
# Attributes that our own calls pass as `extra`, and that speakers tell, in the order in which they are printed.
EXTRA = ("stage", "worker", "request_id", "trace_id")
# Those of an access line, whose message says them as well; for machines.
ACCESS = ("method", "path", "status", "duration_ms")

# Returns what a line says beside its message, by the names of `EXTRA`.
Speaker: TypeAlias = Callable[[], Mapping[str, object]]

# Characters of a traceback, and of one line of it: an exception's text may hold what a client has sent.
MOST_TRACEBACK = 16_000
MOST_LINE = 2000

_COLOURS = {"DEBUG": "34", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "35"}


# Who speaks in this process; and in this context, where several workers share a process.
_process_speaker: Speaker | None = None
_context_speaker: ContextVar[Speaker | None] = ContextVar("speaker", default=None)


def get_logger() -> logging.Logger:
    """Return the logger for a user's workers and server program; it writes in the same form as the server's own.

    In a worker its lines say the stage and the worker, and in `forward` the ids of the requests that it has: `stage`,
    `worker` and `request_id` of a record are there for a program's own formats, too, and empty where there is none.
    """
    prepare()
    return logging.getLogger(USER)


def speak_as(speaker: Speaker, *, context: bool = False) -> None:
    """Have the lines of this process say what `speaker` returns at that moment.

    Args:
        speaker: called for each line that is logged, by whichever thread logs it.
        context: only lines of this context (`contextvars`).
    """
    global _process_speaker
    if context:
        _context_speaker.set(speaker)
    else:
        _process_speaker = speaker


# Of ASCII and of Latin 1, without the tab; and what ends a line in Unicode.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


# Return the id of a request's trace, or of the current one where no request is named; for each service that traces.
TraceOf: TypeAlias = Callable[[str], str]
_traces: list[TraceOf] = []


def name_traces(trace_of: TraceOf) -> None:
    """Have lines that name a request say its trace as well, until `forget_traces`."""
    _traces.append(trace_of)


def forget_traces(trace_of: TraceOf) -> None:
    """Ask no longer for traces there."""
    if trace_of in _traces:
        _traces.remove(trace_of)


class SpeakerFilter(logging.Filter):
    """Lets every record pass, and adds what its speaker says, where the record does not say it itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add to the record."""
        speaker = _context_speaker.get() or _process_speaker
        said = speaker() if speaker is not None else {}
        for name in EXTRA:
            if not hasattr(record, name):
                setattr(record, name, said.get(name, ""))
        if _traces and not record.trace_id:  # type: ignore[attr-defined]  # set above
            names: str = record.request_id  # type: ignore[attr-defined]
            found = (trace for name in names.split(" ") for of in _traces if (trace := of(name)))
            record.trace_id = " ".join(dict.fromkeys(found))
        return True


_SPEAKER_FILTER = SpeakerFilter()


def internal_logger(name: str) -> logging.Logger:
    """Return the logger of the package's module `name` (its `__name__`)."""
    return logging.getLogger(name)


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _target(record: logging.LogRecord) -> str:
    prefix = "user" if record.name == USER else record.name
    return f"{prefix}::{record.filename}:{record.lineno}"


class _Formatter(logging.Formatter):
    """What both forms have in common."""

    def formatException(self, ei: Any) -> str:  # logging's name
        """Return a traceback, of which neither a line nor the whole is longer than what helps."""
        text = super().formatException(ei)
        if len(text) > MOST_LINE:
            text = cut("\n".join(cut(line, MOST_LINE) for line in text.split("\n")), MOST_TRACEBACK)
        return text


def cut(text: str, most: int) -> str:
    """Return a text without its middle, if it has more than so many characters."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... {len(text) - 2 * half} characters are left out ... {text[-half:]}"


class JSONFormatter(_Formatter):
    """One JSON object a line: timestamp, level, target, and the fields with the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON."""
        fields: dict[str, object] = {"message": record.getMessage()}
        fields.update({name: value for name in (*EXTRA, *ACCESS) if (value := getattr(record, name, "")) != ""})
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


def _harmless(value: object) -> str:
    """Return a text in which no character moves the cursor, colours the terminal or begins a line."""
    text = str(value)
    return text if text.isprintable() else _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def _set_in(text: str) -> str:
    """Return a text whose further lines are set in."""
    return "\n    ".join(map(_harmless, text.split("\n")))


class TextFormatter(_Formatter):
    """Text for a person to read."""

    def __init__(self, *, coloured: bool = True) -> None:
        """Set up the form.

        Args:
            coloured: the level in its colour, by the codes of a terminal.
        """
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text, a traceback below it."""
        level = record.levelname
        if self._coloured:
            level = f"\x1b[{_COLOURS.get(level, '0')}m{level}\x1b[0m"
        extra = "".join(f" {name}={_harmless(value)}" for name in EXTRA if (value := getattr(record, name, "")) != "")
        # A line that goes on is set in, so that it cannot be taken for one of its own.
        message = _set_in(record.getMessage())
        text = f"{_timestamp(record)} {level} {_target(record)} [{record.process}]: {message}{extra}"
        if record.exc_info:
            # An exception's text may hold what a client has sent.
            text += f"\n    {_set_in(self.formatException(record.exc_info))}"
        return text


class _EarlyHandler(logging.Handler):
    """Writes to what is standard error at that moment, as long as the program has not set up logging itself."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if logging.getLogger().handlers or sys.stderr is None:
            return
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


# Returns the level, and whether to log as text, before a service is started; see `config`.
_wishes: Callable[[], tuple[str, bool]] | None = None


def before_start(wishes: Callable[[], tuple[str, bool]]) -> None:
    """Set who is asked for the level, and whether to log as text, before a service is started."""
    global _wishes
    _wishes = wishes


def prepare() -> None:
    """Have lines be seen that are logged before a service is started, unless somebody has set up logging."""
    logger = logging.getLogger(ROOT)
    if logger.handlers or logging.getLogger(USER).handlers or logging.getLogger().handlers:
        return
    level, text = _wishes() if _wishes is not None else ("info", False)
    handler = _EarlyHandler()
    handler.setFormatter(_formatter(text))
    handler.addFilter(_SPEAKER_FILTER)
    logger.addHandler(handler)
    logger.setLevel(level.upper())


def _formatter(text: bool) -> logging.Formatter:
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return TextFormatter(coloured=terminal) if text or terminal else JSONFormatter()


def configure(level: str, *, text: bool = False, others: Sequence[str] = ()) -> None:
    """Send the package's log lines to standard error, unless the program has set up logging itself.

    Args:
        level: the lowest level to log: debug, info, warning or error.
        text: text instead of JSON lines, also where standard error is no terminal.
        others: further loggers to send the same way.
    """
    formatter = _formatter(text)
    # On the logger itself: its records go to a program's own handlers as well.
    logging.getLogger(USER).addFilter(_SPEAKER_FILTER)
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
        handler = handler_for_stderr()
        handler.setFormatter(formatter)
        handler.addFilter(_SPEAKER_FILTER)
        logger.addHandler(handler)
