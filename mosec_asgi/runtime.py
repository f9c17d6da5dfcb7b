"""What a user configures: `Runtime`, a stage: one worker class with its settings and its number of replicas."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from mosec_asgi import log
from mosec_asgi.annotations import single_item_annotation
from mosec_asgi.errors import DefinitionError
from mosec_asgi.labels import Labels, check_hooks
from mosec_asgi.ray_options import RayOptions, checked_ray_options
from mosec_asgi.streaming import ContinuousWorker, is_async, is_generator, streams
from mosec_asgi.worker import Worker

START_METHODS = ("spawn", "fork")
# For editors and type checkers.
StartMethod: TypeAlias = Literal["spawn", "fork"]
Executor: TypeAlias = Literal["process", "thread", "ray"] | Callable[..., Any]
Method: TypeAlias = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
# In place of a list of `devices`, or of a number of workers on Ray: as many as there are.
AUTO = "auto"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# Methods whose requests have no body, as a rule.
BODYLESS = frozenset(("GET", "HEAD", "DELETE"))
# Seconds for a `forward` above which its writer has probably meant milliseconds.
LONG_TIMEOUT = 600

logger = log.internal_logger(__name__)
_created = itertools.count(1)
# A number, or the UUID of a GPU or of a part of one.
_DEVICE = re.compile(r"\d+|(GPU|MIG)-[^\s,]+")
_DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


class Runtime:
    """A stage: one worker class with its settings and `num` replicas.

    Several routes may name the same `Runtime`, and then share its workers.

    Attributes:
        name: the stage's name in logs and metrics: the class and its number among the stages of its server, from 1,
            like `Inference_2`. Until it is given to a server, its number among all `Runtime` objects.
    """

    def __init__(
        self,
        worker: type[Worker],
        num: int | Literal["auto"] = 1,
        max_batch_size: int = 1,
        max_wait_time: int = 0,
        timeout: float = 0,
        start_method: StartMethod = "spawn",
        env: list[dict[str, str]] | None = None,
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
        """Describe a stage; nothing is started.

        Args:
            worker: a subclass of `Worker`.
            num: processes that run it, at least 1. With executor="ray" also "auto": as many as fit into the cluster, by
                what `ray_actor_options` asks for each, while nodes come and go; the setting `max_workers` bounds it.
            max_batch_size: the most items that `forward` receives at once; 1 turns batching off.
            max_wait_time: milliseconds that a task may wait, from its arrival at the stage, for its batch to fill;
                less where a task of the batch would miss its deadline. 0 leaves it to the scheduler, within the
                service's setting `wait`.
            timeout: seconds that one call of `forward` may take; 0 means the service's `timeout`.
            start_method: "spawn", or "fork" for a worker that needs what the server's process has loaded.
            env: for each of the `num` workers, the environment variables to set before its process starts.
            max_attempts: workers that a task may be given to before it is answered 500, because each of them died;
                1 turns the second try off.
            isolation_calls: when `forward` raises for a batch, the most extra calls to find the items that make it
                raise, so that only these fail. 0 fails the whole batch. None allows as many as it takes for batches of
                up to 16 items, and 4·log2(n) for batches of n items above that.
            concurrency: for a worker whose `forward` is asynchronous: items, or batches with `max_batch_size` > 1, that
                one process works on at a time.
            preload: make the worker once, in a process of its own, and fork all `num` workers from there, so that they
                share the memory of its model (Linux). For models that run on the CPU; see docs/preload.md for what
                must not be shared.
            args: what the worker's `__init__` is called with, by place, in each process; such as the path of a model.
            kwargs: the same by name.
            executor: what each worker runs on. "process": a process. "thread": a thread of the server's process, for
                models that release the GIL, for notebooks and for tests; a thread has no `env` and cannot be
                interrupted, so one whose `forward` exceeds the timeout is replaced, and runs on until it returns.
                "ray": an actor of Ray, on any machine of a cluster; see docs/ray.md. Or a function that makes a
                `pool.link.Launcher` of the stage's plan and the event loop.
            latency_target: milliseconds that a task should spend at this stage at most: a call that would wait and
                spend longer there is refused with 429, and no batch is formed that is predicted to take longer; see
                docs/batching.md. 0 for no target: only the deadline and the load count.
            methods: the HTTP methods of the routes whose first stage this is, out of GET, POST, PUT, PATCH and DELETE;
                None for POST alone. HEAD comes with GET, and OPTIONS is always answered. For a GET or DELETE without a
                body `forward` gets None: set `takes_request`, and read the query from the request.
            max_calls: calls that a worker answers before another takes its place, for code that leaks; 0 for no limit.
                The other is ready before the worker stops, and no call is lost.
            max_memory: bytes of resident memory (`ps` shows them as RSS, in KiB) above which a worker is replaced in
                the same way; 0 for no limit. Needs processes, and Linux. With `preload`, pages that workers share count
                for each of them.
            devices: the GPUs of the stage, of which each worker sees one: "auto" for all that are found when the
                service starts, or a list of numbers and UUIDs. Numbers count within an outer `CUDA_VISIBLE_DEVICES`.
                There is one worker for each GPU (see `workers_per_device`), and `num` is left out. If "auto" finds no
                GPU, there is one worker, on the CPU.
            workers_per_device: workers that share each of the devices.
            max_batch_cost: the most that the items of a batch may cost together, in the unit of the worker's `cost`
                (tokens, pixels); 0 for no bound. An item that costs more runs alone. See docs/batching.md.
            refuse_over_cost: refuse an item that costs more than `max_batch_cost` with 413.
            sort_by_cost: form batches of items of like cost among those that wait, for a model that pads them to the
                longest; `max_batch_cost` then bounds the cost of the longest times the number of items.
            coalesce: run `forward` once for equal inputs that are at the stage at the same time; for a `forward` whose
                result depends on its input alone. See docs/batching.md.
            ray_actor_options: with executor="ray", the options of each actor, such as `{"num_gpus": 1}`.
            placement: with executor="ray", "SPREAD" for workers on as many machines as there are, "PACK" for the
                server's own machine as long as it has room, or a placement group of Ray; None for Ray's own choice.

        Raises:
            DefinitionError: an argument does not fit; the text says what to change.
        """
        self.worker = _checked_worker(worker)
        follows = _follows(num, executor)
        self.num = 1 if follows else _at_least(num, "num", 1)
        self.devices = _checked_devices(devices)
        self.workers_per_device = _at_least(workers_per_device, "workers_per_device", 1)
        # Bounds the workers that `devices` asks for: a dry run starts one. None for no bound.
        self.most_workers: int | None = None
        if self.devices is not None:
            _check_beside_devices(self.num, executor, preload, env)
            if self.devices != AUTO:
                self.num = len(self.devices) * self.workers_per_device
        elif self.workers_per_device > 1:
            raise DefinitionError("workers_per_device is for `devices`; for so many processes set num")
        self.max_batch_size = _at_least(max_batch_size, "max_batch_size", 1)
        self.max_wait_time = _at_least(max_wait_time, "max_wait_time", 0, "milliseconds")
        self.timeout = _checked_timeout(timeout)
        if start_method not in START_METHODS:
            raise DefinitionError(f"start_method must be one of {', '.join(START_METHODS)}, not {start_method!r}")
        self.start_method = start_method
        self.env = _checked_env(env, 1 if self.devices is not None and len(env or ()) == 1 else self.num)
        self.max_attempts = _at_least(max_attempts, "max_attempts", 1)
        self.isolation_calls = None if isolation_calls is None else _at_least(isolation_calls, "isolation_calls", 0)
        self.concurrency = _at_least(concurrency, "concurrency", 1)
        if self.concurrency > 1 and not is_async(self.worker):
            raise DefinitionError(
                f"concurrency={concurrency} needs an asynchronous worker: make {self.worker.__name__}.forward `async`, "
                "or use num for more processes"
            )
        self.latency_target = _checked_target(latency_target)
        self.methods = _checked_methods(self.worker, methods)
        self.preload = _checked_preload(preload, start_method, self.env)
        self.executor = _checked_executor(executor, start_method, self.env, self.preload)
        self.ray = _checked_ray(ray_actor_options, placement, self.executor, self.env, self.worker, follows=follows)
        self.max_calls = _at_least(max_calls, "max_calls", 0)
        self.max_memory = _checked_memory(max_memory, self.executor)
        # Threads and forked processes get the arguments as they are, not pickled.
        crosses = self.executor == "ray" or (self.executor == "process" and start_method == "spawn")
        self.args, self.kwargs = _checked_arguments(self.worker, args, kwargs, crosses=crosses)
        _check_batch(self.worker, self.max_batch_size)
        self.max_batch_cost = _at_least(max_batch_cost, "max_batch_cost", 0)
        self.sort_by_cost = sort_by_cost
        self.labels = _checked_labels(self.worker, self.max_batch_cost, refuse_over_cost, sort_by_cost)
        if self.labels is not None and (self.max_batch_size == 1 or issubclass(self.worker, ContinuousWorker)):
            self._check_unbatched()
        self.coalesce = _checked_coalesce(self.worker, coalesce)
        self._advise()
        # Stages are numbered in the order in which they were created, whatever order the routes name them in.
        self.sequence = next(_created)
        self.name = f"{self.worker.__name__}_{self.sequence}"

    def _check_unbatched(self) -> None:
        """Refuse settings about batches on a stage that has none."""
        asked = "max_batch_cost" if self.max_batch_cost else "sort_by_cost"
        if self.max_batch_cost or self.sort_by_cost:
            raise DefinitionError(
                f"{asked} of {self.worker.__name__} is about batches, and the server forms none for it; "
                f"{'set max_batch_size above 1' if self.max_batch_size == 1 else 'leave it out'}"
            )
        # A `batch_key` alone is no error: the same class may be used with batching elsewhere.
        self.labels = None

    def _advise(self) -> None:
        """Warn of values that are valid, and probably not meant."""
        advice = [self.worker._advice] if self.worker._advice else []
        if self.timeout > LONG_TIMEOUT:
            advice.append(
                f"timeout={self.timeout:g} of {self.worker.__name__} is in seconds; for {self.timeout:g} milliseconds "
                f"write timeout={self.timeout / 1000:g}"
            )
        for text in advice:
            log.prepare()
            logger.warning(text)

    def __repr__(self) -> str:
        return f"<Runtime {self.worker.__name__} num={self.num} max_batch_size={self.max_batch_size}>"


def changed(
    runtime: Runtime,
    max_batch_size: int | None = None,
    max_wait_time: int | None = None,
    timeout: float | None = None,
    latency_target: float | None = None,
) -> Runtime:
    """Return a copy of a stage with new values, of those that can be changed while it serves; None keeps a value.

    Raises:
        DefinitionError: a value does not fit; the text says what to change.
    """
    other = copy.copy(runtime)
    if max_batch_size is not None:
        other.max_batch_size = _at_least(max_batch_size, "max_batch_size", 1)
        batches = not issubclass(runtime.worker, ContinuousWorker)
        if batches and (other.max_batch_size > 1) != (runtime.max_batch_size > 1):
            item, items = "one item", "a list of items"
            before, after = (items, item) if runtime.max_batch_size > 1 else (item, items)
            raise DefinitionError(
                f"max_batch_size={max_batch_size} for {runtime.name}, which was defined with {runtime.max_batch_size}: "
                f"its forward is given {before}, and would be given {after}. While it serves choose "
                f"{'2 or more' if runtime.max_batch_size > 1 else '1'}, or define the stage anew"
            )
    if max_wait_time is not None:
        other.max_wait_time = _at_least(max_wait_time, "max_wait_time", 0, "milliseconds")
    if timeout is not None:
        other.timeout = _checked_timeout(timeout)
    if latency_target is not None:
        other.latency_target = _checked_target(latency_target)
    return other


def stage_names(runtimes: Sequence[Runtime]) -> dict[Runtime, str]:
    """Return the names of a server's stages: the class and its number in order of creation, such as `Inference_2`."""
    ordered = sorted(set(runtimes), key=lambda runtime: runtime.sequence)
    return {runtime: f"{runtime.worker.__name__}_{place}" for place, runtime in enumerate(ordered, 1)}


