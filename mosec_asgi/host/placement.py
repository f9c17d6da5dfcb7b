"""Where the workers of a service run: on which GPU each, and with how many threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mosec_asgi import log
from mosec_asgi.config import variables_of
from mosec_asgi.host import threads
from mosec_asgi.host.devices import VARIABLES, Devices, Machine, find, named
from mosec_asgi.runtime import AUTO, Runtime

logger = log.internal_logger(__name__)


class Placement(NamedTuple):
    """Where the workers of a stage run.

    Attributes:
        num: of the workers.
        env: what each has in its environment; None for nothing.
        defaults: what all have there where nothing else sets it.
    """

    num: int
    env: list[dict[str, str]] | None
    defaults: dict[str, str]


def place(names: Mapping[Runtime, str]) -> dict[Runtime, Placement]:
    """Return the placement of each stage of a service, and say what was chosen; `names` are the stages' names.

    Raises:
        DefinitionError: a stage names a GPU that is not there.
    """
    return Placer(variables_of((*VARIABLES, *threads.VARIABLES)), Machine()).place(names)


class Placer:
    """Places the stages of a service on a machine."""

    def __init__(self, environment: Mapping[str, str], machine: Machine, cpus: int = 0, usable: int = 0) -> None:
        """Bind to a machine.

        Args:
            environment: the variables about GPUs and threads that are set.
            machine: where GPUs are looked for.
            cpus: that workers share; 0 for those of this machine, or container.
            usable: threads that libraries start by themselves; 0 likewise.
        """
        self._environment = environment
        self._machine = machine
        self._cpus = cpus or threads.cpu_limit()
        self._usable = usable or threads.usable_cpus()
        # Looked for once, and only where a stage wants to know.
        self._found: Devices | None = None

    def place(self, names: Mapping[Runtime, str]) -> dict[Runtime, Placement]:
        """Return the placement of each stage; see `place`."""
        return {runtime: self._place(runtime, name) for runtime, name in names.items()}

    def _place(self, runtime: Runtime, name: str) -> Placement:
        num, env = runtime.num, runtime.env
        if runtime.devices is not None:
            devices = self._devices(runtime, name)
            # The first of the workers have a GPU each, before any has two.
            told = [{devices.variable: each} for each in devices.names] * runtime.workers_per_device
            told = told[: runtime.most_workers] or [{}]
            num = len(told)
            own = (env or [{}]) * (num if len(env or [{}]) == 1 else 1)
            env = [{**gpu, **variables} for gpu, variables in zip(told, own, strict=True)]
            # Where nothing is told, nothing bounds how many workers there can be later on.
            env = env if any(env) else None
        defaults = self._threads(name, num, env) if runtime.executor == "process" else {}
        return Placement(num, env, defaults)

    def _devices(self, runtime: Runtime, name: str) -> Devices:
        if runtime.devices != AUTO:
            assert isinstance(runtime.devices, tuple)
            return named(runtime.devices, self._environment, self._machine)
        if self._found is None:
            self._found = find(self._environment, self._machine)
        found = self._found
        each = "a worker" if runtime.workers_per_device == 1 else f"{runtime.workers_per_device} workers"
        if found.names:
            logger.info(
                "%s has %s on each of the GPUs %s (by %s)",
                name,
                each,
                ", ".join(found.names),
                found.source,
                extra={"stage": name},
            )
        else:
            why = f"{found.source} names none" if found.source else "none was found"
            logger.info("%s has one worker, on the CPU: there is no GPU, for %s", name, why, extra={"stage": name})
        return found

    def _threads(self, name: str, num: int, env: list[dict[str, str]] | None) -> dict[str, str]:
        taken = {variable for variables in env or () for variable in variables} | self._environment.keys()
        shares = threads.shares(num, self._cpus, self._usable, taken)
        if shares:
            logger.info(
                "%s: %d %s %d CPUs: %s=%s; set OMP_NUM_THREADS, in the environment or by `env`, for another number of "
                "threads",
                name,
                num,
                "worker has" if num == 1 else "workers share",
                self._cpus,
                ", ".join(shares),
                next(iter(shares.values())),
                extra={"stage": name},
            )
        return shares
