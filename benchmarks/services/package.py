"""The one switch: `Server` and the workers of the package that BENCH_PACKAGE names, mosec or mosec_asgi.

A service takes them from here and is otherwise the same program, the same worker code and the same settings, for both.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING or os.environ["BENCH_PACKAGE"] == "mosec_asgi":
    import mosec_asgi
    from mosec_asgi import Server, SSEWorker, Worker

    # The version that is to be measured. Another one may be installed here, and would be taken for it.
    _checkout = os.environ.get("BENCH_CHECKOUT")
    if _checkout and Path(mosec_asgi.__file__).resolve().parent.parent != Path(_checkout).resolve():
        raise SystemExit(f"mosec_asgi comes from {mosec_asgi.__file__}, not from {_checkout}")
    if os.environ.get("BENCH_WITHOUT"):
        import ways

        ways.switch_off(os.environ["BENCH_WITHOUT"])
else:
    from mosec import Server, SSEWorker, Worker

__all__ = ["SSEWorker", "Server", "Worker"]
