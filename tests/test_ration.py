from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from mosec_asgi.ration import MOST, SECONDS, Ration

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
    say()
    assert messages(caplog)[MOST:] == [
        "900 more lines were left out, 100 are logged in 10 s; the last one was: refused: 999"
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


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger.name)
