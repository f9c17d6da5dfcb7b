"""mosec_asgi: model serving for the ASGI world.

General layout; each floor imports only from those below it:

    server.py               F6  Server: stages and routes -> the ASGI app, its lifespan, run()
    running.py              F6  a service that runs: plans, coordinator, app, metrics on one event loop
    serving.py, dry_run.py  F6  what run() does: uvicorn and signals; each pipeline once
    web/                    F5  HTTP in, HTTP out: app, inference, body, responses, health, gathering
    batching/               F4  waiting and grouping: coordinator; pure: scheduler, task; service: what web may ask
    pool/                   F3  worker processes: supervisor, process, child; pure: lifecycle, isolation
    ipc/                    F2  bytes between the two: channel; pure: frames
    metrics.py              F1  what is counted and measured
    worker.py, runtime.py   F1  what users subclass and configure
    config.py               F1  settings: keyword < MOSEC_* environment < command line
    log.py, errors.py       F0  log lines; the error tree
    version.py              F0

Importing this package, as every spawned worker does, loads none of starlette, uvicorn, pydantic or prometheus_client.
"""

from mosec_asgi.errors import ClientError, DecodingError, EncodingError, ServerError, ValidationError
from mosec_asgi.log import get_logger
from mosec_asgi.runtime import Runtime
from mosec_asgi.server import Server
from mosec_asgi.version import __version__
from mosec_asgi.worker import Worker

__all__ = [
    "ClientError",
    "DecodingError",
    "EncodingError",
    "Runtime",
    "Server",
    "ServerError",
    "ValidationError",
    "Worker",
    "__version__",
    "get_logger",
]
