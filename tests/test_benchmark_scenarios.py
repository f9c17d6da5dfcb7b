"""The scenarios of `make bench`: what our service is compared with can be started, and answers rightly."""

from __future__ import annotations

from typing import Any

import pytest
from harness import benchmark

scenarios = benchmark("scenarios")
servers = benchmark("servers")

# Of the other packages the wheels need not be installed.
OWN = [each for each in scenarios.SCENARIOS if each.rival not in ("mosec", "litserve")]


@pytest.mark.parametrize("scenario", OWN, ids=lambda each: each.name)
def test_what_a_scenario_of_our_own_is_compared_with_answers(scenario: Any) -> None:
    with servers.running(scenario.service, [scenario.rival, "mosec_asgi"], scenario.load) as (rival, ours):
        assert rival.package == scenario.rival
        assert ours.process.poll() is None
