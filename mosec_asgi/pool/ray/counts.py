"""What a worker in an actor counts with prometheus_client, sent to its server: it is shown in the server's /metrics.

The counting is the same as in a local process: into files of a directory, which here is the actor's own. A thread looks
at them from time to time and sends those that have changed, so a call does not wait for that, nor does a scrape for the
actor. What was counted in the last moment before an actor is killed is lost; one that ends in good order sends all.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mosec_asgi import log
from mosec_asgi.inside.ending import Ending
from mosec_asgi.ipc import frames
from mosec_asgi.observing.custom import KIND, MOST_COUNTED, CustomMetrics

# Seconds between two looks, and bytes that are sent in a second.
LOOK_SECONDS = 1.0
BYTES_PER_SECOND = 1 << 20
# Seconds in which the last of it has to be sent.
END_SECONDS = 5.0
# How much of a file is in use stands at its beginning.
_USED_SIZE = 4

logger = log.internal_logger(__name__)


class Counts:
    """The metrics of the worker in this process."""

    def __init__(self, metrics: CustomMetrics | None = None, seconds: float = LOOK_SECONDS) -> None:
        """Prepare; `open` makes the directory.

        Args:
            metrics: the directory.
            seconds: between two looks.
        """
        self._metrics = metrics or CustomMetrics(None)
        self._seconds = seconds
        self._sent: dict[str, bytes] = {}
        self._too_large: set[str] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._send: Callable[[bytes], None]

    def open(self) -> Mapping[str, str]:
        """Make the directory; return the variables to set before a metric is made."""
        self._metrics.open()
        return self._metrics.variables

    def begin(self, send: Callable[[bytes], None]) -> None:
        """Begin to send what is counted, as frames."""
        self._send = send
        self._thread = threading.Thread(target=self._run, name="mosec_asgi counts", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send what has not been sent, and remove the directory. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            # A server that does not read must not keep it.
            self._thread.join(END_SECONDS)
            self._thread = None
        self._metrics.close()

    def _run(self) -> None:
        pause = self._seconds
        while not self._stop.wait(pause):
            pause = self._seconds + self._send_changed() / BYTES_PER_SECOND
        self._send_changed()

    def _send_changed(self) -> int:
        """Send the files that have changed; return how many bytes they hold."""
        size = 0
        try:
            for kind, values in self._changed():
                self._send(frames.encode_counted(frames.Counted(kind, values)))
                self._sent[kind] = values
                size += len(values)
        except Ending:
            # The connection is broken, which the worker notices by itself.
            self._stop.set()
        except OSError as error:
            logger.warning("the metrics of this worker cannot be read: %s", error)
        return size

    def _changed(self) -> Iterator[tuple[str, bytes]]:
        # Those of this process: one that the worker has started may have ended, and its number may be another's.
        for path in Path(self._metrics.private).glob(f"*_{os.getpid()}.db") if self._metrics.private else ():
            kind = path.stem.rpartition("_")[0]
            if not KIND.fullmatch(kind):
                continue
            with path.open("rb") as file:
                used = int.from_bytes(file.read(_USED_SIZE), sys.byteorder, signed=True)
                if used > MOST_COUNTED:
                    self._refuse(kind, used)
                    continue
                file.seek(0)
                values = file.read(max(used, 0))
            if values and values != self._sent.get(kind):
                yield kind, values

    def _refuse(self, kind: str, size: int) -> None:
        if kind not in self._too_large:
            self._too_large.add(kind)
            logger.warning(
                "what this worker counts of the kind %s is not shown any more: it takes %d bytes, and at most %d are "
                "sent to the server; give these metrics fewer labels",
                kind,
                size,
                MOST_COUNTED,
            )