def _at_least(value: Any, name: str, least: int, unit: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        number = f"a whole number of {unit}" if unit else "a whole number"
        raise DefinitionError(f"{name} must be {number}, not {value!r} ({type(value).__name__})")
    if value < least:
        raise DefinitionError(f"{name} must be at least {least}, not {value}")
    return value


def _checked_memory(max_memory: Any, executor: Any) -> int:
    checked = _at_least(max_memory, "max_memory", 0, "bytes")
    if checked and executor == "thread":
        raise DefinitionError(
            "max_memory is for workers that are processes, and executor='thread' runs them in the server's own; leave "
            "max_memory out, or use executor='process'"
        )
    if checked and not sys.platform.startswith("linux"):
        raise DefinitionError("max_memory needs Linux, whose /proc tells what a process takes; leave it out here")
    return checked


def _checked_timeout(timeout: Any) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout < float("inf"):
        raise DefinitionError(f"timeout must be a number of seconds, 0 or more, not {timeout!r}")
    return float(timeout)


def _checked_target(target: Any) -> float:
    if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 <= target < float("inf"):
        raise DefinitionError(f"latency_target must be a number of milliseconds, 0 or more, not {target!r}")
    return float(target)


def _checked_labels(worker: type[Worker], max_cost: int, refuse: Any, by_cost: Any) -> Labels | None:
    """Return what must be known of an item before it is batched; None for nothing."""
    for name, value in (("refuse_over_cost", refuse), ("sort_by_cost", by_cost)):
        if not isinstance(value, bool):
            raise DefinitionError(f"{name} must be True or False, not {value!r}")
    if refuse and not max_cost:
        raise DefinitionError("refuse_over_cost refuses items above max_batch_cost; set that, too")
    counts = bool(max_cost) or by_cost
    if counts and not (hasattr(worker, "cost") or hasattr(worker, "cost_of_body")):
        raise DefinitionError(
            f"{'max_batch_cost' if max_cost else 'sort_by_cost'} of {worker.__name__} needs to know what an item "
            f"costs: define `@staticmethod def cost(item) -> int` in {worker.__name__}"
        )
    groups = hasattr(worker, "batch_key") or hasattr(worker, "batch_key_of_body")
    if not (counts or groups):
        return None
    check_hooks(worker)
    return Labels(worker, counts, groups, max_cost if refuse else 0)


def _checked_coalesce(worker: type[Worker], coalesce: Any) -> bool:
    if not isinstance(coalesce, bool):
        raise DefinitionError(f"coalesce must be True or False, not {coalesce!r}")
    if coalesce and worker.takes_request:
        raise DefinitionError(
            f"coalesce of {worker.__name__} shares one result among requests with equal inputs, and with "
            "`takes_request` the result may depend on which request it is; leave out one of the two, or put what reads "
            "the request into a stage of its own"
        )
    if coalesce and streams(worker):
        raise DefinitionError(
            f"coalesce of {worker.__name__} shares one result among requests, and a stream goes to one client at that "
            "client's pace; leave coalesce out, or set it on a stage before"
        )
    return coalesce


def _checked_methods(worker: type[Worker], methods: Any) -> tuple[str, ...] | None:
    if methods is None:
        return None
    if isinstance(methods, str) or not isinstance(methods, Sequence) or not methods:
        raise DefinitionError(f"methods must be a list of methods of HTTP, such as ['GET', 'POST'], not {methods!r}")
    for method in methods:
        if not isinstance(method, str) or method.upper() not in METHODS:
            raise DefinitionError(
                f"methods must be of {', '.join(METHODS)}, not {method!r}; HEAD comes with GET, and OPTIONS always"
            )
    chosen = tuple(dict.fromkeys(method.upper() for method in methods))
    bodyless = [method for method in chosen if method in BODYLESS]
    if bodyless and not worker.takes_request:
        raise DefinitionError(
            f"methods={list(chosen)} of {worker.__name__}: a request by {bodyless[0]} has no body to make an item of; "
            f"set `takes_request = True` in {worker.__name__}, whose forward is then given None and reads "
            "`self.request().query`"
        )
    return chosen


def _checked_worker(worker: Any) -> type[Worker]:
    # `append_worker(Echo[str])`, of a class with a parameter.
    worker = typing.get_origin(worker) or worker
    if isinstance(worker, Worker):
        raise DefinitionError(
            f"append the class {type(worker).__name__} itself, not an instance of it: it is made in the worker process"
        )
    if not isinstance(worker, type) or not issubclass(worker, Worker):
        raise DefinitionError(f"{worker!r} is no worker: a worker is a subclass of mosec_asgi.Worker")
    if inspect.isabstract(worker):
        missing = ", ".join(sorted(worker.__abstractmethods__))
        raise DefinitionError(f"the worker {worker.__name__} does not define {missing}; add it to the class")
    mime_type = worker.resp_mime_type
    if not isinstance(mime_type, str) or not mime_type.strip() or not (mime_type.isascii() and mime_type.isprintable()):
        raise DefinitionError(
            f"{worker.__name__}.resp_mime_type must be the value of a content-type header, such as 'application/json', "
            f"in printable ASCII; not {mime_type!r}"
        )
    _check_forward(worker)
    if is_generator(worker) and not streams(worker):
        raise DefinitionError(
            f"{worker.__name__}.forward is a generator, which streams; derive {worker.__name__} from SSEWorker"
        )
    if issubclass(worker, ContinuousWorker):
        for method in (worker.admit, worker.step, worker.evict):
            if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
                raise DefinitionError(
                    f"{worker.__name__}.{method.__name__} is asynchronous; a ContinuousWorker has plain methods"
                )
    return worker


def _check_forward(worker: type[Worker]) -> None:
    """Check that `forward` can be called with an item or a batch, as far as it says."""
    member = inspect.getattr_static(worker, "forward")
    if not callable(worker.forward):
        raise DefinitionError(
            f"{worker.__name__}.forward is {worker.forward!r}; make it a method: `def forward(self, data):`"
        )
    # A class method is bound already, and an object that is only callable is called without a worker.
    bound = isinstance(member, (staticmethod, classmethod)) or not hasattr(type(member), "__get__")
    try:
        signature = inspect.signature(worker.forward)
    except (TypeError, ValueError):
        # Written in C, and says nothing.
        return
    try:
        signature.bind(*([None] if bound else [None, None]))
    except TypeError as error:
        raise DefinitionError(
            f"{worker.__name__}.forward is called with one argument, an item or a batch, and takes {signature}: "
            f"{error}; write `def forward(self, data):`"
        ) from None


def _checked_arguments(
    worker: type[Worker], args: Any, kwargs: Any, *, crosses: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
        raise DefinitionError(f"args must be a tuple or a list of {worker.__name__}'s arguments, not {args!r}")
    if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs)):
        raise DefinitionError(f"kwargs must be a dictionary of {worker.__name__}'s arguments by name, not {kwargs!r}")
    args, kwargs = tuple(args), dict(kwargs or {})
    _check_signature(worker, args, kwargs)
    if crosses:
        for name, value in [*enumerate(args), *kwargs.items()]:
            _check_picklable(worker, f"args[{name}]" if isinstance(name, int) else f"kwargs[{name!r}]", value)
    return args, kwargs


