"""Stages and routes -> the ASGI app, its lifespan, and `run()`.

Every worker loads this module with the package. So modules that only a server needs are imported where they are used:
above all asyncio, which loads ssl and took a third of the time of a worker's imports.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mosec_asgi import config, log
from mosec_asgi.checks import check_main_guard, check_no_loop, check_own_engine, checked_middleware, checked_tenant
from mosec_asgi.defined import DEFAULT_ROUTE, Defined
from mosec_asgi.entrance import Entrance
from mosec_asgi.errors import DefinitionError, StartupError
from mosec_asgi.lifetime import Block, GivenUp, Lifetime, Running
from mosec_asgi.route_checks import check_importable, check_timeouts
from mosec_asgi.runtime import Executor, Method, Runtime, StartMethod
from mosec_asgi.worker import Worker

if TYPE_CHECKING:
    import subprocess
    from types import TracebackType

    from starlette.middleware import Middleware
    from starlette.types import Receive, Scope, Send
    from typing_extensions import Unpack

    from mosec_asgi.calls.blocking import BlockingEngine
    from mosec_asgi.calls.inference import Inference
    from mosec_asgi.host.run import Hosting
    from mosec_asgi.keywords import Keywords
    from mosec_asgi.observing.statistics import ServiceReport
    from mosec_asgi.request import Request
    from mosec_asgi.service import Platform, WebProcesses
    from mosec_asgi.steering import Steering
    from mosec_asgi.web.direct import DirectRoutes
    from mosec_asgi.web.protocols.seam import Protocol
    from mosec_asgi.web_service import Web

# What a shell gives a program that ctrl-c has ended.
INTERRUPTED = 130
logger = log.internal_logger(__name__)


class Server:
    """A model server: the stages that were appended, served on their routes, as an ASGI app.

        server = Server()
        server.append_worker(Preprocess, num=2)
        server.append_worker(Inference, max_batch_size=32)

    Run it with `uvicorn app:server`, mount it into another app (with `lifespan=server.lifespan` there), call it through
    `httpx.ASGITransport(server)`, or run this program itself: `server.run()`.

    Constructing one has no side effect, so a module that defines one can be imported anywhere.
    """

    # Set while a command imports a service's module, so that `run()` there is refused.
    _only_imported: ClassVar[bool] = False

    def __init__(
        self,
        *,
        middleware: Sequence[Middleware] = (),
        tenant: Callable[[Request], str] | None = None,
        **settings: Unpack[Keywords],
    ) -> None:
        """Make a server without stages; nothing is started.

        Args:
            middleware: `starlette.middleware.Middleware` objects, the outermost first; each request goes through them,
                `/metrics` and the documents included. With middleware, `run()` serves all requests through ASGI, which
                takes longer.
            tenant: returns the name of the tenant that a request belongs to, empty for none; tenants take turns. It is
                called once for each HTTP request, on the event loop, in place of the setting `tenant_header`. See
                docs/batching.md.
            **settings: see `config.Settings`: capacity, timeout (milliseconds), wait (milliseconds), start_timeout
                (milliseconds), event_timeout (milliseconds), stall_timeout (milliseconds), stream_buffer (bytes),
                http_processes, engine, load_shedding, address, port, uds, ssl_certfile, ssl_keyfile, namespace,
                log_level, debug, dashboard, access_log, server_timing, tracing, dry_run, compression,
                max_request_size (bytes), strict_json, api_keys (a list), api_key_file, public (a list), cors_origins (a
                list), allowed_hosts (a list), title, version, path. The environment's `MOSEC_<NAME>` wins over
                them, but for `title` and `version`, and `run()`'s command line over both.

        Raises:
            DefinitionError: a name is not a setting, or a value does not fit.
        """
        self._keywords = config.check_keywords(settings)
        self._middleware = checked_middleware(middleware)
        self._tenant_of = checked_tenant(tenant)
        self._defined = Defined()
        self._daemons: dict[str, subprocess.Popen[Any] | BaseProcess] = {}
        self._lifetime = Lifetime(self._start)
        self._entrance = Entrance(self._lifetime, lambda: self.on_answering is not None)
        # Called with the name and the exit code of a daemon process that has ended.
        self.on_daemon_exit: Callable[[str, int], None] | None = None
        # Set by `run()` and `serve`: called once requests are answered, those to models by 503, while the workers load.
        # None under other ASGI servers, which open their port only when the workers are ready.
        self.on_answering: Callable[[], None] | None = None
        # Set by `run()` and the command `serve`; nothing else reads a command line.
        self._settings: config.Settings | None = None
        # This program is the service's own, and its workers import its main module.
        self._is_main = False
        # An older process of the service serves until this one is ready: `mosec-asgi serve --reload`.
        self._follows = False
        # Settings that win over the environment; set by tools of the command line.
        self._overrides: dict[str, Any] = {}
        # The service whose workers are loading.
        self._loading: Running | None = None
        # In a process with an engine, where web processes find it: set by `run()` and `run_engine`. And in a web
        # process that `run()` has forked, its connection to that engine.
        self._web_processes: WebProcesses | None = None
        self._web: Web | None = None
        # Set by `testing.serving`: workers in this process instead of their own.
        self._platform: Platform | None = None
        if type(self).__call__ is Server.__call__:
            # ASGI servers ask of `app.__call__` whether it is a coroutine function, and call the class's own.
            self.__dict__["__call__"] = self._entrance.serve

    def __repr__(self) -> str:
        return f"<Server {self._defined.routes}>"

    # -- defining ----------------------------------------------------------------------------------------------------

    def append_worker(
        self,
        worker: type[Worker],
        num: int | Literal["auto"] = 1,
        max_batch_size: int = 1,
        max_wait_time: int = 0,
        start_method: StartMethod = "spawn",
        env: list[dict[str, str]] | None = None,
        timeout: float = 0,
        route: str | list[str] = DEFAULT_ROUTE,
        *,
        max_attempts: int = 2,
        isolation_calls: int | None = None,
        concurrency: int = 1,
        preload: bool = False,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        executor: Executor = "process",
        latency_target: float = 0,
        methods: Sequence[Method] | None = None,
        max_calls: int = 0,
        max_memory: int = 0,
        devices: str | Sequence[str | int] | None = None,
        workers_per_device: int = 1,
        max_batch_cost: int = 0,
        refuse_over_cost: bool = False,
        sort_by_cost: bool = False,
        coalesce: bool = False,
        ray_actor_options: Mapping[str, Any] | None = None,
        placement: Any = None,
    ) -> None:
        """Append a stage to the pipeline of one route, or of several that then share its workers.

        Args:
            worker: a subclass of `Worker`.
            num: processes that run it, at least 1; with executor="ray" also "auto", see `Runtime`.
            max_batch_size: the most items that `forward` receives at once; 1 turns batching off.
            max_wait_time: milliseconds that a task may wait for its batch to fill, from its arrival at the stage. 0
                leaves it to the scheduler, within the setting `wait`.
            start_method: "spawn" or "fork".
            env: for each of the `num` workers, the environment variables to set before its process starts.
            timeout: seconds that one call of `forward` may take; 0 means the setting `timeout`.
            route: the path, or a list of paths. A path may have parameters, such as `/models/{name}`, if a worker of
                its pipeline sets `takes_request`.
            max_attempts: workers that a task may be given to before it is answered 500, because each of them died.
            isolation_calls: the most extra calls of `forward` to find which items of a batch made it fail; see
                `Runtime`.
            concurrency: for an asynchronous `forward`: items, or batches, that one process works on at a time.
            preload: make the worker once and fork all `num` processes from there, so that they share the memory of a
                model that runs on the CPU; see docs/preload.md.
            args: what the worker's `__init__` is called with, by place, in each process; such as the path of a model.
            kwargs: the same by name.
            executor: what the workers run on: "process", "thread", or "ray" for actors of Ray; see `Runtime`.
            latency_target: milliseconds that a task should spend at this stage at most; calls that would wait and
                spend longer there are refused with 429, and batches are no larger than that allows. 0 for no target.
            methods: the HTTP methods of the route, given for its first stage; None for POST alone. See `Runtime`.
            max_calls: calls that a worker answers before another takes its place; no call is lost. 0 for no limit.
            max_memory: bytes of resident memory above which a worker is replaced in the same way; 0 for no limit.
            devices: GPUs, one for each worker: "auto" for all that are found, or a list such as ["0", "1"]. It is given
                in place of `num`; see `Runtime`.
            workers_per_device: workers that share each of the devices.
            max_batch_cost: the most that the items of a batch may cost together, by the worker's `cost(item)`; 0 for no
                bound. See docs/batching.md for this and the next three.
            refuse_over_cost: refuse an item that costs more with 413; otherwise it runs alone.
            sort_by_cost: form batches of items of like cost, for a model that pads them to the longest.
            coalesce: run `forward` once for equal inputs that wait or run at the same time.
            ray_actor_options: with executor="ray", the options of each actor, such as `{"num_gpus": 1}`.
            placement: with executor="ray", "SPREAD", "PACK" or a placement group of Ray; see docs/ray.md.

        Raises:
            DefinitionError: an argument does not fit, or the workers have been started; the text says what to change.
        """
        self._check_not_started("append_worker")
        runtime = Runtime(
            worker,
            num,
            max_batch_size,
            max_wait_time,
            timeout,
            start_method,
            env,
            max_attempts=max_attempts,
            isolation_calls=isolation_calls,
            concurrency=concurrency,
            preload=preload,
            args=args,
            kwargs=kwargs,
            executor=executor,
            latency_target=latency_target,
            methods=methods,
            max_calls=max_calls,
            max_memory=max_memory,
            devices=devices,
            workers_per_device=workers_per_device,
            max_batch_cost=max_batch_cost,
            refuse_over_cost=refuse_over_cost,
            sort_by_cost=sort_by_cost,
            coalesce=coalesce,
            ray_actor_options=ray_actor_options,
            placement=placement,
        )
        self._defined.append(runtime, route)

    def register_runtime(self, routes: dict[str, list[Runtime]]) -> None:
        """Define all pipelines at once: `{"/path": [Runtime(...), ...], ...}`.

        A `Runtime` that stands on several routes is one stage whose workers are shared.

        Raises:
            DefinitionError: a route or a runtime does not fit, or stages have been defined before.
        """
        self._check_not_started("register_runtime")
        self._defined.register(routes)

    def add_protocol(self, protocol: Protocol) -> None:
        """Serve another protocol beside the plain routes: `server.add_protocol(OpenAI(chat={"name": "/route"}))`.

        The plain routes do not change, and a batch may hold requests of all protocols. docs/protocols.md lists the
        protocols, and says how to write another one.

        Args:
            protocol: such as `mosec_asgi.protocols.OpenAI`. The routes that it names may be defined before or after
                this call.

        Raises:
            DefinitionError: it is no protocol, a path of it is taken, or the workers have been started.
        """
        self._check_not_started("add_protocol")
        self._defined.add_protocol(protocol)

    def register_daemon(self, name: str, proc: subprocess.Popen[Any] | BaseProcess) -> None:
        """Watch a process that the service cannot do without.

        When it ends, whatever its exit code, `run()` stops the service and exits with a non-zero code; under another
        ASGI server its end is logged as an error.

        Args:
            name: what the logs call it.
            proc: a `subprocess.Popen` or a `multiprocessing.Process` that has been started.

        Raises:
            DefinitionError: `proc` is not a process, or the workers have been started.
        """
        self._check_not_started("register_daemon")
        if not isinstance(name, str):
            raise DefinitionError(f"a daemon's name is text, not {name!r}")
        import subprocess

        if not isinstance(proc, (subprocess.Popen, BaseProcess)):
            raise DefinitionError(
                f"daemon {name}: {proc!r} is not a process; pass a subprocess.Popen or a multiprocessing.Process"
            )
        self._daemons[name] = proc

    def openapi(self, root_path: str = "") -> dict[str, Any]:
        """Return the OpenAPI 3.1 document of the service, as `GET /openapi/metadata.json` shows it.

        A subclass whose answers differ can override this to describe them.

        Args:
            root_path: the path below which the service is mounted in another app, or put by a proxy; empty for none.

        Raises:
            DefinitionError: there is no stage to serve.
        """
        self._defined.check()
        from mosec_asgi.definition import openapi_document
        from mosec_asgi.web.openapi import server_url, with_server

        settings = self._settings or config.resolve(self._keywords)
        document = openapi_document(self._defined.routes, settings, self._defined.protocols)
        return with_server(document, server_url(root_path))

    # -- serving -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, as `python server.py --port 8000` does; `--help` lists the settings.

        Returns after a graceful stop. Exits with a non-zero code when the port is taken, a stage cannot start, a daemon
        process ends, or a second ctrl-c forces the end.

        Raises:
            DefinitionError: there is no stage to serve, or worker processes cannot import one.
            RuntimeError: a worker process has imported the program, whose call of `run` is not below
                `if __name__ == "__main__":`; or an event loop runs in this thread.
        """
        check_main_guard("server.run() was called")
        if Server._only_imported:
            raise DefinitionError(
                "server.run() was called while the module was imported. Put the call under "
                '`if __name__ == "__main__":`, so that only the program itself runs it'
            )
        try:
            self._defined.check()
            check_importable(self._defined.routes)
            check_no_loop()
            self._is_main = True
            code = self._run(lambda: config.from_command_line(self._keywords))
        except StartupError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            # While modules are imported, or in a dry run: no request is lost, and nothing needs to be logged.
            code = INTERRUPTED
        if code:
            sys.exit(code)

    def _run(self, settings_of: Callable[[], config.Settings], hosting: Hosting | None = None) -> int:
        """Serve, or run dry, and return the exit code.

        Args:
            settings_of: returns the settings.
            hosting: how the program hosts the service; None for a plain run.
        """
        from mosec_asgi.host import dry_run, run, standard_streams

        standard_streams.open_missing()
        self._settings = settings = settings_of()
        log.configure(settings.effective_log_level, text=settings.debug, others=("uvicorn", "asyncio"))
        config.advise(settings)
        check_timeouts(self._defined.routes, settings.timeout_seconds)
        if settings.dry_run:
            return dry_run.run(self._defined.routes, settings, import_main=self._is_main)
        self._follows = hosting is not None and hosting.follows
        hosting = hosting or run.Hosting()
        if settings.http_processes > 1 and hosting.handover is None:
            check_own_engine(settings)
            from mosec_asgi.host import web_processes

            return web_processes.run(self, settings, hosting, self._as_web_process, self._lifetime.force_stop)
        # Logged by the first process only, and not again after each edit.
        if settings.http_processes > 1 and not hosting.follows:
            logger.warning(
                "http_processes=%d has no effect with --reload, under which one web process serves; for several, serve "
                "without --reload",
                settings.http_processes,
            )
        return run.run(self, settings, hosting)

    def _as_web_process(self, web: Web) -> None:
        """Make this server, in a forked process, one of the web processes of its program."""
        self._web, self._web_processes, self._settings = web, None, web.settings

    def take_web_processes(self, web: WebProcesses) -> None:
        """Take calls from web processes, too; `web` says where they connect."""
        self._web_processes = web

    def run_engine(self, settings: config.Settings, path: str) -> int:
        """Run the models for web processes that connect to a Unix socket; return the exit code.

        Args:
            settings: of the service.
            path: of the socket.

        Raises:
            DefinitionError: there is no stage to serve, or worker processes cannot import one.
        """
        self._defined.check()
        check_importable(self._defined.routes)
        from mosec_asgi.host import engine, standard_streams

        standard_streams.open_missing()
        self._settings = settings
        log.configure(settings.effective_log_level, text=settings.debug, others=("asyncio",))
        config.advise(settings)
        check_timeouts(self._defined.routes, settings.timeout_seconds)
        self.take_web_processes(engine.AtPath(path))
        return engine.run(self, self._lifetime.force_stop)

    def serve(self, settings: config.Settings, hosting: Hosting | None = None) -> int:
        """Serve as `run()` does, for a program that has imported the service's module, such as `mosec-asgi serve`.

        Args:
            settings: of the service; see `settings_with`.
            hosting: how the program hosts the service, under `--reload` for example; None for a plain run.

        Returns:
            the exit code.

        Raises:
            DefinitionError: there is no stage to serve, or worker processes cannot import one.
            StartupError: it cannot listen where the settings say.
        """
        self._defined.check()
        check_importable(self._defined.routes)
        return self._run(lambda: settings, hosting)

    def settings_with(self, command_line: Mapping[str, Any]) -> config.Settings:
        """Return the settings of the service; values of `command_line`, by name, win over all others."""
        return config.resolve(self._keywords, None, command_line)

    def announce_end(self) -> None:
        """Announce the stop: `/readyz` answers 503 from here on, while requests are still admitted.

        A load balancer that asks `/readyz` then sends its requests elsewhere. `close` ends the admission.
        """
        self._lifetime.announce_end()

    def close(self) -> None:
        """Admit no more requests: `/readyz` and new requests answer 503 from here on, and admitted ones finish."""
        self._lifetime.close()

    def lifespan(self, app: object = None) -> contextlib.AbstractAsyncContextManager[None]:
        """Start the workers, and stop them at the end: `FastAPI(lifespan=server.lifespan)`.

        SIGTERM or ctrl-c while the workers load ends the start at once, if the program handles the signal, as ASGI
        servers do. The block is then entered without workers: the program is about to stop, and requests get 503.

        Args:
            app: the app that this server is mounted in; not used.

        Raises:
            StartupError: a stage could not be started.
        """
        return Block(self._lifetime)

    async def __aenter__(self) -> Server:
        """Start the workers: `async with server: result = await server.infer(item)`, in a script or a notebook.

        Blocks may be nested, or run at the same time; the end of the last one stops the workers.

        Raises:
            StartupError: a stage could not be started.
        """
        try:
            await self._lifetime.enter()
        except GivenUp as error:
            raise StartupError("the service was told to stop while its workers were loading") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Finish what was admitted, and stop the workers."""
        await self._lifetime.leave()

    # Not a coroutine function, for two reasons: an error is raised at the call, and no coroutine is made beside the
    # app's own, which is returned. ASGI servers that look for a coroutine function find `Entrance.serve`: `__init__`.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer a request, or follow the life of the app; ASGI's entry point.

        Raises:
            DefinitionError: it is called as a lifespan, with an app alone.
        """
        if send is None:
            raise DefinitionError(
                f"the server itself was given where a lifespan is wanted: it was called with a {type(scope).__name__} "
                f"alone; write {type(scope).__name__}(lifespan=server.lifespan)"
            )
        if scope["type"] == "http":
            running = self._lifetime.running
            if running is not None and running.is_here():
                return running.app(scope, receive, send)
        return self._entrance.serve(scope, receive, send)

    # So that a call with one argument reaches the error above. Not in the signature, which subclasses must match.
    __call__.__defaults__ = (None, None)

    # -- calls from the program itself -------------------------------------------------------------------------------

    # Not a coroutine function: it returns the coroutine of `Inference.infer`, which saves a second one for each call.
    def infer(
        self,
        item: Any,
        route: str = DEFAULT_ROUTE,
        *,
        timeout: float | None = None,
        priority: int = 0,
        key: str = "",
        tenant: str = "",
        request_id: str | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Run one item through a pipeline: the first worker's `forward` gets it, and the last one's result is returned.

        Objects are passed as they are, without JSON or another format: `deserialize` of the first worker and
        `serialize` of the last one are not called, nor is a mixin's `serialize_ipc`. Objects are pickled; arrays and
        other large buffers (64 KiB and more) pass through shared memory, and are copied once on the way in. A worker
        that checks its input (`PydanticMixin`, `TypedMsgPackMixin`) takes its model, or plain data, which it checks.
        The item may share a batch with requests over HTTP.

        A large array in the result stays in the worker's shared memory until the last reference to it has gone. It may
        be changed. Copy what you keep for long: while that memory (the setting `shared_memory`) is full, the worker's
        large results go through a pipe, which is slower.

        Cancelling the coroutine, or closing it, drops the call, wherever it is.

        Args:
            item: any object that can be pickled, of a class that the workers can import.
            route: the path of the pipeline.
            timeout: milliseconds until it fails with 408; the setting `timeout` counts where that is shorter, or this
                is None.
            priority: from -10 to 10; of the tasks that wait, the one with the higher priority starts first. One step
                is worth a second of waiting, or a quarter of the setting `timeout` where that is less.
            key: items of the same key may share a batch, where the first worker's class has a `batch_key`; empty for
                the key that `batch_key` returns.
            tenant: the tenant that the call belongs to, empty for none; tenants take turns. See docs/batching.md.
            request_id: its name in the logs, up to 128 printable ASCII characters; for None, or another text, one is
                made.

        Raises:
            MosecError: the call has failed. `code` is the status that an HTTP client would get: 400 or 422, the worker
                refused the item; 408, not in time; 429, too many calls; 500, an error of the worker; 503, no worker, or
                a shutdown. `retry_after` is the number of seconds after which to try again, or None. A `CallError`,
                which is a `MosecError`, is a fault of the calling program: the route does not exist, or it streams; the
                server does not run, or runs on another event loop. An `EncodingError` means that the item or the result
                cannot be pickled.
        """
        running = self._running
        if running is None or not running.is_here():
            return self._nowhere()
        return running.calls.infer(item, route, timeout, priority, key, tenant, request_id)

    async def _nowhere(self) -> Any:
        """Fail when it is awaited, as a call does that can be made."""
        self._calls()

    def stream(
        self,
        item: Any,
        route: str = DEFAULT_ROUTE,
        *,
        timeout: float | None = None,
        priority: int = 0,
        key: str = "",
        tenant: str = "",
        request_id: str | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Run one item on a route that streams, and yield its events: `async for event in server.stream(item)`.

        An event is what the worker yields, or passes to `send_stream_event`: text, bytes, an `Event`, or any other
        object that can be pickled. The call is made when the first event is asked for. The worker waits while
        `stream_buffer` bytes (a setting) of events have not been taken. Leaving the loop, cancelling it, or `aclose`
        ends the stream in the worker.

        Args:
            item: see `infer`.
            route: the path of the pipeline.
            timeout: milliseconds until the first event; see `infer`.
            priority: see `infer`.
            key: see `infer`.
            tenant: see `infer`.
            request_id: see `infer`.

        Raises:
            MosecError: see `infer`. A `CallError` is raised at once; all others, by the iterator, where they happen.
        """
        return self._calls().stream(item, route, timeout, priority, key, tenant, request_id)

    def _calls(self) -> Inference:
        running = self._running
        if running is None or not running.is_here():
            from mosec_asgi.calls.running import not_here

            raise not_here(running)
        return running.calls

    def engine(self) -> BlockingEngine:
        """Return the engine for code that blocks: `with server.engine() as engine: engine.infer(item)`.

        It has `infer`, `stream` and `map`, which may be called in any thread. If the server runs already, in an app for
        example, they call it there. If it does not, the block starts the workers, and stops them at its end; where
        several threads have such blocks, the end of the last one stops them.
        """
        from mosec_asgi.calls.blocking import BlockingEngine

        return BlockingEngine(self, lambda: self._running)

    # -- changes while it serves -------------------------------------------------------------------------------------

    async def scale(self, stage: str | int, num: int) -> None:
        """Change the number of workers of a stage while it serves; no call is lost.

        Returns when the additional workers are ready, or when the surplus ones have answered their tasks and ended.
        Calls of `scale`, `configure` and `restart` for one stage are carried out one after the other. The change holds
        until the service stops.

        Args:
            stage: its name, such as "Inference_2", as `/metrics` and the logs call it; or its number there, from 1.
            num: workers, at least 1, and at most the setting `max_workers`. A stage whose workers have environments of
                their own (`env`) can have as many as there are of these.

        Raises:
            DefinitionError: there is no such stage, or `num` does not fit; nothing is changed.
            StartupError: an additional worker could not be started, or the service stops; the number is as before.
            CallError: the service does not run on this event loop.
        """
        await self._steering().scale(stage, num)

    async def configure(
        self,
        stage: str | int,
        *,
        max_batch_size: int | None = None,
        max_wait_time: int | None = None,
        timeout: float | None = None,
        latency_target: float | None = None,
    ) -> None:
        """Change values of a stage while it serves, in the units of `append_worker`; no call is lost.

        `max_wait_time` (milliseconds) and `latency_target` (milliseconds) hold at once. For a new `max_batch_size` or
        `timeout` (seconds) the workers are replaced as by `restart`: a model may have been loaded for the old value.

        Args:
            stage: see `scale`.
            max_batch_size: the most items in a batch. It cannot be changed from 1 to more, or from more to 1, because
                `forward` takes either single items or lists.
            max_wait_time: milliseconds that a task may wait for its batch; 0 leaves it to the scheduler.
            timeout: seconds that one call of `forward` may take; 0 means the setting `timeout`.
            latency_target: milliseconds that a task should spend at the stage; 0 for no target.

        Raises:
            DefinitionError: there is no such stage, or a value does not fit; nothing is changed.
            StartupError: a worker could not be started with these values, or the service stops; all values are as
                before.
            CallError: see `scale`.
        """
        await self._steering().configure(
            stage,
            max_batch_size=max_batch_size,
            max_wait_time=max_wait_time,
            timeout=timeout,
            latency_target=latency_target,
        )

    async def restart(self, stage: str | int | None = None) -> None:
        """Replace the workers of a stage, or of all stages, one after the other; no call is lost.

        Each replacement is loaded and warmed up before its predecessor stops taking calls, so for a while there is one
        more worker, and one more model in memory. A replacement imports the worker's module anew, and so gets edited
        code and new weights; with `preload` it is forked from what was loaded at the start.

        Args:
            stage: see `scale`; None for all.

        Raises:
            DefinitionError: there is no such stage.
            StartupError: a replacement could not be started, or the service stops; its predecessor and the workers
                after it go on serving.
            CallError: see `scale`.
        """
        await self._steering().restart(stage)

    def _steering(self) -> Steering:
        running = self._running
        if running is None or not running.is_here():
            from mosec_asgi.calls.running import not_here

            raise not_here(running)
        return running.steering

    def statistics(self) -> ServiceReport:
        """Return the state of the service, and what it has counted and measured since its start.

        May be called in any state of the server and from any thread. `server.statistics().as_dict()` is the same for
        JSON. What happened in a period is the difference of two reports; see `mosec_asgi.observing.statistics`.
        """
        from mosec_asgi.observing.statistics import ServiceReport

        service = self._lifetime.running or self._loading
        return service.report() if service is not None else ServiceReport()

    def direct_routes(self) -> DirectRoutes | None:
        """Return the routes whose requests `run()` may answer without ASGI, if there are any; see `web.direct`."""
        # Also while the workers load: a connection asks once, and may last for long.
        service = self._lifetime.running or self._lifetime.answering
        return service.direct_routes if service is not None and self.why_not_direct() is None else None

    def why_not_direct(self) -> str | None:
        """Return why `run()` must pass all requests through ASGI; None if it need not."""
        if self._middleware:
            return "the server has middleware"
        if type(self).__call__ is not Server.__call__:
            return f"{type(self).__name__} overrides __call__"
        for name in ("cors_origins", "allowed_hosts"):
            if self._settings is not None and getattr(self._settings, name):
                return f"the setting {name} is set"
        return None

    @property
    def _running(self) -> Running | None:
        return self._lifetime.running

    # -- its life ----------------------------------------------------------------------------------------------------

    async def _start(self) -> Running:
        from mosec_asgi.front import Shown
        from mosec_asgi.host.interrupts import told_of_signals

        self._defined.check()
        settings = self._settings or config.resolve(self._keywords, None, self._overrides)
        log.configure(settings.effective_log_level, text=settings.debug)
        if self._settings is None:
            # `run()` has already made these checks.
            config.advise(settings)
            check_timeouts(self._defined.routes, settings.timeout_seconds)
            if self._platform is None:
                check_main_guard("the server was started")
                check_importable(self._defined.routes)
        shown = Shown(
            self._defined.routes,
            self.openapi,
            self._middleware,
            self._defined.protocols,
            own_http=self._settings is not None,
            simulated=self._platform is not None,
            tenant_of=self._tenant_of,
        )
        running: Running
        if self._platform is None and (self._web is not None or settings.engine):
            from mosec_asgi.web_service import WebService

            running = WebService(shown, settings, self._web)
        else:
            from mosec_asgi.service import Service

            if self._settings is None and self._platform is None:
                # An ASGI server of another kind runs this.
                self._advise_of_processes(settings)
            running = Service(
                shown,
                settings,
                import_main=self._is_main,
                follows=self._follows,
                platform=self._platform,
                web=self._web_processes,
            )

        def answering() -> None:
            if self.on_answering is not None:
                self._lifetime.answering = running
                self.on_answering()

        self._loading = running
        try:
            with told_of_signals(self.close):
                await running.start(answering)
        finally:
            self._loading = None
        for name, process in self._daemons.items():
            running.watch_daemon(name, process, self._on_daemon_exit)
        return running

    def _advise_of_processes(self, settings: config.Settings) -> None:
        from mosec_asgi.host.siblings import warn_of_siblings

        pipelines = self._defined.routes.values()
        runtimes = {id(runtime): runtime for pipeline in pipelines for runtime in pipeline}
        warn_of_siblings(self._defined.routes, sum(runtime.num for runtime in runtimes.values()))
        if settings.http_processes > 1:
            logger.warning(
                "http_processes=%d has no effect here: it counts under server.run() and `mosec-asgi serve`; with "
                "another ASGI server start `mosec-asgi engine`, and as many processes of that server with MOSEC_ENGINE",
                settings.http_processes,
            )

    def _on_daemon_exit(self, name: str, code: int) -> None:
        if self.on_daemon_exit is not None:
            self.on_daemon_exit(name, code)
        else:
            logger.error("the daemon process %s has ended with code %d", name, code)

    def _check_not_started(self, method: str) -> None:
        """Refuse to define what a service that runs, or is being started, would never know of."""
        if self._lifetime.is_here:
            raise DefinitionError(
                f"the workers have been started, so {method} comes too late; call it before the server is run"
            )
