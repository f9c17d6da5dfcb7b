"""What is shown of progress: a bar on a terminal, elsewhere a line now and then, or nothing."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import Any

import pytest
from harness import environment_of_programs

from mosec_asgi.offline import display
from mosec_asgi.offline.progress import Progress

PROGRAM = """
import sys, time
if {without_rich}:
    sys.modules["rich"] = sys.modules["rich.progress"] = None
from mosec_asgi.offline import display
from mosec_asgi.offline.progress import Progress
progress = Progress(100, 0.0)
shown = display.chosen(quiet={quiet})
for number in range(10):
    progress.advance(10, float(number))
    shown.show(progress, float(number))
shown.say("said [with brackets]")
shown.close(progress, 10.0)
"""


def on_a_terminal(**options: bool) -> str:
    program = PROGRAM.format(**{"without_rich": False, "quiet": False, **options})
    ours, theirs = pty.openpty()
    environment = {**environment_of_programs(), "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen([sys.executable, "-c", program], stderr=theirs, env=environment) as process:
        os.close(theirs)
        text = b""
        while part := _read(ours):
            text += part
    os.close(ours)
    assert process.returncode == 0, text
    return text.decode()


def _read(file: int) -> bytes:
    try:
        return os.read(file, 10_000)
    # Linux's way of saying that the other end is closed.
    except OSError:
        return b""


@pytest.mark.parametrize("without_rich", [True, False])
def test_a_terminal_has_a_bar_with_rate_and_time_left(without_rich: bool) -> None:
    if not without_rich:
        pytest.importorskip("rich")
    text = on_a_terminal(without_rich=without_rich)
    assert "100%, 10 lines, 1 lines/s, 0:00 left" in text
    assert "said [with brackets]" in text
    bar = "[##############################]" if without_rich else "\u2501" * 10
    assert bar in text


def test_who_wants_quiet_sees_only_what_is_said() -> None:
    assert on_a_terminal(quiet=True).split() == ["said", "[with", "brackets]"]


def test_elsewhere_there_is_a_line_now_and_then(capsys: Any) -> None:
    shown, progress = display.Lines(0.0), Progress(None, 0.0)
    for second in range(100):
        progress.advance(1, float(second))
        shown.show(progress, float(second))
    shown.close(progress, 100.0)
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert isinstance(display.chosen(quiet=False), display.Lines)