def _check_signature(worker: type[Worker], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check that a worker can be made with these arguments, as far as its `__init__` says."""
    if worker.__init__ is object.__init__:
        if args or kwargs:
            raise DefinitionError(f"{worker.__name__} has no __init__ that would take args or kwargs; define one")
        return
    try:
        signature = inspect.signature(worker.__init__)
    except (TypeError, ValueError):
        # Written in C, and says nothing.
        return
    try:
        signature.bind(None, *args, **kwargs)
    except TypeError as error:
        raise DefinitionError(
            f"{worker.__name__}.__init__ cannot be called: {error}; give its arguments by args=(...) and kwargs={{...}}"
        ) from None


class _Nowhere:
    """Where what is only to be tried is written to."""

    def write(self, data: bytes) -> int:
        """Drop it."""
        return len(data)


def _check_picklable(worker: type[Worker], name: str, value: Any) -> None:
    try:
        pickle.Pickler(_Nowhere()).dump(value)
    # The user's object: it may raise anything.
    except Exception as error:
        if "inheritance" in str(error):
            # A lock or a queue of `multiprocessing`: it can be pickled while a process is being started.
            return
        raise DefinitionError(
            f"{name} of {worker.__name__} cannot be sent to a spawned process: {error}. Pass what can be pickled, such "
            "as a path, and load from there in __init__; or use start_method='fork'"
        ) from error


def _check_batch(worker: type[Worker], max_batch_size: int) -> None:
    """Refuse a `forward` that says that it takes one item, where it is given lists."""
    if max_batch_size > 1 and not issubclass(worker, ContinuousWorker):
        name, written = single_item_annotation(worker)
        if written:
            raise DefinitionError(
                f"{worker.__name__}.forward takes `{name}: {written}`, but with max_batch_size={max_batch_size} it is "
                f"given a list of items and returns a list of results; write `{name}: list[{written}]`, or leave "
                "max_batch_size out"
            )


def _checked_executor(
    executor: Any, start_method: str, env: list[dict[str, str]] | None, preload: bool
) -> str | Callable[..., Any]:
    if executor == "process":
        return "process"
    if executor not in ("thread", "ray") and not callable(executor):
        raise DefinitionError(
            f'executor must be "process", "thread", "ray" or a function that makes a launcher, not {executor!r}'
        )
    if executor == "ray":
        for name, is_given in (("preload", preload), ("start_method", start_method != "spawn")):
            if is_given:
                raise DefinitionError(
                    f"{name} is for workers that are processes of this machine, and executor='ray' has Ray start them; "
                    f"leave {name} out, or use executor='process'"
                )
    if executor == "thread":
        for name, given in (("env", env), ("preload", preload), ("start_method", start_method != "spawn")):
            if given:
                raise DefinitionError(
                    f"{name} is for workers that are processes, and executor='thread' runs them in the server's own; "
                    f"leave {name} out, or use executor='process'"
                )
    return executor  # type: ignore[no-any-return]  # one of the two by now


def _follows(num: Any, executor: Any) -> bool:
    """Whether there are to be as many workers as fit into a cluster."""
    if num != AUTO:
        return False
    if executor != "ray":
        raise DefinitionError(
            'num="auto" is for executor="ray", which follows a cluster; on one machine give a number, or '
            'devices="auto" for a worker on each GPU'
        )
    return True


def _checked_ray(
    options: Any,
    placement: Any,
    executor: Any,
    env: list[dict[str, str]] | None,
    worker: type[Worker],
    *,
    follows: bool,
) -> RayOptions | None:
    if executor != "ray":
        for name, given in (("ray_actor_options", options), ("placement", placement)):
            if given is not None:
                raise DefinitionError(f"{name} of {worker.__name__} is for executor='ray'; leave it out, or set that")
        return None
    checked = checked_ray_options(options, placement, worker.__name__, follows=follows)
    taken = [name for variables in env or () for name in variables if name in _DEVICE_VARIABLES]
    if taken and checked.actor_options.get("num_gpus"):
        raise DefinitionError(
            f"env of {worker.__name__} sets {taken[0]}, which Ray does for an actor with num_gpus; leave it out of env"
        )
    return checked


def _checked_devices(devices: Any) -> str | tuple[str, ...] | None:
    if devices is None or devices == AUTO:
        return devices  # type: ignore[no-any-return]  # one of the two
    remedy = 'write devices="auto", or a list of numbers or UUIDs, such as ["0", "1"]'
    if isinstance(devices, (str, bytes)) or not isinstance(devices, Sequence) or not devices:
        raise DefinitionError(f"devices is {devices!r}; {remedy}")
    for each in devices:
        number = isinstance(each, int) and not isinstance(each, bool) and each >= 0
        if not number and not (isinstance(each, str) and _DEVICE.fullmatch(each)):
            raise DefinitionError(f"devices holds {each!r}; {remedy}")
    names = tuple(str(each) for each in devices)
    if len(set(names)) < len(names):
        raise DefinitionError("devices names one of them twice; for several workers on each set workers_per_device")
    return names


def _check_beside_devices(num: int, executor: Any, preload: Any, env: Any) -> None:
    """Check that what is set beside `devices` fits to it."""
    if num != 1:
        raise DefinitionError("num follows from devices; leave it out, or set workers_per_device for several on each")
    if executor != "process":
        if executor == "ray":
            raise DefinitionError(
                "devices is for workers that are processes; Ray chooses a GPU for each actor: leave devices out, and "
                "set ray_actor_options={'num_gpus': 1} and num"
            )
        raise DefinitionError("devices is for workers that are processes; leave out executor, or devices")
    if preload:
        raise DefinitionError(
            "with preload all workers are forked from one process, which has one environment; leave out preload, or "
            "devices"
        )
    taken = [name for variables in env or () if isinstance(variables, dict) for name in variables]
    if conflict := next((name for name in taken if name in _DEVICE_VARIABLES), None):
        raise DefinitionError(f"env sets {conflict}, which is what devices does; leave out one of the two")


def _checked_preload(preload: Any, start_method: str, env: list[dict[str, str]] | None) -> bool:
    if not isinstance(preload, bool):
        raise DefinitionError(f"preload must be True or False, not {preload!r}")
    if preload and start_method != "spawn":
        raise DefinitionError(
            f"preload forks the workers from a process that is spawned for it; leave out start_method={start_method!r}"
        )
    if preload and env and any(variables != env[0] for variables in env):
        raise DefinitionError(
            "with preload all workers are forked from one process, so env must be the same for each; "
            "leave preload out where workers need variables of their own, such as CUDA_VISIBLE_DEVICES"
        )
    return preload


def _checked_env(env: Any, num: int) -> list[dict[str, str]] | None:
    if env is None:
        return None
    if not isinstance(env, list) or not all(isinstance(variables, dict) for variables in env):
        raise DefinitionError(f"env must be a list with one dictionary per worker, not {env!r}")
    if len(env) != num:
        raise DefinitionError(
            f"env has {len(env)} dictionaries and num is {num}; give each of the {num} workers one, in order"
        )
    for place, variables in enumerate(env, 1):
        for key, value in variables.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise DefinitionError(
                    f"env of worker {place}: {key!r}: {value!r} must be text on both sides; "
                    f"write {str(key)!r}: {str(value)!r}"
                )
    return env
