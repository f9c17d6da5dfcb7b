"""The benchmark of `infer`: its services call themselves, and its loads count what was answered."""

from __future__ import annotations

import pytest
from harness import benchmark

servers = benchmark("servers")
call_load = benchmark("call_load")
calls = benchmark("calls")
problems = benchmark("problems")
scenarios = benchmark("scenarios")


def test_a_service_calls_itself_and_answers_over_http() -> None:
    load = call_load.calls()
    with servers.running("called", ["mosec_asgi"], load) as (server,):
        measured = load.put_on(server.url, 8, 1)
    assert measured.done >= measured.per_second > 0
    assert 0 < measured.p50_ms <= measured.p99_ms < 1000


def test_arrays_go_both_ways() -> None:
    with servers.alone("called_arrays") as server:
        over_http = call_load.Arrays(calls.ARRAY_LENGTH).put_on(server.url, 2, 1)
        within = call_load.calls().put_on(server.url, 2, 1)
        assert (over_http.done > 0, within.done > 0) == (True, True)
        with pytest.raises(problems.BenchmarkError, match="an array is answered"):
            call_load.Arrays(3).put_on(server.url.replace("inference", "nothing"), 1, 1)


def test_the_medians_are_held_against_their_bars(capsys: pytest.CaptureFixture[str]) -> None:
    seen = [calls.Seen(10.0, 2.0, 1.0), calls.Seen(30.0, 4.0, 1.0), calls.Seen(20.0, 90.0, 1.0)]
    assert (calls._median(seen, "per_second"), calls._median(seen, "server")) == (20.0, 4.0)
    calls._print_bar("infer takes 0.7", False, "at most 0.6")
    calls._print_bar("infer takes 0.5", True, "at most 0.6")
    assert capsys.readouterr().out.splitlines() == [
        "  infer takes 0.7 (at most 0.6) MISSED",
        "  infer takes 0.5 (at most 0.6)",
    ]


def test_infer_can_be_profiled() -> None:
    assert "infer" in {scenario.name for scenario in scenarios.PROFILED}
    assert "infer" not in {scenario.name for scenario in scenarios.SCENARIOS}, "it has no rival"
