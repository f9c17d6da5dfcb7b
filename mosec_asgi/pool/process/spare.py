"""Descriptors held back for the start of a worker: connections must not take the last ones while it is down.

A server that has reached its limit of open files (`ulimit -n`) loses further connections, which is bad enough. If it
could not replace a dead worker either, its route would be down until clients leave.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# What a start takes at its peak: a pair of sockets, the ends of pipes, a pidfd. It keeps six; those of the dead worker,
# which are free by then, take their place. No more, so that a service still starts where few are allowed.
MOST_SPARE = 10


class SpareDescriptors:
    """Descriptors of this process, on nothing, that are given up for the time of a start."""

    def __init__(self, most: int = MOST_SPARE) -> None:
        """Hold none yet.

        Args:
            most: how many to hold.
        """
        self._most = most
        self._users = 0
        self._held: list[int] = []
        self._lock = threading.Lock()

    def join(self) -> None:
        """Hold descriptors, from the next start on, until all who have joined have left."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Need none any more."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._give_up()

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """Make room for the time of a block, and hold what is left after it."""
        with self._lock:
            self._give_up()
        # Not with the lock held, which a process that is forked in the block would inherit.
        try:
            yield
        finally:
            self.fill()

    def fill(self) -> None:
        """Hold as many as there should be, as far as there are any."""
        with self._lock:
            self._fill()

    def _fill(self) -> None:
        try:
            while self._users and len(self._held) < self._most:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            # The limit is reached; the end of a worker or the next start will be another opportunity.
            return

    def _give_up(self) -> None:
        while self._held:
            os.close(self._held.pop())


# The limit is the process's, so all stages share them.
SPARE = SpareDescriptors()
