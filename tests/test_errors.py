from __future__ import annotations

import pickle
from typing import Any

import pytest

from mosec_asgi import errors
from mosec_asgi.errors import (
    CallError,
    ClientError,
    DecodingError,
    DefinitionError,
    EncodingError,
    Failure,
    MosecError,
    MosecTimeoutError,
    ServerError,
    StartupError,
    ValidationError,
    WrongShape,
    describe,
    raised,
    too_slow,
)


@pytest.mark.parametrize(
    ("error", "base", "code", "text"),
    [
        (MosecError, Exception, 500, "mosec error: x"),
        (ClientError, MosecError, 400, "bad request: x"),
        (DecodingError, ClientError, 400, "decoding error: x"),
        (ValidationError, MosecError, 422, "request validation error: x"),
        (ServerError, MosecError, 500, "internal error: x"),
        (EncodingError, ServerError, 500, "encoding error: x"),
        (WrongShape, ServerError, 500, "internal error: x"),
        (MosecTimeoutError, BaseException, 408, "mosec timeout error: x"),
    ],
)
def test_the_tree_and_what_clients_are_told(
    error: type[BaseException], base: type[BaseException], code: int, text: str
) -> None:
    assert error.__bases__ == (base,)
    assert describe(error("x")) == Failure(code, text)
    assert type(describe(error("x")).code) is int
    assert error.__name__ in (errors.__doc__ or "")


def test_definition_and_startup_errors_are_kinds_of_python_s_own() -> None:
    assert issubclass(DefinitionError, ValueError)
    assert issubclass(StartupError, RuntimeError)
    assert not issubclass(DefinitionError, MosecError)
    assert not issubclass(StartupError, MosecError)


@pytest.mark.parametrize("error", [ValueError("a secret"), KeyboardInterrupt("a secret"), DefinitionError("a secret")])
def test_any_other_exception_tells_nothing(error: BaseException) -> None:
    assert describe(error) == Failure(500, "inference internal error")


def test_details_stay_on_one_line() -> None:
    assert describe(ClientError("a\nb\nc")).text == "bad request: a - b - c"


def test_an_error_without_details_still_says_what_it_is() -> None:
    assert describe(ClientError()).text == "bad request: bad request"


def test_a_subclass_may_set_its_code_and_message() -> None:
    class TooLong(ClientError):
        code = 413
        msg = "too long"

    assert describe(TooLong("9 s")) == Failure(413, "too long: 9 s")


@pytest.mark.parametrize("code", [0, 200, 302, 399, 499, 600, 99999, -1, None, "418"])
def test_a_code_that_would_hide_the_error_is_500(code: object) -> None:
    class Odd(ClientError):
        pass

    Odd.code = code  # type: ignore[assignment]
    assert describe(Odd("x")) == Failure(500, "bad request: x")


def test_a_code_may_be_set_on_the_instance() -> None:
    error = ServerError("x")
    error.code = 507
    assert describe(error).code == 507


def test_the_code_of_a_failure_is_a_plain_number_on_each_python() -> None:
    failures = [value for value in vars(errors).values() if isinstance(value, Failure)]
    assert errors.TIMED_OUT in failures
    for failure in [*failures, errors.at_capacity(1), describe(ClientError("no")), describe(OSError("no"))]:
        assert type(failure.code) is int
        assert str(failure.code) == f"{failure.code:d}"


def test_a_408_names_the_setting_to_raise_and_its_unit() -> None:
    assert "setting `timeout` (milliseconds; --timeout, MOSEC_TIMEOUT)" in errors.TIMED_OUT.text
    text = str(too_slow(0.5))
    assert "longer than 0.5 s" in text
    assert "`timeout` (seconds) of its stage" in text
    assert "setting `timeout` (milliseconds)" in text


class Teapot(MosecError):
    code = 418
    msg = "I am a teapot"


@pytest.mark.parametrize(
    "error",
    [ClientError("x"), DecodingError("x"), ValidationError("x"), ServerError("x"), EncodingError("x")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_has_crossed_is_the_same_again(error: MosecError) -> None:
    again = raised(describe(error))
    assert (type(again), str(again), again.code, again.retry_after) == (type(error), "x", error.code, None)
    assert describe(again) == describe(error)


@pytest.mark.parametrize(
    ("failure", "kind", "text"),
    [
        (describe(Teapot("x")), MosecError, "I am a teapot: x"),
        (describe(WrongShape("x")), ServerError, "x"),
        (describe(KeyError("x")), ServerError, "inference internal error"),
        (errors.at_capacity(3), MosecError, "too many requests: the service is at its capacity"),
        (errors.CLOSING, MosecError, "the service is shutting down"),
        (describe(too_slow(1.0)), MosecError, str(describe(too_slow(1.0)).text)),
    ],
)
def test_a_failure_is_raised_with_its_code_and_when_to_come_again(
    failure: Failure, kind: type[MosecError], text: str
) -> None:
    error = raised(failure)
    assert (type(error), str(error)) == (kind, text)
    assert (error.code, error.retry_after) == (failure.code, failure.retry_after)


def test_a_fault_of_the_caller_has_the_code_that_it_is_given() -> None:
    assert (CallError("x").code, CallError("x", 404).code) == (500, 404)
    assert describe(CallError("x", 503)) == Failure(503, "call error: x")


def test_the_fields_of_an_error_stay_with_it() -> None:
    error = ClientError("too long", fields={"code": "context_length_exceeded"})
    failure = describe(pickle.loads(pickle.dumps(error)))
    assert failure == Failure(400, "bad request: too long", fields={"code": "context_length_exceeded"})
    assert (raised(failure).fields, raised(Failure(400, "bad request: a")).fields) == (failure.fields, None)


@pytest.mark.parametrize("fields", [[1], {"a": [1]}, {1: "a"}, "code"])
def test_fields_that_are_no_plain_values_are_refused(fields: Any) -> None:
    with pytest.raises(TypeError, match="the fields of an error"):
        ClientError("a", fields=fields)
