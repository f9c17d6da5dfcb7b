from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from mosec_asgi import log
from mosec_asgi.ration import MOST_TEXT, MOST_TEXT_AGAIN, Ration, RationedLogger, later_in_thread
from mosec_asgi.rationing import MOST, MOST_WHOLE, SECONDS

logger = logging.getLogger("mosec_asgi.test_ration")


class Clock:
    """A clock that a test moves, and what is to be called later."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.due.append((self.now + seconds, callback))
        return Timer(self, self.due[-1])


class Timer:
    def __init__(self, clock: Clock, entry: tuple[float, Callable[[], None]]) -> None:
        self.clock = clock
        self.entry = entry

    def cancel(self) -> None:
        if self.entry in self.clock.due:
            self.clock.due.remove(self.entry)


def flood(ration: Ration, lines: int, text: str = "refused: %s") -> None:
    for number in range(lines):
        ration.log(logging.WARNING, text, number)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == logger.name]


def test_of_a_flood_some_lines_are_logged_and_the_end_of_the_stretch_says_how_many_were_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    flood(Ration(logger, clock.later, clock), 10 * MOST)
    assert messages(caplog) == [f"refused: {number}" for number in range(MOST)]
    [(when, say)] = clock.due
    assert when == clock.now + SECONDS
    clock.now = when
    say()
    assert messages(caplog)[MOST:] == [
        "900 more lines were left out in the last 10.0 s, as 100 are logged in 10 s; the last one was: refused: 999"
    ]
    say()
    assert len(messages(caplog)) == MOST + 1


def test_without_a_timer_the_next_line_says_it(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    ration = Ration(logger, clock=clock)
    flood(ration, MOST + 1)
    clock.now += SECONDS
    flood(ration, 1)
    left_out, line = messages(caplog)[MOST:]
    assert left_out.startswith("1 more lines were left out")
    assert line == "refused: 0"


def test_or_the_end(caplog: pytest.LogCaptureFixture) -> None:
    ration = Ration(logger, clock=Clock())
    flood(ration, MOST + 3)
    ration.say_all()
    assert messages(caplog)[MOST].startswith("3 more lines were left out")


def test_the_end_leaves_no_timer() -> None:
    # It would keep what it belongs to in memory, and speak for a service that has stopped.
    clock = Clock()
    ration = Ration(logger, clock.later, clock)
    flood(ration, MOST + 3)
    assert clock.due
    ration.say_all()
    assert not clock.due


def test_a_flood_of_one_kind_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    ration = Ration(logger, clock=Clock())
    flood(ration, 2 * MOST)
    ration.log(logging.WARNING, "ended")
    assert messages(caplog)[-1] == "ended"


def test_after_the_stretch_lines_are_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    ration = Ration(logger, clock.later, clock)
    flood(ration, MOST)
    clock.now += SECONDS
    flood(ration, MOST)
    assert len(messages(caplog)) == 2 * MOST
    assert not clock.due


def test_a_line_says_where_it_was_logged_and_whose_it_is(caplog: pytest.LogCaptureFixture) -> None:
    Ration(logger).log(logging.INFO, "text", extra={"request_id": "r1"})
    [record] = [record for record in caplog.records if record.name == logger.name]
    assert (record.filename, record.request_id) == ("test_ration.py", "r1")  # type: ignore[attr-defined]


def fail(number: int) -> ValueError:
    try:
        raise ValueError(f"input {number}")
    except ValueError as error:
        return error


def fail_with(ration: Ration, count: int, error: Callable[[int], Exception] = fail) -> None:
    for number in range(count):
        extra = {"request_id": f"r{number}"}
        ration.fault(logging.ERROR, "failed: %s", f"input {number}", error=error(number), extra=extra)


def test_the_first_faults_have_tracebacks_the_next_a_line_with_their_place_and_all_their_request_ids(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fail_with(Ration(logger, clock=Clock()), MOST)
    records = [record for record in caplog.records if record.name == logger.name]
    assert [bool(record.exc_info) for record in records] == [True] * MOST_WHOLE + [False] * (MOST - MOST_WHOLE)
    assert [record.request_id for record in records] == [f"r{number}" for number in range(MOST)]  # type: ignore[attr-defined]
    assert records[0].getMessage() == "failed: input 0"
    assert records[-1].getMessage().startswith(f"failed: input {MOST - 1} (as others before, which have their traceb")
    assert "test_ration.py:" in records[-1].getMessage()
    assert records[-1].filename == "test_ration.py"


def test_beyond_them_a_summary_says_how_many_requests_have_failed(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    ration = Ration(logger, clock.later, clock)
    fail_with(ration, MOST)
    for _ in range(5):
        ration.fault(logging.ERROR, "failed: %s", "", error=fail(0), extra={"request_id": "a b c"}, requests=3)
    [(when, say)] = clock.due
    clock.now = when
    say()
    [summary] = [record for record in caplog.records if record.name == logger.name][MOST:]
    assert summary.getMessage().startswith("15 more requests have failed in the same way in the last 10.0 s")
    assert (summary.levelno, summary.request_id) == (logging.ERROR, "a b c")  # type: ignore[attr-defined]


def test_another_fault_is_shown_with_its_traceback_at_once(caplog: pytest.LogCaptureFixture) -> None:
    ration = Ration(logger, clock=Clock())
    fail_with(ration, 2 * MOST)
    fail_with(ration, 1, lambda number: KeyError(number))
    assert caplog.records[-1].exc_info


def test_what_clients_have_sent_makes_no_line_long(caplog: pytest.LogCaptureFixture) -> None:
    ration = Ration(logger, clock=Clock())
    for _ in range(MOST_WHOLE + 1):
        ration.fault(logging.ERROR, "%s", "x" * 1_000_000, error=ValueError())
    ration.log(logging.WARNING, "refused: %s", "y" * 1_000_000)
    sizes = [len(message) for message in messages(caplog)]
    assert max(sizes) < MOST_TEXT + 100
    assert sizes[MOST_WHOLE] < MOST_TEXT_AGAIN + 200


def test_ten_minutes_of_one_fault_write_some_bytes_a_second(caplog: pytest.LogCaptureFixture) -> None:
    def fail_long(number: int) -> Exception:
        try:
            raise ValueError("x" * 100_000)
        except ValueError as error:
            return error

    clock = Clock()
    ration = Ration(logger, clock.later, clock)
    for _ in range(600):
        clock.now += 1
        while clock.due and clock.due[0][0] <= clock.now:
            clock.due.pop(0)[1]()
        fail_with(ration, 50, fail_long)
    ration.say_all()
    records = [record for record in caplog.records if record.name == logger.name]
    written = sum(len(log.JSONFormatter().format(record)) for record in records)
    assert written / 600 < 2000
    summaries = [text for record in records if "more requests have failed" in (text := record.getMessage())]
    assert len(records) - len(summaries) + sum(int(text.split()[0]) for text in summaries) == 50 * 600


def test_one_timer_speaks_for_all_kinds_each_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    ration = Ration(logger, clock.later, clock)
    flood(ration, MOST + 1, "one: %s")
    clock.now += 4
    flood(ration, MOST + 2, "other: %s")
    for count in (1, 2):
        [(when, say)] = clock.due
        clock.due.clear()
        clock.now = when
        say()
        assert messages(caplog)[-1].startswith(f"{count} more lines")
    assert not clock.due


def test_a_timer_that_comes_before_its_time_ends_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    # As on a virtual clock, of which the ration's own does not know.
    clock = Clock()
    ration = Ration(logger, clock.later, clock)
    flood(ration, MOST + 1)
    [(_, say)] = clock.due
    clock.due.clear()
    say()
    assert messages(caplog)[-1].startswith("1 more lines")
    assert not clock.due


def test_where_no_timer_can_be_had_the_next_line_says_it(caplog: pytest.LogCaptureFixture) -> None:
    def later(seconds: float, callback: Callable[[], None]) -> Timer:
        raise RuntimeError("can't start new thread")

    clock = Clock()
    ration = Ration(logger, later, clock)
    flood(ration, MOST + 1)
    clock.now += SECONDS
    flood(ration, 1)
    assert messages(caplog)[MOST].startswith("1 more lines")


def test_a_thread_says_it_where_no_event_loop_runs() -> None:
    said = threading.Event()
    timer = later_in_thread(0.0, said.set)
    assert said.wait(30)
    timer.cancel()


def test_threads_share_a_ration_and_nothing_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    ration = Ration(logger, clock=Clock())
    threads = [threading.Thread(target=flood, args=(ration, MOST)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ration.say_all()
    assert len(messages(caplog)) == MOST + 1
    assert messages(caplog)[-1].startswith(f"{7 * MOST} more lines")


def test_a_logger_in_anothers_place_rations_warnings_and_errors(caplog: pytest.LogCaptureFixture) -> None:
    ration = Ration(logger, clock=Clock())
    rationed = RationedLogger(logger, ration, ration)
    for number in range(2 * MOST):
        rationed.warning("invalid")
        rationed.error("without a fault: %s", number)
        rationed.error("with a fault", exc_info=fail(number))
    assert len(messages(caplog)) == 3 * MOST
    assert sum(bool(record.exc_info) for record in caplog.records) == MOST_WHOLE
    assert rationed.level == logger.level


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger.name)
