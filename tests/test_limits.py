from __future__ import annotations

from mosec_asgi.web.limits import Limits, Patience

LIMITS = Limits(read_timeout=10.0, least_rate=100)


def test_a_body_of_which_nothing_comes_is_waited_for_as_long_as_a_head() -> None:
    assert Patience(LIMITS, 5.0).until == 15.0


def test_what_comes_brings_time_at_the_least_rate() -> None:
    patience = Patience(LIMITS, 0.0)
    patience.arrived(200, 9.0)
    assert patience.until == 12.0


def test_however_much_has_come_no_pause_is_longer_than_for_a_head() -> None:
    patience = Patience(LIMITS, 0.0)
    patience.arrived(1_000_000, 3.0)
    assert patience.until == 13.0
    patience.arrived(1, 12.0)
    assert patience.until == 13.01
