"""What is shown of a run's progress, on standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

from mosec_asgi.offline.progress import Progress

REDRAW_SECONDS = 0.2
# Between two lines where nobody looks on.
LINE_SECONDS = 30.0
BAR_WIDTH = 30


class Display(Protocol):
    """Shows progress."""

    def show(self, progress: Progress, now: float) -> None:
        """Show how far it has come; called with each line, and cheap."""

    def say(self, text: str) -> None:
        """Write a line of text."""

    def close(self, progress: Progress, now: float) -> None:
        """Show it for the last time."""


class Silent:
    """Says what must be said."""

    def show(self, progress: Progress, now: float) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Write a line of text."""
        print(text, file=sys.stderr, flush=True)

    def close(self, progress: Progress, now: float) -> None:
        """Show nothing."""


class Lines(Silent):
    """Writes a line now and then, for logs."""

    def __init__(self, now: float) -> None:
        """Begin at a moment."""
        self._next = now + LINE_SECONDS

    def show(self, progress: Progress, now: float) -> None:
        """Write a line, if it is time."""
        if now >= self._next:
            self._next = now + LINE_SECONDS
            self.say(progress.text(now))


class PlainBar(Silent):
    """Draws a bar by hand."""

    def __init__(self) -> None:
        """Prepare."""
        self._next = 0.0
        self._width = 0

    def show(self, progress: Progress, now: float) -> None:
        """Draw it, if it is time."""
        if now >= self._next:
            self._next = now + REDRAW_SECONDS
            self._draw(progress, now)

    def say(self, text: str) -> None:
        """Write a line of text above it."""
        print("\r" + " " * self._width + "\r" + text, file=sys.stderr, flush=True)

    def close(self, progress: Progress, now: float) -> None:
        """Leave it as it is at the end."""
        self._draw(progress, now)
        print(file=sys.stderr, flush=True)

    def _draw(self, progress: Progress, now: float) -> None:
        share = progress.share()
        full = round(BAR_WIDTH * (share or 0.0))
        bar = "" if share is None else f"[{'#' * full}{'.' * (BAR_WIDTH - full)}] "
        text = bar + progress.text(now)
        print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
        self._width = len(text)


class RichBar:
    """Draws a bar by rich."""

    def __init__(self, rich: Any) -> None:
        """Draw it.

        Args:
            rich: the module `rich.progress`.
        """
        # Text that stands in braces, or in brackets, is not for rich to read.
        text = rich.TextColumn("{task.fields[text]}", markup=False)
        self._bar = rich.Progress(
            rich.SpinnerColumn(), rich.BarColumn(), text, console=_console(), auto_refresh=True, redirect_stdout=False
        )
        self._task = self._bar.add_task("", total=None, text="")
        self._next = 0.0
        self._bar.start()

    def show(self, progress: Progress, now: float) -> None:
        """Hand it the numbers, if it is time."""
        if now >= self._next:
            self._next = now + REDRAW_SECONDS
            self._update(progress, now)

    def say(self, text: str) -> None:
        """Write a line of text above it."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self, progress: Progress, now: float) -> None:
        """Leave it as it is at the end."""
        self._update(progress, now)
        self._bar.stop()

    def _update(self, progress: Progress, now: float) -> None:
        self._bar.update(self._task, total=progress.total, completed=progress.units, text=progress.text(now))


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def chosen(*, quiet: bool) -> Display:
    """Return what fits this program's standard error.

    Args:
        quiet: no progress is wanted.
    """
    if quiet:
        return Silent()
    if not sys.stderr.isatty():
        return Lines(time.monotonic())
    try:
        import rich.progress
    except ModuleNotFoundError:
        return PlainBar()
    return RichBar(rich.progress)
