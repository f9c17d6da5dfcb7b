"""`Delta`: a text that knows more than its text, on any way."""

from __future__ import annotations

import pickle

from mosec_asgi.events import Delta, encode_chunk, encode_event


def test_a_delta_is_its_text_where_nobody_reads_the_rest() -> None:
    delta = Delta("some", finish_reason="stop", usage={"prompt_tokens": 1})
    assert delta == "some"
    assert encode_event(delta) == b"data: some\n\n"
    assert encode_chunk(delta) == b"some"


def test_a_delta_keeps_the_rest_on_its_way_to_the_server() -> None:
    call = {"index": 0, "id": "call_1"}
    delta = Delta("some", finish_reason="stop", usage={"prompt_tokens": 1}, tool_calls=[call])
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(delta, protocol))
        assert (type(copy), str(copy), copy.finish_reason, copy.usage, copy.tool_calls) == (
            Delta,
            "some",
            "stop",
            {"prompt_tokens": 1},
            [call],
        )
    assert repr(copy) == f"Delta('some', finish_reason='stop', usage={{'prompt_tokens': 1}}, tool_calls=[{call}])"


def test_a_delta_may_be_without_any() -> None:
    assert (Delta(), Delta().finish_reason, repr(Delta("a"))) == ("", None, "Delta('a')")
