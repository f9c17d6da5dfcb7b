from __future__ import annotations

import contextvars
import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from mosec_asgi import log


@contextmanager
def bare_program() -> Iterator[logging.Logger]:
    """Give a program that has set up nothing, and its root logger; put everything back afterwards.

    No fixture: pytest adds handlers of its own to the root logger between a test's fixtures and the test.
    """
    loggers = [logging.getLogger(name) for name in (None, log.ROOT, log.USER, "guest")]
    before = [(logger.level, logger.propagate, logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.handlers = []
        logger.propagate = True
    try:
        yield loggers[0]
    finally:
        for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate, logger.handlers = propagate, handlers


def record(message: str = "said %s", *args: object, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("mosec_asgi.pool.process.child").makeRecord(
        "mosec_asgi.pool.process.child",
        logging.WARNING,
        "/a/child.py",
        12,
        message,
        args or ("this",),
        None,
        extra=extra,
    )
    made.created = 1_700_000_000.25
    return made


def with_traceback() -> logging.LogRecord:
    made = record()
    try:
        raise KeyError("lost")
    except KeyError:
        made.exc_info = sys.exc_info()
    return made


def test_a_line_of_json_has_all_of_the_record() -> None:
    line = log.JSONFormatter().format(record(request_id="r1", worker=3, stage="Echo_1", unknown=1))
    assert "\n" not in line
    assert json.loads(line) == {
        "timestamp": "2023-11-14T22:13:20.250000Z",
        "level": "WARNING",
        "target": "mosec_asgi.pool.process.child::child.py:12",
        "pid": record().process,
        "fields": {"message": "said this", "stage": "Echo_1", "worker": 3, "request_id": "r1"},
    }


def test_the_timestamp_is_utc_whatever_the_zone() -> None:
    line = json.loads(log.JSONFormatter().format(record()))
    moment = datetime.fromisoformat(line["timestamp"].replace("Z", "+00:00"))
    assert moment - datetime.fromtimestamp(1_700_000_000.25, timezone.utc) == timedelta(0)


def test_a_traceback_is_a_field_of_the_same_line() -> None:
    line = log.JSONFormatter().format(with_traceback())
    assert "\n" not in line
    assert "KeyError: 'lost'" in json.loads(line)["fields"]["exc_info"]


@pytest.mark.parametrize(("text", "depth"), [("x" * 1_000_000, 80), ("x\n" * 500_000, 0), ("x" * 1_000_000, 400)])
def test_a_traceback_is_cut_where_its_exception_says_too_much(text: str, depth: int) -> None:
    def deep(depth: int) -> None:
        if not depth:
            raise ValueError(text)
        (deep, deeper)[depth % 2](depth - 1)

    def deeper(depth: int) -> None:
        deep(depth)

    try:
        deep(depth)
    except ValueError:
        made = record()
        made.exc_info = sys.exc_info()
    shown = json.loads(log.JSONFormatter().format(made))["fields"]["exc_info"]
    assert len(shown) < log.MOST_TRACEBACK + 100
    assert shown.startswith("Traceback")
    assert "are left out" in shown
    # The end, which says where it was raised, is not lost to a line without an end.
    assert ("raise ValueError(text)" in shown) or depth == 400


def test_a_stack_is_a_field_too() -> None:
    made = record()
    made.stack_info = "Stack (most recent call last): here"
    assert "here" in json.loads(log.JSONFormatter().format(made))["fields"]["stack_info"]


def test_any_value_of_an_extra_field_can_be_written() -> None:
    line = json.loads(log.JSONFormatter().format(record(stage=object)))
    assert "object" in line["fields"]["stage"]


def test_user_lines_are_marked_as_such() -> None:
    made = log.get_logger().makeRecord(log.USER, logging.INFO, "/a/app.py", 3, "hello", (), None)
    assert json.loads(log.JSONFormatter().format(made))["target"] == "user::app.py:3"


def test_text_for_a_person_is_coloured_and_has_the_fields_behind_the_message() -> None:
    text = log.TextFormatter().format(record(request_id="r1", stage="Echo_1"))
    assert "\x1b[33mWARNING\x1b[0m" in text
    assert text.endswith("said this stage=Echo_1 request_id=r1")
    assert log.TextFormatter().format(with_traceback()).endswith("KeyError: 'lost'")


def test_a_level_of_ones_own_is_written_without_a_colour() -> None:
    made = record()
    made.levelname = "NOTICE"
    assert "NOTICE" in log.TextFormatter().format(made)


def test_all_loggers_hang_below_the_packages_own() -> None:
    assert log.get_logger().name.startswith(log.ROOT + ".")
    assert log.internal_logger("mosec_asgi.pool.process.child").name == "mosec_asgi.pool.process.child"


def test_an_access_line_has_its_fields_for_machines_only() -> None:
    made = record(method="GET", path="/a", status=200, duration_ms=1.5, request_id="r1")
    fields = json.loads(log.JSONFormatter().format(made))["fields"]
    assert list(fields) == ["message", "request_id", "method", "path", "status", "duration_ms"]
    assert log.TextFormatter().format(made).endswith("said this request_id=r1")


# -- who speaks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def speaker() -> Iterator[dict[str, object]]:
    """What a speaker says, to be changed."""
    said: dict[str, object] = {}
    log.speak_as(lambda: said)
    yield said
    log.speak_as(dict)


def test_a_line_says_what_its_speaker_says_when_it_is_logged(
    speaker: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    with bare_program():
        log.configure("info")
        for request_id in ("r1", ""):
            speaker.update(stage="Echo_1", worker=2, request_id=request_id)
            log.get_logger().info("hello")
    first, second = (line["fields"] for line in lines(capsys))
    assert first == {"message": "hello", "stage": "Echo_1", "worker": 2, "request_id": "r1"}
    assert second == {"message": "hello", "stage": "Echo_1", "worker": 2}


def test_what_a_line_says_itself_is_kept(speaker: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    speaker.update(stage="Echo_1", request_id="all")
    with bare_program():
        log.configure("info")
        log.internal_logger("mosec_asgi.pool").info("hello", extra={"request_id": "mine"})
    assert lines(capsys)[0]["fields"] == {"message": "hello", "stage": "Echo_1", "request_id": "mine"}


def test_a_speaker_of_a_context_speaks_only_there(
    speaker: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    speaker.update(stage="process")

    def within() -> None:
        log.speak_as(lambda: {"stage": "context"}, context=True)
        log.get_logger().info("hello")

    with bare_program():
        log.configure("info")
        contextvars.copy_context().run(within)
        log.get_logger().info("hello")
    assert [line["fields"]["stage"] for line in lines(capsys)] == ["context", "process"]


def test_a_format_of_the_programs_own_can_name_the_speaker_where_there_is_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s [%(stage)s %(worker)s %(request_id)s]"))
    with bare_program() as root:
        root.addHandler(handler)
        log.configure("info")
        log.get_logger().info("hello")
    assert capsys.readouterr().err == "hello [  ]\n"


def test_nobody_is_asked_where_nothing_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> dict[str, object]:
        raise AssertionError("asked in vain")

    log.speak_as(fail)
    try:
        with bare_program():
            log.configure("warning")
            log.get_logger().info("hello")
    finally:
        log.speak_as(dict)
    assert capsys.readouterr().err == ""


# -- configure ---------------------------------------------------------------------------------------------------------


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_lines_go_to_standard_error_from_the_level_up(capsys: pytest.CaptureFixture[str]) -> None:
    with bare_program():
        log.configure("warning")
        log.get_logger().info("too low")
        log.get_logger().warning("heard")
        log.internal_logger("mosec_asgi.pool").error("heard too")
    assert [line["fields"]["message"] for line in lines(capsys)] == ["heard", "heard too"]


def test_configuring_again_replaces_and_does_not_double(capsys: pytest.CaptureFixture[str]) -> None:
    with bare_program():
        log.configure("info")
        log.configure("debug", text=True)
        log.configure("debug", text=True)
        log.get_logger().debug("once")
    text = capsys.readouterr().err
    assert text.count("once") == 1
    assert " DEBUG user::test_log.py" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("text", [False, True])
def test_a_terminal_gets_coloured_text(text: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with bare_program():
        log.configure("info", text=text)
        log.get_logger().info("hello")
    assert " \x1b[32mINFO\x1b[0m user::test_log.py" in screen.getvalue()


def test_other_loggers_can_be_sent_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    with bare_program():
        log.configure("info", others=("guest",))
        logging.getLogger("guest.room").info("hello")
    assert [line["target"].split("::")[0] for line in lines(capsys)] == ["guest.room"]


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_a_program_that_has_set_up_logging_gets_the_lines_its_own_way(capsys: pytest.CaptureFixture[str]) -> None:
    kept = Kept()
    with bare_program() as root:
        root.addHandler(kept)
        log.configure("info")
        log.get_logger().info("hello")
    assert kept.messages == ["hello"]
    assert capsys.readouterr().err == ""


def test_a_program_that_sets_up_logging_later_is_not_told_twice(capsys: pytest.CaptureFixture[str]) -> None:
    kept = Kept()
    with bare_program() as root:
        log.configure("info")
        root.addHandler(kept)
        log.configure("info")
        log.get_logger().info("hello")
    assert kept.messages == ["hello"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", [log.ROOT, log.USER])
def test_a_program_that_has_set_up_the_packages_own_loggers_is_not_told_twice(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Kept()
    with bare_program():
        logging.getLogger(name).addHandler(kept)
        logging.getLogger(name).propagate = False
        log.configure("info")
        log.get_logger().info("hello")
    assert kept.messages == ["hello"]
    assert capsys.readouterr().err == ""


def test_what_a_client_sends_cannot_colour_the_log_nor_write_lines_of_its_own() -> None:
    record = logging.LogRecord(
        "mosec_asgi.x", logging.INFO, "x.py", 1, "a\x1b[31mb\n2026-01-01 fake\r\x9b\u2028c\td", None, None
    )
    record.request_id = "evil\n\x1b]0;title\x07"
    text = log.TextFormatter(coloured=False).format(record)
    assert not set(text) & set("\x1b\r\x07\x9b\u2028")
    first, second = text.split("\n")
    assert first.endswith(r"a\x1b[31mb")
    assert second.startswith("    2026-01-01 fake")
    assert "c\td" in second
    assert r"request_id=evil\n\x1b]0;title\x07" in second


def test_the_text_of_an_exception_is_no_line_of_its_own_and_moves_no_terminal() -> None:
    made = record()
    try:
        raise ValueError("a\x1b[2J\n2026-01-01 fake")
    except ValueError:
        made.exc_info = sys.exc_info()
    text = log.TextFormatter(coloured=False).format(made)
    assert "\x1b" not in text
    _, *others = text.split("\n")
    assert all(line.startswith("    ") for line in others)
    assert others[-2:] == [r"    ValueError: a\x1b[2J", "    2026-01-01 fake"]


# -- before the start --------------------------------------------------------------------------------------------------


def test_lines_are_written_before_anything_is_configured_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    with bare_program():
        for _ in range(2):
            log.get_logger().info("early")
        log.get_logger().debug("too low")
        log.configure("info")
        log.get_logger().info("late")
    assert [line["fields"]["message"] for line in lines(capsys)] == ["early", "early", "late"]


def test_a_program_that_sets_up_logging_after_the_first_line_gets_the_others_its_own_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = Kept()
    with bare_program() as root:
        log.get_logger().info("first")
        root.addHandler(kept)
        log.get_logger().info("second")
    assert [line["fields"]["message"] for line in lines(capsys)] == ["first"]
    assert kept.messages == ["second"]


def test_a_program_that_has_set_up_logging_is_left_alone_before_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    kept = Kept()
    with bare_program() as root:
        root.addHandler(kept)
        log.get_logger().warning("early")
        assert not logging.getLogger(log.ROOT).handlers
    assert kept.messages == ["early"]
    assert capsys.readouterr().err == ""
