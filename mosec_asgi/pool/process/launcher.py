"""A worker as an operating system process: launched with its pipe and environment, watched, killed, reaped.

The rest of the house knows a worker only as a `Handle` and a channel, made by a `Launcher`, so that something else can
stand in for the process.
"""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import multiprocessing.util
import os
import pickle
import socket
import stat
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.inside.counting import share_after_fork
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.ipc.channel import Channel, Seen
from mosec_asgi.ipc.frames import Frame
from mosec_asgi.ipc.progress import ProgressPage
from mosec_asgi.ipc.shm import Share, SharedMemory, WorkerMemory
from mosec_asgi.messages import Progress
from mosec_asgi.pool.process.child import main
from mosec_asgi.pool.process.preload import ForkedProcess, Template

logger = log.internal_logger(__name__)


class Handle(Protocol):
    """A running worker, as its supervisor knows it."""

    @property
    def pid(self) -> int | None:
        """The process's number, for the logs."""

    @property
    def memory(self) -> WorkerMemory | None:
        """The account of what it shares with the server for large payloads; None where all go through its pipe."""

    def progress(self) -> Progress:
        """How far it has come; known until it has been reaped."""

    def kill(self) -> None:
        """End it now, without asking. Idempotent."""

    def reap(self, timeout: float) -> None:
        """Wait for it to end, without a loop; kill it after `timeout` seconds."""

    def describe_exit(self) -> str:
        """Say how it ended, once it has."""


class Pipe(Protocol):
    """A worker's pipe, as its supervisor knows it; see `ipc.channel.Channel`."""

    def send(self, data: bytes) -> None:
        """Send a frame."""

    def busy_poll(self, seconds: float) -> Seen:
        """Look for what the worker sends for so long, unless other work has come, and take it in."""

    def drain(self) -> None:
        """Take in what the worker has sent before its end."""

    def finish(self) -> None:
        """Ask the worker to stop by ending the stream towards it."""

    def close(self) -> None:
        """Let go of the pipe."""


class Launcher(Protocol):
    """Starts workers."""

    def launch(
        self,
        spec: WorkerSpec,
        variables: Mapping[str, str],
        on_frame: Callable[[Frame], None],
        on_closed: Callable[[str], None],
        on_exit: Callable[[], None],
    ) -> tuple[Handle, Pipe]:
        """Start a worker.

        Args:
            spec: what it is to run.
            variables: environment variables to set before it starts.
            on_frame: called with each frame from it.
            on_closed: called once, with the reason, if its pipe ends by its doing.
            on_exit: called once when it has ended and left nothing behind.

        Raises:
            StartupError: it cannot be started; the text names the cause and the remedy.
        """


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
    ) -> None:
        """Prepare; nothing is started.

        Args:
            loop: the loop that watches the processes.
            start_method: "spawn" or "fork".
            import_main: let spawned workers import the program's main module even where their class is defined
                elsewhere. Right for a user's script, which may set things up there; wrong for `uvicorn` and the like,
                where it would load a web server into every worker.
            memory: to share with the workers for large payloads, where there is any.
            preload: load the worker once and fork its processes from there, for one stage; `close` it in the end.
        """
        self._loop = loop
        self._start_method = start_method
        self._import_main = import_main
        self._memory = memory
        self._template = Template() if preload else None

    def close(self) -> None:
        """End what workers are forked from, once there are none. Idempotent."""
        if self._template is not None:
            self._template.close()

    def launch(
        self,
        spec: WorkerSpec,
        variables: Mapping[str, str],
        on_frame: Callable[[Frame], None],
        on_closed: Callable[[str], None],
        on_exit: Callable[[], None],
    ) -> tuple[WorkerProcess, Channel]:
        """Start a worker process; see `Launcher.launch`."""
        spawn = self._start_method == "spawn"
        if spawn:
            _check_importable(spec)
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise StartupError(f"no pipe for worker {spec.worker_id} of {spec.stage}: {error}") from error
        try:
            page = ProgressPage()
        except OSError as error:
            ours.close()
            theirs.close()
            raise StartupError(f"no shared page for worker {spec.worker_id} of {spec.stage}: {error}") from error
        memory = self._memory.open_worker() if self._memory is not None else None
        hide_main = spawn and not self._import_main and spec.worker.__module__ != "__main__"
        try:
            with environment(variables), _main_hidden(hide_main), _children_allowed():
                process = self._start((spec, theirs, page, memory and memory.share))
        except Exception as error:
            ours.close()
            page.close()
            if memory is not None:
                memory.close()
            raise StartupError(f"worker {spec.worker_id} of {spec.stage} cannot be started: {error}") from error
        finally:
            theirs.close()
        handle = WorkerProcess(process, page, self._loop, on_exit, memory)
        channel = Channel(ours, on_frame, on_closed, busy_polls=_usable_cores() > 1)
        channel.open(self._loop)
        if memory is not None:
            memory.on_full(functools.partial(self._tell_freed_soon, memory, channel))
        return handle, channel

    def _tell_freed_soon(self, memory: WorkerMemory, channel: Channel) -> None:
        # Not at once: whoever frees blocks is in the middle of something, and what is sent may fail.
        self._loop.call_soon(_tell_freed, memory, channel)

    def _start(self, arguments: tuple[Any, ...]) -> BaseProcess | ForkedProcess:
        """Start a process that runs `main` with `arguments`."""
        if self._template is not None:
            return self._template.fork(arguments)
        spec: WorkerSpec = arguments[0]
        process: BaseProcess = multiprocessing.get_context(self._start_method).Process(  # type: ignore[attr-defined]
            target=main if self._start_method == "spawn" else _main_after_fork,
            args=arguments,
            name=f"mosec_asgi {spec.stage} {spec.worker_id}",
            daemon=False,
        )
        process.start()
        return process


