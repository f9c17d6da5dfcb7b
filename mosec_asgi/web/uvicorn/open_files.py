"""A word in the log where connections take the last files that this process may have open (`ulimit -n`).

The event loop (uvloop) accepts a connection for which there is no descriptor only to close it, and tells nobody:
clients find their connections reset, and neither log nor metrics would say why. The kernel gives a connection the
lowest descriptor that is free. So the last ones are taken before the first connection is lost, and by their numbers
they are known.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable

# Descriptors below the limit that are the last ones.
LAST = 16
# Seconds in which it is said once.
SECONDS = 60.0


class OpenFiles:
    """Looks at the descriptors of new connections, and warns of the last ones."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with the limit as it is.

        Args:
            logger: gets the warning.
            clock: seconds.
        """
        self._logger = logger
        self._clock = clock
        self._limit = _limit()
        self._silent_until = -SECONDS

    def look(self, descriptor: int) -> None:
        """Warn if a new connection has one of the last descriptors, and this has not been said lately."""
        if descriptor < self._limit - LAST:
            return
        now = self._clock()
        # The program may have raised it since.
        self._limit = _limit()
        if descriptor < self._limit - LAST or now < self._silent_until:
            return
        self._silent_until = now + SECONDS
        self._logger.warning(
            "connections have nearly all of the %d files that this process may have open; further ones are closed "
            "without an answer. Raise that limit: `ulimit -n`, LimitNOFILE= of systemd, --ulimit nofile= of docker",
            self._limit,
        )


def _limit() -> int:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
