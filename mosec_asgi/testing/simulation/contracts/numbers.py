"""The service's own statistics are those of the model."""

from __future__ import annotations

import math
from dataclasses import replace

from mosec_asgi.batching.engine import StageStatistics, Statistics
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
            there = _statistics_of(stage)
            if there != replace(told, expected_wait=0.0, places=()):
                text = f"stage {stage.index} counts {told}, not {there}"
                raise self._journal.fail(Contract.CANCELLATION, text)


def _statistics_of(stage: StageModel) -> StageStatistics:
    ready, plan = stage.ready, stage.plan
    return StageStatistics(
        plan.name,
        len(stage.live()),
        sum(len(life.unheard) for life in ready),
        sum(min(plan.concurrency, life.running) for life in ready),
        len(ready),
        len(stage.places),
        stage.restarts,
        stage.down,
        batch_size=plan.batch_size,
        concurrency=plan.concurrency,
    )
