"""What ends a command, as exceptions that tell the user what to do."""

from __future__ import annotations


class UsageError(Exception):
    """The command line cannot be followed, and nothing was done; the text says what to change."""


class CommandError(Exception):
    """The command was understood, and has failed; the text says why, and what to do."""


class BrokenModule(CommandError):
    """A module of the user's raises an exception while it is imported.

    Attributes:
        trace: of the exception, without the frames that are not the user's.
    """

    def __init__(self, text: str, trace: str) -> None:
        super().__init__(text)
        self.trace = trace
