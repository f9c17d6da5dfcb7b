from __future__ import annotations

import os
import time
from pathlib import Path

from mosec_asgi.host.stage_use import Use, stage_metrics, use_of


def test_a_process_is_measured_by_the_kernel() -> None:
    before = use_of(os.getpid())
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    block = bytearray(1 << 26)
    after = use_of(os.getpid())
    assert before is not None
    assert after is not None
    assert 0.04 < after.cpu_seconds - before.cpu_seconds < 5
    assert after.max_rss_bytes >= len(block)


def test_of_a_process_that_is_gone_or_not_shown_nothing_is_known(tmp_path: Path) -> None:
    assert use_of(None) is None
    assert use_of(1, tmp_path) is None


def test_each_stage_is_told_what_its_example_has_cost() -> None:
    first = [Use(1.0, 10), None, Use(2.0, 20)]
    then = [Use(1.5, 11), Use(9.0, 9), Use(2.25, 22)]
    assert stage_metrics(["A", "B", "C"], first, then) == [
        {"stage": "A", "cpu_time_seconds": 0.5, "max_rss_bytes": 11},
        {"stage": "C", "cpu_time_seconds": 0.25, "max_rss_bytes": 22},
    ]
