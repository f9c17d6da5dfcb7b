"""Several processes of one ASGI server that each load the same models: one warning, by one of them.

No server says how many processes it has in a way that all share. But each of its processes can see that there is
another: the first one with a service binds a name, in Linux's space of names that are no files, for as long as it
lives. The next one finds it taken, binds a second name, and warns. All others find both taken.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Iterable
from hashlib import sha256

from mosec_asgi import log

# Names that this process has bound, for its whole life.
_bound: dict[str, socket.socket] = {}

logger = log.internal_logger(__name__)


def warn_of_siblings(routes: Iterable[str], workers: int) -> None:
    """Warn, once for all processes of a server, that each of them loads the models.

    Args:
        routes: of the service.
        workers: that each process starts.
    """
    # uvicorn, granian and hypercorn make processes by `multiprocessing`; gunicorn forks them.
    is_one_of_several = multiprocessing.parent_process() is not None or "gunicorn.arbiter" in sys.modules
    if not is_one_of_several or not sys.platform.startswith("linux"):
        return
    service = sha256("\n".join(routes).encode()).hexdigest()[:16]
    name = f"\0mosec_asgi/{os.getuid()}/{os.getppid()}/{service}"
    if f"{name}/1" in _bound or _bind(f"{name}/1"):
        return
    if f"{name}/2" not in _bound and _bind(f"{name}/2"):
        logger.warning(
            "several processes of this server run the same service, and each loads all models for itself: %d worker%s "
            "in each, with queues, batches, limits and metrics of its own. To load the models once, start `mosec-asgi "
            "engine app:server --socket PATH` and this server with MOSEC_ENGINE=PATH; or use `server.run()` or "
            "`mosec-asgi serve` with --http-processes",
            workers,
            "" if workers == 1 else "s",
        )


def _bind(name: str) -> bool:
    """Take a name; False where another process has it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(name)
    except OSError:
        sock.close()
        return False
    _bound[name] = sock
    return True
