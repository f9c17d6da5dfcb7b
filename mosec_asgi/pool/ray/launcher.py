"""Starts workers as actors of Ray, each with a connection of its own."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from collections.abc import Mapping

from mosec_asgi.errors import StartupError
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.observing.custom import CustomMetrics
from mosec_asgi.pool.link import WorkerEvents
from mosec_asgi.pool.ray.cluster import RayCluster
from mosec_asgi.pool.ray.link import RayLink
from mosec_asgi.ray_options import RayOptions


class RayLauncher:
    """Starts the workers of one stage as actors, on one event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: RayOptions | None = None,
        cluster: RayCluster | None = None,
        counts: CustomMetrics | None = None,
    ) -> None:
        """Prepare; nothing is started.

        Args:
            loop: on which the workers' events are reported.
            options: what the stage asks of Ray.
            cluster: that of the service, which other stages use as well.
            counts: where what the workers count is shown, if it is.
        """
        self._loop = loop
        self._options = options or RayOptions()
        self._cluster = cluster or RayCluster(loop)
        self._cluster.use()
        self._counts = counts
        self._closed = False

    def launch(self, spec: WorkerSpec, variables: Mapping[str, str], events: WorkerEvents) -> RayLink:
        """Start a worker in an actor; see `Launcher.launch`. What goes wrong later is reported as its failed start."""
        try:
            pickled = pickle.dumps(spec)
        # The user's own class and arguments: their pickling may raise anything.
        except Exception as error:
            raise StartupError(
                f"worker {spec.worker_id} of {spec.stage} cannot be sent to another node: {error}. Define its class at "
                "the top level of a module, under its own name, and give it arguments that can be pickled"
            ) from error
        link = RayLink(spec, events, self._loop, self._cluster, self._counts)
        main = main_module() if spec.worker.__module__ == "__main__" else ("", "")
        options = self._options
        link.begin(
            self._cluster.launch(
                link,
                pickled,
                spec.stage,
                spec.worker_id,
                variables,
                options.actor_options,
                options.placement,
                main,
            )
        )
        return link

    def close(self) -> None:
        """Leave the cluster, once all workers have ended. Idempotent."""
        if not self._closed:
            self._closed = True
            self._cluster.leave()


def main_module() -> tuple[str, str]:
    """Return the name of this program's main module, or else its file; see `Order`."""
    module = sys.modules["__main__"]
    name = getattr(getattr(module, "__spec__", None), "name", None)
    if name:
        return name, ""
    return "", os.path.abspath(getattr(module, "__file__", None) or "")
