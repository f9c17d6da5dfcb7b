from __future__ import annotations

from typing import Any

import pytest
from fakes import Echo

from mosec_asgi.errors import DefinitionError
from mosec_asgi.runtime import Runtime, stage_names
from mosec_asgi.worker import Worker


class Other(Echo):
    pass


class NoForward(Worker):
    pass


class NoWorker:
    def forward(self, data: Any) -> Any:
        return data


class Coroutine(Worker):
    async def forward(self, data: Any) -> Any:
        return data


class AsyncGenerator(Worker):
    async def forward(self, data: Any) -> Any:
        yield data


def test_the_defaults() -> None:
    runtime = Runtime(Echo)
    assert (runtime.num, runtime.max_batch_size, runtime.max_wait_time, runtime.timeout) == (1, 1, 0, 0.0)
    assert (runtime.start_method, runtime.env) == ("spawn", None)
    assert (runtime.max_attempts, runtime.isolation_calls) == (2, None)


def test_settings_may_be_given_by_place_in_mosecs_order() -> None:
    runtime = Runtime(Echo, 2, 8, 5, 1.5, "fork", [{"A": "1"}, {"A": "2"}])
    assert (runtime.num, runtime.max_batch_size, runtime.max_wait_time, runtime.timeout) == (2, 8, 5, 1.5)
    assert (runtime.start_method, runtime.env) == ("fork", [{"A": "1"}, {"A": "2"}])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num": 0}, "num must be at least 1, not 0"),
        ({"num": 1.0}, r"num must be a whole number, not 1.0 \(float\)"),
        ({"num": True}, r"num must be a whole number, not True \(bool\)"),
        ({"max_batch_size": 0}, "max_batch_size must be at least 1, not 0"),
        ({"max_batch_size": "8"}, r"max_batch_size must be a whole number, not '8' \(str\)"),
        ({"max_wait_time": -1}, "max_wait_time must be at least 0, not -1"),
        ({"max_wait_time": 0.5}, "max_wait_time must be a whole number, not 0.5"),
        ({"timeout": -1}, "timeout must be a number of seconds, 0 or more, not -1"),
        ({"timeout": "1"}, "timeout must be a number of seconds, 0 or more, not '1'"),
        ({"timeout": float("nan")}, "timeout must be a number of seconds"),
        ({"timeout": float("inf")}, "timeout must be a number of seconds"),
        ({"timeout": True}, "timeout must be a number of seconds"),
        ({"start_method": "thread"}, "start_method must be one of spawn, fork, not 'thread'"),
        ({"env": {"A": "1"}}, "env must be a list with one dictionary per worker"),
        ({"env": ["A=1"]}, "env must be a list with one dictionary per worker"),
        ({"env": []}, "env has 0 dictionaries and num is 1; give each of the 1 workers one"),
        ({"env": [{}, {}]}, "env has 2 dictionaries and num is 1"),
        ({"env": [{"A": 1}]}, "env of worker 1: 'A': 1 must be text on both sides; write 'A': '1'"),
        ({"num": 2, "env": [{}, {2: "x"}]}, "env of worker 2: 2: 'x' must be text on both sides; write '2': 'x'"),
        ({"max_attempts": 0}, "max_attempts must be at least 1, not 0"),
        ({"isolation_calls": -1}, "isolation_calls must be at least 0, not -1"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_change(options: dict[str, Any], text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        Runtime(Echo, **options)


@pytest.mark.parametrize(
    ("worker", "text"),
    [
        (Echo(), "append the class Echo itself, not an instance"),
        (NoWorker, "is no worker: a worker is a subclass of mosec_asgi.Worker"),
        (print, "is no worker"),
        ("Echo", "'Echo' is no worker"),
        (NoForward, "the worker NoForward does not define forward; add it to the class"),
        (Worker, "does not define forward"),
        (Coroutine, "Coroutine.forward is asynchronous"),
        (AsyncGenerator, "AsyncGenerator.forward is asynchronous"),
    ],
    ids=str,
)
def test_what_is_no_worker_is_refused(worker: Any, text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        Runtime(worker)


def test_a_refusal_is_a_value_error_for_programs_written_for_mosec() -> None:
    with pytest.raises(ValueError, match="num must be"):
        Runtime(Echo, num=0)


def test_no_isolation_and_no_second_attempt_are_allowed() -> None:
    runtime = Runtime(Echo, max_attempts=1, isolation_calls=0)
    assert (runtime.max_attempts, runtime.isolation_calls) == (1, 0)


def test_stages_are_named_by_class_and_place_in_order_of_creation() -> None:
    first, second, third = Runtime(Echo), Runtime(Other), Runtime(Echo)
    assert stage_names([third, second, first, second]) == {first: "Echo_1", second: "Other_2", third: "Echo_3"}
    assert list(stage_names([third, first])) == [first, third]


def test_numbers_begin_anew_in_each_server() -> None:
    Runtime(Echo)
    later = Runtime(Other)
    assert stage_names([later]) == {later: "Other_1"}


def test_no_stages_have_no_names() -> None:
    assert stage_names([]) == {}
