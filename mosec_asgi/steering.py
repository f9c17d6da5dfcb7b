"""Changes of a service while it serves, as users ask for them: stages by name or number, values in users' units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mosec_asgi import log
from mosec_asgi.batching.changes import StageValues
from mosec_asgi.batching.coordinator import Coordinator
from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.config import Settings
from mosec_asgi.definition import plan_stage
from mosec_asgi.errors import DefinitionError
from mosec_asgi.route_checks import check_timeouts
from mosec_asgi.runtime import Runtime, changed, stage_names

# Digits of a stage's number; Python refuses to read very many.
_MOST_DIGITS = 9

logger = log.internal_logger(__name__)


class Steering:
    """Changes one service.

    Attributes:
        CONFIGURABLE: the values that can be changed.
    """

    CONFIGURABLE = ("max_batch_size", "max_wait_time", "timeout", "latency_target")

    def __init__(
        self,
        routes: Mapping[str, Sequence[Runtime]],
        settings: Settings,
        plans: Sequence[StagePlan],
        coordinator: Coordinator,
        on_change: Callable[[Sequence[StagePlan]], None],
    ) -> None:
        """Bind to a service.

        Args:
            routes: its stages by route.
            settings: its settings.
            plans: the stages, as they are run.
            coordinator: does what is asked.
            on_change: called after a change with the stages, as they are run from then on.
        """
        names = stage_names([runtime for pipeline in routes.values() for runtime in pipeline])
        self._names = list(names.values())
        # As they are now; the definitions stay what they were, for the next start.
        self._runtimes = list(names)
        self._plans = list(plans)
        self._settings = settings
        self._coordinator = coordinator
        self._on_change = on_change

    async def scale(self, stage: str | int, num: int) -> None:
        """Have `num` workers of a stage; see `Server.scale`."""
        place = self.place_of(stage)
        self._check_num(place, num)
        await self._coordinator.scale(place, num)
        logger.info("the stage was scaled and has %d workers", num, extra={"stage": self._names[place]})
        self._changed(place)

    async def configure(self, stage: str | int, **values: Any) -> None:
        """Give a stage other values; see `Server.configure`."""
        place = self.place_of(stage)
        given = {name: value for name, value in values.items() if value is not None}
        if not given:
            raise DefinitionError(f"nothing to change: give a value for {', '.join(self.CONFIGURABLE)}")
        wanted = changed(self._runtimes[place], **given)
        check_timeouts({"": [wanted]}, self._settings.timeout_seconds)
        plan = plan_stage(wanted, self._names[place], self._settings)
        await self._coordinator.configure(place, lambda now: _combined(now, plan, given))
        self._runtimes[place] = changed(self._runtimes[place], **given)
        told = ", ".join(f"{name}={value}" for name, value in given.items())
        logger.info("the values of the stage were changed: %s", told, extra={"stage": self._names[place]})
        self._changed(place)

    async def restart(self, stage: str | int | None = None) -> None:
        """Replace the workers of a stage, or of all; see `Server.restart`."""
        places = range(len(self._names)) if stage is None else [self.place_of(stage)]
        for place in places:
            await self._coordinator.restart(place)
            logger.info("the workers have been replaced", extra={"stage": self._names[place]})

    def place_of(self, stage: Any) -> int:
        """Return the place of a stage in the service's list.

        Raises:
            DefinitionError: there is none of that name or number.
        """
        if isinstance(stage, str) and stage in self._names:
            return self._names.index(stage)
        is_number = isinstance(stage, str) and stage.isascii() and stage.isdigit() and len(stage) <= _MOST_DIGITS
        number = int(stage) if is_number else stage
        if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= len(self._names):
            return number - 1
        there = ", ".join(f"{name} ({place})" for place, name in enumerate(self._names, 1))
        raise DefinitionError(f"there is no stage {stage!r}; by name, or by number, there are {there}")

    def all_values(self) -> dict[str, dict[str, float]]:
        """Return what the stages go by, by their names, in users' units."""
        return {
            name: {value: getattr(runtime, value) for value in self.CONFIGURABLE}
            for name, runtime in zip(self._names, self._runtimes, strict=True)
        }

    def _check_num(self, place: int, num: Any) -> None:
        runtime = self._runtimes[place]
        if isinstance(num, bool) or not isinstance(num, int):
            raise DefinitionError(f"num must be a whole number of workers, not {num!r} ({type(num).__name__})")
        if num < 1:
            raise DefinitionError(f"num must be at least 1, not {num}: a stage without workers answers nothing")
        most = max(self._settings.max_workers, runtime.num)
        if num > most:
            raise DefinitionError(
                f"num must be at most {most}, not {num}; the setting max_workers (--max-workers, MOSEC_MAX_WORKERS) "
                "says so, raise that"
            )
        environments = self._plans[place].variables
        if environments and num > len(environments) and any(each != environments[0] for each in environments):
            raise DefinitionError(
                f"num must be at most {len(environments)}, not {num}: so many workers of {self._names[place]} have an "
                "environment (`env`, or a device) of their own; define it with as many as there are to be at most"
            )

    def _changed(self, place: int) -> None:
        num, values = self._coordinator.statistics().stages[place].workers, self._coordinator.values(place)
        plan = self._plans[place]
        self._plans[place] = replace(
            plan,
            specs=[replace(values.for_worker(plan.specs[0]), worker_id=number) for number in range(1, num + 1)],
            batch_size=values.batch_size,
            concurrency=values.concurrency,
        )
        self._on_change(self._plans)


def _combined(now: StageValues, plan: StagePlan, given: Mapping[str, Any]) -> StageValues:
    """Return the values of a stage with those of a plan that are given by name."""
    taken: dict[str, Any] = {}
    if "max_batch_size" in given:
        taken |= {
            "worker_batch_size": plan.specs[0].max_batch_size,
            "batch_size": plan.batch_size,
            "concurrency": plan.concurrency,
        }
    if "max_wait_time" in given:
        taken |= {"max_wait": plan.max_wait, "adaptive": plan.adaptive}
    if "timeout" in given:
        taken["timeout"] = plan.timeout
    if "latency_target" in given:
        taken["latency_target"] = plan.latency_target
    return replace(now, **taken)
