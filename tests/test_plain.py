from __future__ import annotations

import re

import pytest

from mosec_asgi.errors import BAD_TIMEOUT
from mosec_asgi.web.exchange import RequestIds
from mosec_asgi.web.protocols.plain import timeout_of


def test_a_request_has_no_timeout_of_its_own_unless_it_says_so() -> None:
    assert timeout_of({}) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(b"1", 0.001), (b"0250", 0.25), (b"3000", 3.0), (b"9" * 20, 1e17), (b"9" * 5000, float("inf"))],
)
def test_a_timeout_is_milliseconds_of_any_length(header: bytes, seconds: float) -> None:
    assert timeout_of({b"x-request-timeout": header}) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "header",
    [b"", b"0", b"000", b"-1", b"+5", b"1.5", b"1e3", b"0x10", b"1_000", b" 5", b"5s", b"\xb2", b"inf", b"nan"],
)
def test_what_is_no_whole_number_of_at_least_1_is_told_what_it_must_be(header: bytes) -> None:
    assert timeout_of({b"x-request-timeout": header}) is BAD_TIMEOUT
    assert BAD_TIMEOUT.code == 400
    assert all(word in BAD_TIMEOUT.text for word in ("x-request-timeout", "milliseconds", "at least 1"))


def test_ids_that_are_made_are_all_different_and_of_32_hex_digits() -> None:
    one, other = RequestIds(), RequestIds()
    ids = [source.of({}) for source in (one, other) for _ in range(100)]
    assert len(set(ids)) == 200
    assert all(re.fullmatch("[0-9a-f]{32}", made) for made in ids)


@pytest.mark.parametrize("header", [b"a", b"order 66/a", b"x" * 128, b" padded "])
def test_a_client_may_choose_the_id(header: bytes) -> None:
    assert RequestIds().of({b"x-request-id": header}) == header.decode().strip()


@pytest.mark.parametrize("header", [b"", b" ", b"x" * 129, b"a\r\nset-cookie: b", b"a\x00", b"\xc3\xa4"])
def test_an_id_that_would_do_harm_in_a_header_or_a_log_is_replaced(header: bytes) -> None:
    assert re.fullmatch("[0-9a-f]{32}", RequestIds().of({b"x-request-id": header}))
