"""The plot of the ratios: that of the committed results, with every scenario by its title."""

from __future__ import annotations

import json
from html import unescape

from harness import ROOT, benchmark

ratios = benchmark("ratios")
RESULTS = ROOT / "benchmarks" / "results"
DATA = json.loads((RESULTS / "latest.json").read_text())


def test_the_committed_plot_is_that_of_the_committed_results() -> None:
    assert (RESULTS / "latest.svg").read_text() == ratios.svg(DATA), "run python benchmarks/ratios.py"


def test_each_scenario_stands_there_by_its_title_and_ratio() -> None:
    drawn = unescape(ratios.svg(DATA))
    for one in DATA["scenarios"]:
        assert f">{one['title']}<" in drawn
        assert f">{one['ratio']:.1f}<" in drawn
        assert f">{one['name']}<" not in drawn


def test_a_slower_one_has_its_bar_to_the_left_of_one() -> None:
    slower = DATA | {"scenarios": [DATA["scenarios"][0] | {"ratio": 0.8, "rounds": {"ratio": [0.75, 0.8, 0.9]}}]}
    equal = DATA | {"scenarios": [DATA["scenarios"][0] | {"ratio": 1.0, "rounds": {"ratio": [1.0, 1.0]}}]}
    assert 'width="0.0"' in ratios.svg(equal)
    assert 'width="0.0"' not in ratios.svg(slower)
    assert ">0.8<" in ratios.svg(slower)
