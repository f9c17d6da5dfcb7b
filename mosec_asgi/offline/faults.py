"""What ends a run, as exceptions that tell the user what to do."""

from __future__ import annotations


class WrongUse(Exception):
    """The command cannot be followed, and nothing was done; the text says what to change."""


class Halted(Exception):
    """The run cannot go on; what it has done is on disk. The text says why."""
