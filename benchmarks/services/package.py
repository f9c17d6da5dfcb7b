"""The one switch: `Server` and `Worker` of the package that BENCH_PACKAGE names, mosec or mosec_asgi.

A service takes them from here and is otherwise the same program, the same worker code and the same settings, for both.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING or os.environ["BENCH_PACKAGE"] == "mosec_asgi":
    from mosec_asgi import Server, Worker
else:
    from mosec import Server, Worker

__all__ = ["Server", "Worker"]
