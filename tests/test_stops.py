"""A text goes out in whole characters, up to where it stops, and nothing of what it stops at."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosec_asgi.protocols import StopTexts


def written(pieces: Any, stop: Any = ()) -> tuple[list[str], bool]:
    """Return what goes out for each piece and at the end, and whether the text was stopped."""
    out, given = StopTexts(stop), []
    for piece in pieces:
        given.append(out.add(piece))
        if out.stopped:
            break
    return [*given, out.end()], out.stopped


def single(text: str) -> list[bytes]:
    return [bytes([byte]) for byte in text.encode()]


def test_a_character_of_several_tokens_goes_out_whole() -> None:
    assert written(single("é€")) == (["", "é", "", "", "€", ""], False)


def test_a_character_that_is_cut_off_at_the_end_is_not_lost_silently() -> None:
    assert written([b"\xc3"]) == (["", "\ufffd"], False)


def test_nothing_of_a_stop_text_goes_out() -> None:
    assert written("one, two. three", ["o. t", "ee"]) == (["", "on", "", "e,", " ", "t", "w", "", "", "", "", ""], True)
    assert written("one, two. three", "three")[0][-2:] == ["", ""]


def test_what_only_looked_like_a_stop_text_goes_out_after_all() -> None:
    given, stopped = written("stoop", ["stop", "oops"])
    assert ("".join(given), stopped) == ("stoop", False)


@pytest.mark.parametrize("stop", [(), None, "", [""]])
def test_without_a_stop_text_all_goes_out_at_once(stop: Any) -> None:
    assert written(["a", b"b"], stop or ()) == (["a", "b", ""], False)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_however_a_text_is_cut_it_ends_before_the_first_stop_text(text: str, stops: list[str], data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    given, stopped = written(pieces, stops)
    # The one that is whole first decides; of several that are whole with the same piece, the one that begins first.
    if not stopped:
        assert ("".join(given), any(stop in text for stop in stops)) == (text, False)
    else:
        out = "".join(given)
        assert text.startswith(out)
        assert any(text[len(out) :].startswith(stop) for stop in stops)
        assert not any(stop in out for stop in stops)
