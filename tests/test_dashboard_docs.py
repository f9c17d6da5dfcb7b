"""docs/dashboard.md is true: its program runs as it stands there, and what it says of settings and bounds is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from harness import ROOT, environment_of_programs

from mosec_asgi.config import FLAGS
from mosec_asgi.observing.history import INTERVAL, MOST_POINTS, WINDOW
from mosec_asgi.observing.metrics import LATENCY_BUCKETS

PAGE = (ROOT / "docs" / "dashboard.md").read_text()


def test_the_program_prints_what_the_service_has_done(tmp_path: Path) -> None:
    [text] = re.findall(r"```python\n(# counts\.py\n.*?)```", PAGE, re.DOTALL)
    (tmp_path / "counts.py").write_text(text)
    done = subprocess.run([sys.executable, "counts.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env=environment_of_programs())  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == "serving 100 answers", done.stderr
    assert re.fullmatch(r"half of them within 0\.\d+ s", lines[1])
    assert lines[2] == "[(1, 'ready'), (2, 'ready')]"


def test_what_it_says_of_time_is_what_is_kept() -> None:
    assert f"{MOST_POINTS * INTERVAL / 60:.0f} minutes, a point a second" in PAGE
    assert WINDOW == 5
    assert f"up to {LATENCY_BUCKETS[-1]:.0f} s" in PAGE
    assert "MOST_POINTS = 3600" in (ROOT / "mosec_asgi/web/assets_dashboard/dashboard.js").read_text()


def test_the_setting_that_it_names_is_one_and_the_picture_is_small() -> None:
    assert FLAGS["dashboard"] in PAGE
    assert (ROOT / "docs" / "dashboard.png").stat().st_size < 150_000
