"""Starts workers as operating system processes, each with its pipe, its environment and its share of memory."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import socket
import stat
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from typing import Any

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.inside.counting import share_after_fork
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.ipc.progress import ProgressPage
from mosec_asgi.ipc.shm import Share, SharedMemory
from mosec_asgi.observing.custom import CustomMetrics
from mosec_asgi.pool.link import WorkerEvents
from mosec_asgi.pool.process.child import main
from mosec_asgi.pool.process.edited import SourceFiles
from mosec_asgi.pool.process.group import forking_a_worker, interrupt_held
from mosec_asgi.pool.process.link import ProcessLink
from mosec_asgi.pool.process.preload import ForkedProcess, Template
from mosec_asgi.pool.process.spare import SPARE
from mosec_asgi.pool.process.watched import WatchedProcess, forget_all

logger = log.internal_logger(__name__)
# The environment and the main module are the whole process's: workers of several event loops are started in turn.
_launching = threading.Lock()


def _begin_anew() -> None:
    """Let a process start workers that was forked while another thread did."""
    global _launching
    _launching = threading.Lock()


os.register_at_fork(after_in_child=_begin_anew)


class ProcessLauncher:
    """Starts workers as processes by `multiprocessing`, on one event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        start_method: str,
        *,
        import_main: bool = False,
        memory: SharedMemory | None = None,
        preload: bool = False,
        counts: CustomMetrics | None = None,
        defaults: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare; nothing is started.

        Args:
            loop: the loop that watches the processes.
            start_method: "spawn" or "fork".
            import_main: let spawned workers import the program's main module even where their class is defined
                elsewhere. Right for a user's script, which may set things up there; wrong for `uvicorn` and the like,
                where it would load a web server into every worker.
            memory: to share with the workers for large payloads, where there is any.
            preload: load the worker once and fork its processes from there; for one stage, and to be ended by `close`.
            counts: the directory of the workers' own metrics, if those are shown.
            defaults: environment variables of all workers, unless they have others of these names.
        """
        self._defaults = defaults or {}
        self._loop = loop
        self._start_method = start_method
        self._import_main = import_main
        self._memory = memory
        self._counts = counts
        # The source files that a spawned process imports, as they are now.
        self._sources = SourceFiles()
        self._template = Template(self._sources) if preload else None
        self._leave: Callable[[], object] | None = None

    def close(self) -> None:
        """End the template, once all workers have ended. Idempotent."""
        if self._leave is not None:
            self._leave()
        if self._template is not None:
            self._template.close()

    def launch(self, spec: WorkerSpec, variables: Mapping[str, str], events: WorkerEvents) -> ProcessLink:
        """Start a worker process; see `Launcher.launch`. A metrics directory that the user has set is left alone."""
        with SPARE.given_up():
            link = self._launch(spec, variables, events)
            if self._leave is None:
                SPARE.join()
                # Idempotent, and done as well for a launcher that nobody has closed.
                self._leave = weakref.finalize(self, SPARE.leave)
            return link

    def _launch(self, spec: WorkerSpec, variables: Mapping[str, str], events: WorkerEvents) -> ProcessLink:
        spawn = self._start_method == "spawn"
        if spawn:
            _check_importable(spec)
        variables = {**self._defaults, **variables}
        if self._counts is not None:
            spec = replace(spec, metrics_directory=self._counts.private)
            variables = {**self._counts.variables, **variables}
        who = f"worker {spec.worker_id} of {spec.stage}"
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise StartupError(f"no pipe for {who}: {error}") from error
        try:
            page = ProgressPage()
        except OSError as error:
            ours.close()
            theirs.close()
            raise StartupError(f"no shared page for {who}: {error}") from error
        memory = self._memory.open_worker() if self._memory is not None else None
        hide_main = spawn and not self._import_main and spec.worker.__module__ != "__main__"
        try:
            with _launching, environment(variables), _main_hidden(hide_main), _children_allowed():
                process = self._start((spec, theirs, page, memory and memory.share))
        except Exception as error:
            ours.close()
            page.close()
            if memory is not None:
                memory.close()
            raise StartupError(f"{who} cannot be started: {error}") from error
        finally:
            theirs.close()
        return ProcessLink(
            WatchedProcess(process),
            ours,
            page,
            memory,
            events,
            self._loop,
            busy_polls=usable_cores() > 1,
            on_gone=self._gone,
        )

    def _gone(self, pid: int) -> None:
        """Note the end of a process, whose descriptors are about to be free."""
        if self._counts is not None:
            self._counts.ended(pid)
        self._loop.call_soon(SPARE.fill)

    def _start(self, arguments: tuple[Any, ...]) -> BaseProcess | ForkedProcess:
        """Start a process that runs `main` with `arguments`."""
        if self._template is not None:
            return self._template.fork(arguments)
        spec: WorkerSpec = arguments[0]
        if self._start_method == "spawn":
            self._sources.warn_of_edits(spec)
        process: BaseProcess = multiprocessing.get_context(self._start_method).Process(  # type: ignore[attr-defined]
            target=main if self._start_method == "spawn" else _main_after_fork,
            args=arguments,
            name=f"mosec_asgi {spec.stage} {spec.worker_id}",
            daemon=False,
        )
        if self._start_method == "spawn":
            with interrupt_held():
                process.start()
        else:
            with forking_a_worker():
                process.start()
        return process


def usable_cores() -> int:
    """Return on how many processors this process and its children may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_importable(spec: WorkerSpec) -> None:
    """Raise `StartupError` if a spawned process could not import the worker's class."""
    worker = spec.worker
    try:
        pickle.dumps(worker)
    except Exception as error:
        raise StartupError(
            f"the worker class {worker.__qualname__} of stage {spec.stage} cannot be sent to a spawned process: "
            f"{error}. Define it at the top level of a module, under its own name, or use start_method='fork'"
        ) from error


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the time of a block, then restore the old values."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@contextmanager
def _main_hidden(hidden: bool) -> Iterator[None]:
    """Keep `multiprocessing` from importing the main module in the child, for the time of a block.

    `spawn` sends the child the main module's name or file, and no option prevents that. In an empty module it finds
    neither, and goes on without.
    """
    main_module = sys.modules.get("__main__")
    if not hidden or main_module is None:
        yield
        return
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main_module


