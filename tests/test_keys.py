"""API keys: which requests may pass, by their heads."""

from __future__ import annotations

import hmac

import pytest

from mosec_asgi.errors import KEY_IS_FOR_OTHERS, NO_KEY, WRONG_KEY, DefinitionError
from mosec_asgi.web.keys import MOST_KEYS, Keys, read_keys

FIRST, SECOND = "first-key-0123456789", "second-key-0123456789"


def keys_of(text: str, *public: str) -> Keys:
    return Keys(read_keys(text, "test")[0], public)


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


@pytest.mark.parametrize(
    "headers",
    [
        bearer(FIRST),
        bearer(SECOND),
        {b"authorization": b"bearer   " + FIRST.encode() + b" "},
        {b"x-api-key": FIRST.encode()},
        # Each may be for somebody else, such as a proxy.
        {b"authorization": b"Basic dTpw", b"x-api-key": FIRST.encode()},
        {b"authorization": b"Bearer another", b"x-api-key": FIRST.encode()},
        {b"authorization": f"Bearer {FIRST}".encode(), b"x-api-key": b"another"},
    ],
)
def test_any_of_the_keys_lets_a_request_pass_in_either_header(headers: dict[bytes, bytes]) -> None:
    assert keys_of(f"{FIRST},{SECOND}").refusal(headers, "/inference") is None


@pytest.mark.parametrize(
    "headers",
    [{}, {b"authorization": b""}, {b"authorization": b"Bearer"}, {b"authorization": b"Bearer  "}, {b"x-api-key": b" "}],
)
def test_a_request_without_a_key_is_told_how_to_send_one(headers: dict[bytes, bytes]) -> None:
    assert keys_of(FIRST).refusal(headers, "/inference") == NO_KEY


@pytest.mark.parametrize(
    "sent", [FIRST[:-1], FIRST + "0", FIRST.upper(), f"{FIRST} {FIRST}", "\xff\xfe", "x" * 60_000, FIRST.encode().hex()]
)
def test_a_key_that_is_nearly_right_is_wrong(sent: str) -> None:
    assert keys_of(FIRST).refusal(bearer(sent), "/inference") == WRONG_KEY


def test_a_key_may_be_for_some_paths() -> None:
    keys = keys_of(f"{FIRST} /embed /v1/*\n{SECOND}")
    for path in ("/embed", "/v1/", "/v1/chat/completions"):
        assert keys.refusal(bearer(FIRST), path) is None
    for path in ("/embedding", "/inference", "/v1", "/v2/v1/", "/metrics", "/"):
        assert keys.refusal(bearer(FIRST), path) == KEY_IS_FOR_OTHERS
        assert keys.refusal(bearer(SECOND), path) is None


def test_the_same_key_twice_is_for_the_paths_of_both() -> None:
    keys = keys_of(f"{FIRST} /a,{FIRST} /b")
    assert [keys.refusal(bearer(FIRST), path) for path in ("/a", "/b", "/c")] == [None, None, KEY_IS_FOR_OTHERS]


def test_health_is_open_and_the_rest_by_choice_alone() -> None:
    paths = {
        "root": ["/"],
        "metrics": ["/metrics"],
        "docs": ["/openapi/metadata.json", "/openapi/swagger", "/openapi/swagger/", "/openapi/swagger/index.html"],
        # Its page is open, and asks for a key itself.
        "dashboard": ["/dashboard/data", "/dashboard/other"],
    }
    for chosen in ((), *((name,) for name in paths), tuple(paths)):
        keys = keys_of(FIRST, *chosen)
        assert keys.is_open("/livez")
        assert keys.is_open("/readyz")
        for name, of_it in paths.items():
            assert [keys.is_open(path) for path in of_it] == [name in chosen] * len(of_it)
        for path in ("/inference", "/livez/x", "/livezz", "/metricsx", "", "/openapix", "/dashboards"):
            assert not keys.is_open(path), path


def test_a_wrong_key_costs_as_many_comparisons_as_a_right_one_wherever_it_stands() -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(sent: bytes, there: bytes) -> bool:
        compared.append((sent, there))
        return hmac.compare_digest(sent, there)

    entries, _ = read_keys(",".join(f"{FIRST}-{number}" for number in range(10)), "test")
    keys = Keys(entries, compare=compare)
    for sent in (f"{FIRST}-0", f"{FIRST}-5", f"{FIRST}-9", f"{FIRST}-", "something else entirely"):
        compared.clear()
        keys.refusal(bearer(sent), "/inference")
        assert [there for _, there in compared] == [key.digest for key in entries], sent
        # What is compared is a digest: a key that is right but for its end has nothing in common with the right one.
        assert {len(part) for pair in compared for part in pair} == {32}
        assert not any(sent.encode() in part for pair in compared for part in pair)


def test_other_keys_take_the_place_of_those_that_were_there_and_somebody_hears_of_it() -> None:
    keys, heard = keys_of(FIRST), []
    keys.on_change = lambda: heard.append(1)
    keys.change(read_keys(SECOND, "test")[0])
    assert (keys.refusal(bearer(FIRST), "/a"), keys.refusal(bearer(SECOND), "/a")) == (WRONG_KEY, None)
    assert heard == [1]


def test_lines_commas_comments_and_blank_lines_are_read() -> None:
    text = f"# of the team\n\n  {FIRST} /a  /b\n\t# {SECOND}\n{SECOND}, third-key-0123456789 /c\r\n"
    keys, advice = read_keys(text, "test")
    assert [key.paths for key in keys] == [("/a", "/b"), (), ("/c",)]
    assert not advice


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{FIRST}\nschl\xfcssel", r"key 2 of keys\.txt must be up to 512 printable ASCII"),
        ("k" * 513, "key 1 of keys.txt must be up to 512"),
        (f"{FIRST} {SECOND}", r"key 1 of keys\.txt is followed by .* no path; write paths such as"),
        (f"{FIRST} /a*b", "no path"),
        ("/inference", "begins with a slash"),
        ("\n".join(f"{FIRST}-{number}" for number in range(MOST_KEYS + 1)), "has 1001 keys; a service can have 1000"),
    ],
)
def test_what_is_no_key_is_refused_with_its_place(text: str, told: str) -> None:
    with pytest.raises(DefinitionError, match=told) as raised:
        read_keys(text, "keys.txt")
    assert FIRST not in str(raised.value)


def test_a_key_that_can_be_guessed_is_warned_of_and_not_shown() -> None:
    keys, (advice,) = read_keys(f"{FIRST},hunter2", "test")
    assert len(keys) == 2
    assert "key 2 of test has only 7 characters" in advice
    assert "hunter2" not in advice
