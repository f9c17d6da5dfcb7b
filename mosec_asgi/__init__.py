"""mosec_asgi: model serving for the ASGI world.

General layout, in layers from F8, the highest, to F0; a module imports only from its own layer and those below it:

    cli/, __main__.py       F8  the command `mosec-asgi`: one module a command
    testing/                F8  a service on virtual time with scripted workers; the simulation of random histories
    server.py               F7  Server: stages and routes -> the ASGI app, its lifespan, run()
    offline/                F7  the command `map`: a model over a file
    tuning/                 F7  the command `tune`: settings for a target, by measurement and simulation
    defined.py              F6  what a server is to serve, checked as it is added
    definition.py           F6  what was defined, as plans and as data
    lifetime.py             F6  started once for all that need it, and stopped once
    entrance.py             F6  the server as an ASGI app: lifespan, and requests to a service that does not run yet
    checks.py               F6  what a server refuses of where it is run, and of its middleware
    service.py              F6  a service that runs: engine, app, metrics on one event loop
    web_service.py          F6  one whose engine is another process: the web side
    front.py                F6  what callers of either meet: app, calls, protocols' ports
    steering.py             F6  changes while it serves: scale, configure, restart
    following.py            F6  stages on Ray that follow the cluster's size
    admin.py                F6  the Unix socket by which these are asked for
    calls/                  F6  calls from the program itself: infer, stream, engine(), map
    host/                   F6  run() under uvicorn, signals, the dry run
    protocols.py            F6  public names of protocols: OpenAI, and what one's own is made of
    remote/                 F5  the engine and its callers in different processes
    web/                    F5  HTTP in, HTTP out; the OpenAPI document; uvicorn/: HTTP/1.1 and HTTP/2 under run()
    batching/               F4  the engine: admission, queues, batches, deadlines; engine: what its callers may ask
    pool/                   F3  the live workers of a stage; process/: workers that are processes
    inside/                 F3  what runs in a worker, whatever the worker runs on
    ipc/                    F2  bytes between the server and a worker process
    observing/              F1  metrics, their Prometheus text, metrics of users' workers
    worker.py, runtime.py   F1  what users subclass and configure
    route_checks.py         F1  whether the stages of a route, and the routes, fit together
    ray_options.py          F1  what a stage asks of Ray, where its workers run there
    streaming.py, events.py F1  the same for streams: ContinuousWorker; Event and its form on the wire
    hints.py                F1  what a type checker is told of a worker
    stops.py                F1  a text that is written, up to where it stops
    mixin/, formats.py      F1  formats other than the default; what they share
    annotations.py          F1  what forward takes and returns
    schema.py               F1  the same as JSON Schema
    messages.py             F0  the messages between the layers: calls, outcomes, tasks, results
    labels.py               F0  the cost and the key of an item
    call_order.py           F0  what a call asks of its place among others: priority, key, tenant
    request.py, reply.py    F0  what a worker may know of a request, and set of its response
    paths.py                F0  routes as users write them
    config.py               F0  settings: keyword < MOSEC_* environment < command line
    keywords.py             F0  the same as keywords, for editors and type checkers
    log.py, errors.py       F0  log lines; the error tree, and each status that the service answers
    protocol.py             F0  mosec's import path of a part of it
    log_output.py           F0  where log lines go: standard error, without waiting for its reader
    ration.py, rationing.py F0  of the lines that clients cause, no more than a disk can take
    fault_kind.py           F0  when two faults are the same
    lazy_timer.py           F0  a timer of the event loop that is moved often
    within.py               F0  waiting for a time, without losing a cancellation
    version.py              F0

CONTRIBUTING.md has the map with all modules.

Importing this package, as every spawned worker does, loads none of starlette, uvicorn, pydantic or prometheus_client.
"""

from mosec_asgi.errors import ClientError, DecodingError, EncodingError, MosecError, ServerError, ValidationError
from mosec_asgi.log import get_logger
from mosec_asgi.reply import Reply
from mosec_asgi.request import Request
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
    "MosecError",
    "Reply",
    "Request",
    "Runtime",
    "SSEWorker",
    "Server",
    "ServerError",
    "ValidationError",
    "Worker",
    "__version__",
    "get_logger",
]
