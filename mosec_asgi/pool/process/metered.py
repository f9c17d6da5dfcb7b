"""Launches workers whose custom metrics are shown by the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.ipc.frames import Frame
from mosec_asgi.observing.custom import CustomMetrics
from mosec_asgi.pool.process.launcher import Handle, Launcher, Pipe


class MeteredLauncher:
    """Tells workers where to count, and the metrics which workers have died."""

    def __init__(self, launcher: Launcher, metrics: CustomMetrics) -> None:
        """Put the two together.

        Args:
            launcher: starts the workers.
            metrics: what they count.
        """
        self._launcher = launcher
        self._metrics = metrics

    def launch(
        self,
        spec: WorkerSpec,
        variables: Mapping[str, str],
        on_frame: Callable[[Frame], None],
        on_closed: Callable[[str], None],
        on_exit: Callable[[], None],
    ) -> tuple[Handle, Pipe]:
        """Start a worker; see `Launcher.launch`. A directory that the user has set for it is left alone."""

        def exited() -> None:
            on_exit()
            if handle.pid is not None:
                self._metrics.ended(handle.pid)

        spec = dataclasses.replace(spec, metrics_directory=self._metrics.private)
        variables = {**self._metrics.variables, **variables}
        handle, pipe = self._launcher.launch(spec, variables, on_frame, on_closed, exited)
        return handle, pipe
