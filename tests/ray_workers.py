"""Workers of the tests that need Ray; an actor imports them by name."""

from __future__ import annotations

import os
import time
from typing import Any

from mosec_asgi import Worker


class Where(Worker):
    """Answers with its process, its node, and its variable `COLOR`."""

    def forward(self, data: Any) -> list[Any]:
        import ray

        return [os.getpid(), ray.get_runtime_context().get_node_id(), os.environ.get("COLOR")]


class Dies(Worker):
    """Ends its process where it is asked to, and answers anything else with its process after a moment."""

    def forward(self, data: Any) -> list[Any]:
        if data == "die":
            os._exit(1)
        time.sleep(0.002)
        return [data, os.getpid()]


class Adds(Worker):
    """Adds its process to what it is given."""

    def forward(self, data: list[Any]) -> list[Any]:
        return [*data, os.getpid()]
