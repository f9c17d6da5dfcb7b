from __future__ import annotations

import pytest

from mosec_asgi import errors
from mosec_asgi.errors import (
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


@pytest.mark.parametrize("code", [0, 200, 302, 399, 600, 99999, -1, None, "418"])
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
