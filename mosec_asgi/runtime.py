"""What a user configures: `Runtime`, a stage: one worker class with its settings and its number of replicas."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from typing import Any

from mosec_asgi.errors import DefinitionError
from mosec_asgi.streaming import ContinuousWorker, is_async, is_generator, streams
from mosec_asgi.worker import Worker

START_METHODS = ("spawn", "fork")
_created = itertools.count()


class Runtime:
    """A stage: one worker class with its settings and `num` replicas.

    The same `Runtime` may stand on several routes; its workers are then shared by them.
    """

    def __init__(
        self,
        worker: type[Worker],
        num: int = 1,
        max_batch_size: int = 1,
        max_wait_time: int = 0,
        timeout: float = 0,
        start_method: str = "spawn",
        env: list[dict[str, str]] | None = None,
        *,
        max_attempts: int = 2,
        isolation_calls: int | None = None,
        concurrency: int = 1,
        preload: bool = False,
        latency_target: float = 0,
    ) -> None:
        """Describe a stage; nothing is started.

        Args:
            worker: a subclass of `Worker`.
            num: processes that run it, at least 1.
            max_batch_size: the most items that `forward` receives at once; 1 turns batching off.
            max_wait_time: milliseconds that a task may wait, from its arrival at the stage, for its batch to fill.
                0 leaves it to the scheduler, within the service's setting `wait`.
            timeout: seconds that one call of `forward` may take; 0 means the service's `timeout`.
            start_method: "spawn", or "fork" for a worker that needs what the server's process has loaded.
            env: for each of the `num` workers, the environment variables to set before its process starts.
            max_attempts: workers that a task may be given to before it is answered 500, because each of them died;
                1 turns the second try off.
            isolation_calls: the most extra calls of `forward` that may be spent to find the culprits of a batch that
                raised, so that only they fail; 0 fails the whole batch, None resolves batches up to 16 completely and
                spends up to 4·log2(n) calls on larger ones.
            concurrency: for a worker whose `forward` is asynchronous: items, or batches with `max_batch_size` > 1, that
                one process works on at a time.
            preload: make the worker once, in a process of its own, and fork all `num` workers from there, so that they
                share the memory of its model (Linux). For models that run on the CPU; see docs/preload.md for what
                must not be shared.
            latency_target: milliseconds that a task should spend at this stage at most; a call that would wait and be
                there for longer is refused with 429. 0 leaves it to the deadline and the load.

        Raises:
            DefinitionError: an argument does not fit; the text says what to change.
        """
        self.worker = _checked_worker(worker)
        self.num = _at_least(num, "num", 1)
        self.max_batch_size = _at_least(max_batch_size, "max_batch_size", 1)
        self.max_wait_time = _at_least(max_wait_time, "max_wait_time", 0)
        self.timeout = _checked_timeout(timeout)
        if start_method not in START_METHODS:
            raise DefinitionError(f"start_method must be one of {', '.join(START_METHODS)}, not {start_method!r}")
        self.start_method = start_method
        self.env = _checked_env(env, self.num)
        self.max_attempts = _at_least(max_attempts, "max_attempts", 1)
        self.isolation_calls = None if isolation_calls is None else _at_least(isolation_calls, "isolation_calls", 0)
        self.concurrency = _at_least(concurrency, "concurrency", 1)
        if self.concurrency > 1 and not is_async(self.worker):
            raise DefinitionError(
                f"concurrency={concurrency} needs an asynchronous worker: make {self.worker.__name__}.forward `async`, "
                "or use num for more processes"
            )
        self.latency_target = _checked_target(latency_target)
        self.preload = _checked_preload(preload, start_method, self.env)
        # Orders the stages of a server as they were written, whatever order the routes name them in.
        self.sequence = next(_created)

    def __repr__(self) -> str:
        return f"<Runtime {self.worker.__name__} num={self.num} max_batch_size={self.max_batch_size}>"


def stage_names(runtimes: Sequence[Runtime]) -> dict[Runtime, str]:
    """Name the stages of a server: the class and its place in order of creation, from 1, like `Inference_2`."""
    ordered = sorted(set(runtimes), key=lambda runtime: runtime.sequence)
    return {runtime: f"{runtime.worker.__name__}_{place}" for place, runtime in enumerate(ordered, 1)}


def check_pipeline(route: str, pipeline: Sequence[Runtime]) -> None:
    """Check that the stages of a route fit together.

    Raises:
        DefinitionError: they do not; the text says what to change.
    """
    for runtime in pipeline[:-1]:
        if streams(runtime.worker):
            raise DefinitionError(
                f"{runtime.worker.__name__} streams, so it must be the last stage of {route}; append it last, "
                "or give what follows it a route of its own"
            )


def _at_least(value: Any, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DefinitionError(f"{name} must be a whole number, not {value!r} ({type(value).__name__})")
    if value < least:
        raise DefinitionError(f"{name} must be at least {least}, not {value}")
    return value


def _checked_timeout(timeout: Any) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout < float("inf"):
        raise DefinitionError(f"timeout must be a number of seconds, 0 or more, not {timeout!r}")
    return float(timeout)


def _checked_target(target: Any) -> float:
    if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 <= target < float("inf"):
        raise DefinitionError(f"latency_target must be a number of milliseconds, 0 or more, not {target!r}")
    return float(target)


def _checked_worker(worker: Any) -> type[Worker]:
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