@contextmanager
def _children_allowed() -> Iterator[None]:
    """Let a daemonic process have children, for the time of a block.

    `multiprocessing` forbids it, because the children of a daemonic process that it kills live on; our workers end with
    their server, however that ends. hypercorn runs apps in daemonic processes.
    """
    # Not public. Without it, a daemonic process cannot start workers, and Python's own message says so.
    settings: dict[str, Any] = getattr(multiprocessing.process.current_process(), "_config", {})
    daemonic = settings.pop("daemon", None)
    try:
        yield
    finally:
        if daemonic is not None:
            settings["daemon"] = daemonic


def _main_after_fork(spec: WorkerSpec, sock: socket.socket, page: ProgressPage, share: Share | None) -> None:
    """Close the server's sockets that a forked worker has inherited, then run the worker.

    Open here, they would keep the server's port bound after its death, keep its clients' connections alive after it has
    closed them, and keep the other workers from noticing the server's end. Each is replaced rather than closed: objects
    in the copied memory still own the numbers, and would later close another file that has the same number.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in _open_descriptors():
        if descriptor > 2 and descriptor not in (sock.fileno(), null):
            _replace_if_socket(descriptor, null)
    os.close(null)
    forget_all()
    share_after_fork()
    main(spec, sock, page, share)


def _open_descriptors() -> list[int]:
    for folder in ("/proc/self/fd", "/dev/fd"):
        if os.path.isdir(folder):
            return [int(name) for name in os.listdir(folder)]
    return list(range(3, os.sysconf("SC_OPEN_MAX")))


def _replace_if_socket(descriptor: int, null: int) -> None:
    try:
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            os.dup2(null, descriptor, inheritable=False)
    except OSError:
        # Closed meanwhile: the listing includes its own descriptor.
        return
