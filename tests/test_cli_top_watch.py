from __future__ import annotations

from mosec_asgi.cli.top.watch import MOST_POINTS, Watch
from mosec_asgi.observing.statistics import ServiceReport, StageReport


def at(count: int, *stages: str) -> ServiceReport:
    return ServiceReport(
        "serving", answered={"/a": {200: count}}, stages=tuple(StageReport(name) for name in stages or ("Model_1",))
    )


def test_two_answers_make_a_change() -> None:
    watch = Watch()
    watch.answered(at(0), 0.0, 100.0)
    assert (watch.report, watch.change) == (at(0), None)
    watch.answered(at(10), 2.0, 102.0)
    assert watch.change is not None
    assert watch.change.service.ok == 5.0


def test_what_lies_between_a_loss_and_the_next_answer_is_no_interval() -> None:
    watch = Watch()
    watch.answered(at(0), 0.0, 100.0)
    watch.answered(at(10), 1.0, 101.0)
    watch.lost("refused", 102.0)
    watch.lost("refused", 103.0)
    assert (watch.fault, watch.lost_at, watch.report) == ("refused", 102.0, at(10))
    watch.answered(at(50), 4.0, 104.0)
    assert (watch.fault, watch.change) == ("", None)


def test_a_service_of_other_stages_is_another_one() -> None:
    watch = Watch()
    watch.answered(at(0), 0.0, 100.0)
    watch.answered(at(10, "Model_1", "Other_2"), 1.0, 101.0)
    assert watch.change is None


def test_the_last_throughputs_are_kept() -> None:
    watch = Watch()
    for second in range(MOST_POINTS + 20):
        watch.answered(at(second * second), float(second), 100.0 + second)
    assert len(watch.throughput()) == MOST_POINTS
    assert watch.throughput()[-1] == 2 * (MOST_POINTS + 19) - 1
