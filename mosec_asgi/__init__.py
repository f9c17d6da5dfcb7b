"""mosec_asgi: model serving for the ASGI world.

General layout; each floor imports only from those below it:

    cli.py, __main__.py     F7  the command `mosec-asgi`
    server.py               F6  Server: stages and routes -> the ASGI app, its lifespan, run()
    running.py              F6  a service that runs: plans, coordinator, app, metrics on one event loop
    serving.py, dry_run.py  F6  what run() does: uvicorn and signals; each pipeline once
    testing/                F6  a service on virtual time with inline workers; the simulation of random histories
    web/                    F5  HTTP in, HTTP out: app, inference, sse, direct, request, disconnect, http1, http2,
                                body, compression, responses, gathering, keep_alive, health, missing, access;
                                the contract: openapi, contract, components, examples, swagger
    batching/               F4  waiting and grouping: coordinator, stage; pure: scheduler, arrivals, task, flow,
                                rate, busy_poll; service: what web may ask
    pool/                   F3  worker processes, from outside: supervisor, process, preload; pure: lifecycle,
                                watchdog; from inside: child, template, spec, port, codec, timer; executor,
                                stream_executor, outlet, concurrent, continuous; pure: isolation;
                                custom metrics: metered, counting
    ipc/                    F2  bytes between the two: channel, progress; pure: frames
    metrics.py              F1  what is counted and measured
    exposition.py           F1  the same as Prometheus text
    custom_metrics.py       F1  the same by users' workers, with prometheus_client
    worker.py, runtime.py   F1  what users subclass and configure
    streaming.py, events.py F1  the same for streams: ContinuousWorker; Event and its form on the wire
    returned.py             F1  what forward has returned: a stream, a result, or neither
    mixin/, formats.py      F1  formats other than the default; what they share
    annotations.py          F1  what forward takes and returns
    schema.py               F1  the same as JSON Schema
    config.py               F1  settings: keyword < MOSEC_* environment < command line
    log.py, errors.py       F0  log lines; the error tree
    version.py              F0

Importing this package, as every spawned worker does, loads none of starlette, uvicorn, pydantic or prometheus_client.
"""

from mosec_asgi.errors import ClientError, DecodingError, EncodingError, ServerError, ValidationError
from mosec_asgi.log import get_logger
from mosec_asgi.runtime import Runtime
from mosec_asgi.server import Server
from mosec_asgi.streaming import ContinuousWorker, Event, SSEWorker
from mosec_asgi.version import __version__
from mosec_asgi.worker import Worker

__all__ = [
    "ClientError",
    "ContinuousWorker",
    "DecodingError",
    "EncodingError",
    "Event",
    "Runtime",
    "SSEWorker",
    "Server",
    "ServerError",
    "ValidationError",
    "Worker",
    "__version__",
    "get_logger",
]
