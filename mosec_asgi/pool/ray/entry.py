"""The class of the actors. Ray sends it by value, so a node that lacks this package can say so."""

from __future__ import annotations

import os
import sys
from typing import Any


class Entry:
    """An actor: one worker, for its whole life."""

    def __init__(self, order: tuple[Any, ...]) -> None:
        """Take what it is to do; `run` does it.

        Args:
            order: an `orders.Order`, as a plain tuple.
        """
        self._order = order

    def __repr__(self) -> str:
        # What Ray puts before its lines.
        return str(self._order[8])

    def run(self) -> str:
        """Run the worker to its end; return what kept it from beginning, or nothing."""
        # On the server's own machine its modules are found where the server finds them. On others these folders are
        # not there, and `runtime_env` brings what is needed.
        for path in self._order[1]:
            if path not in sys.path and os.path.exists(path):
                sys.path.append(path)
        try:
            from mosec_asgi.pool.ray import actor
        except ImportError as error:
            return (
                f"the node cannot import mosec_asgi in Python {sys.version.split()[0]} ({error}); install it there, or "
                "have Ray bring it: ray_actor_options={'runtime_env': {'pip': ['mosec-asgi']}}"
            )
        return actor.run(self._order)
