"""The one switch: `Server` and the workers of the package that BENCH_PACKAGE names, mosec or mosec_asgi.

A service takes them from here and is otherwise the same program, the same worker code and the same settings, for both.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING or os.environ["BENCH_PACKAGE"] == "mosec_asgi":
    from mosec_asgi import Server, SSEWorker, Worker
else:
    from mosec import Server, SSEWorker, Worker

__all__ = ["SSEWorker", "Server", "Worker"]
