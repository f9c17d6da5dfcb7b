"""The service's own statistics are those of the model."""

from __future__ import annotations

import math
from dataclasses import replace

from mosec_asgi.batching.engine import StageStatistics, Statistics
from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.model import StageModel


class Numbers(Checker):
    """Checks what the service counts."""

    def compare(self, statistics: Statistics) -> None:
        """Check that the service's own numbers are those of the model."""
        require = self._journal.require
        admitted = (statistics.admitted, len(self._service.open))
        require(admitted[0] == admitted[1], Contract.CANCELLATION, "it counts %d admitted, not %d", *admitted)
        for stage, told in zip(self._service.stages, statistics.stages, strict=True):
            wait = told.expected_wait
            require(0.0 <= wait < math.inf, Contract.BOUNDED, "stage %d expects a wait of %s", stage.index, wait)
            # While it is changed it goes by one or the other. How many of each worker there are counts; which these
            # are is told beside, for whoever looks on.
            there = [_statistics_of(stage, plan) for plan in stage.views]
            if replace(told, expected_wait=0.0, places=(), batch_line=None) not in there:
                text = f"stage {stage.index} counts {told}, not {there[0]}"
                raise self._journal.fail(Contract.CANCELLATION, text)


def _statistics_of(stage: StageModel, plan: StagePlan) -> StageStatistics:
    at_work = stage.at_work
    return StageStatistics(
        plan.name,
        len(stage.live()),
        sum(len(life.unheard) for life in at_work),
        sum(min(plan.concurrency, life.running) for life in at_work),
        len(stage.ready),
        len(stage.places),
        stage.restarts,
        stage.down,
        batch_size=plan.batch_size,
        concurrency=plan.concurrency,
        draining=len(stage.draining),
    )