class WorkerProcess:
    """A worker's process: a `Handle` that notices its exit through the event loop and reaps it."""

    def __init__(
        self,
        process: BaseProcess | ForkedProcess,
        page: ProgressPage,
        loop: asyncio.AbstractEventLoop,
        on_exit: Callable[[], None],
        memory: WorkerMemory | None = None,
    ) -> None:
        self.memory = memory
        self._process = process
        # Asked for when the process's own object may be closed.
        self._pid = process.pid
        self._page = page
        self._ended = False
        self._loop = loop
        self._on_exit = on_exit
        self._watched = _exit_descriptor(process)
        loop.add_reader(self._watched, self._exited)
        _running.add(self)
        _reap_at_exit(os.getpid())

    @property
    def pid(self) -> int | None:
        """The process's number."""
        return self._process.pid if isinstance(self._process, ForkedProcess) else self._pid

    def progress(self) -> Progress:
        """How far the worker has come."""
        return self._page.read()

    def kill(self) -> None:
        """Kill the process. Idempotent; its exit is noticed as any other."""
        if self in _running:
            self._process.kill()

    def describe_exit(self) -> str:
        """Say how the process ended."""
        code = self._process.exitcode
        if code is None:
            return "has ended, nobody knows how" if self._ended else "is still running"
        return f"was killed by signal {-code}" if code < 0 else f"exited with status {code}"

    def reap(self, timeout: float) -> None:
        """Wait for the process to end, without a loop; kill it after `timeout` seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._forget()

    def _exited(self) -> None:
        self._process.join(0)
        # A readable pidfd does not err. The exit status is missing all the same where somebody else has reaped the
        # process, or SIGCHLD is ignored.
        if self._process.exitcode is not None or self._watched != self._process.sentinel:
            self._ended = True
            self._loop.remove_reader(self._watched)
            self._on_exit()
            self._forget()

    def _forget(self) -> None:
        if self in _running:
            _running.discard(self)
            self._page.close()
            if self.memory is not None:
                self.memory.close()
            if self._watched != self._process.sentinel:
                os.close(self._watched)
            if self._process.exitcode is not None:
                # It holds descriptors until it is collected, which may be long after.
                self._process.close()
            # Whoever listens has this handle: neither must wait for the garbage collector.
            self._on_exit = _nothing


def _usable_cores() -> int:
    """Return on how many processors this process and its children may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _tell_freed(memory: WorkerMemory, channel: Channel) -> None:
    if freed := memory.freed():
        channel.send(freed)


def _nothing() -> None:
    """Hear nothing more of a process that has ended."""


# A process that runs must be found by `_reap_all`, whoever has forgotten it.
_running: set[WorkerProcess] = set()


def _reap_all() -> None:
    """End the workers of a server that nobody shut down, before `multiprocessing` waits for them for ever."""
    for worker in list(_running):
        worker.kill()
    for worker in list(_running):
        worker.reap(1.0)


@functools.lru_cache(maxsize=1)
def _reap_at_exit(pid: int) -> None:
    """Have `_reap_all` run when process `pid`, this one, exits: once, and before `multiprocessing` joins all children.

    Not by `atexit`, which a process that `multiprocessing` has started does not run, nor at import, since such a
    process forgets what its parent had registered.
    """
    multiprocessing.util.Finalize(None, _reap_all, exitpriority=100)


def _exit_descriptor(process: BaseProcess | ForkedProcess) -> int:
    """Return a descriptor that turns readable when the process ends.

    `multiprocessing`'s sentinel is a pipe that the worker's own children inherit and may keep open after its death; a
    pidfd (Linux) is not fooled by them.
    """
    if isinstance(process, BaseProcess) and hasattr(os, "pidfd_open") and process.pid is not None:
        try:
            return os.pidfd_open(process.pid)
        except OSError:
            logger.debug("no pidfd for process %s, using its sentinel", process.pid)
    return process.sentinel


def _check_importable(spec: WorkerSpec) -> None:
    """Raise `StartupError` where a spawned process could not find the worker's class."""
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
    """Set environment variables for the time of a block, then put back what was there."""
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

    `spawn` sends the child the main module's name or file and knows no option against it. It finds neither in an empty
    module, and goes on without.
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

    `multiprocessing` forbids it, since it kills daemonic processes in a way that leaves their children behind; ours end
    with their server, however that ends. hypercorn runs apps in daemonic processes.
    """
    settings = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    daemonic = settings.pop("daemon", None)
    try:
        yield
    finally:
        if daemonic is not None:
            settings["daemon"] = daemonic


def _main_after_fork(spec: WorkerSpec, sock: socket.socket, page: ProgressPage, share: Share | None) -> None:
    """Let go of the server's sockets that a forked worker has inherited, then run it.

    Kept open, they would hold the server's port after its death, its clients' connections after it has closed them, and
    the other workers' pipes, which could then not notice the server's end. Each is replaced rather than closed: objects
    in the copied memory still own the numbers, and would close whatever took them next.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in _open_descriptors():
        if descriptor > 2 and descriptor not in (sock.fileno(), null):
            _replace_if_socket(descriptor, null)
    os.close(null)
    _running.clear()
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
        # Closed meanwhile: the listing's own descriptor is among those it lists.
        return
