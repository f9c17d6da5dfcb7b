from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest

from mosec_asgi.offline.faults import WrongUse
from mosec_asgi.tuning import picture
from mosec_asgi.tuning.simulation import Played

CURVE = [Played(rate, rate, 0.01, 0.01 + rate / 1e4, (4.0,), met=True) for rate in (100.0, 200.0, 400.0)]
drawn = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")


@drawn
@pytest.mark.parametrize("target", [0.05, math.inf])
def test_a_plot_is_written_in_the_format_of_its_ending(target: float, tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    picture.check(str(path))
    picture.draw(str(path), {"best": CURVE, "now": CURVE[:1]}, target)
    assert path.read_bytes().startswith(b"\x89PNG")


@drawn
@pytest.mark.parametrize("name", ["no/folder.png", "curve.unknown"])
def test_a_plot_that_cannot_be_written_is_said_to_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="cannot be written"):
        picture.draw(str(tmp_path / name), {"best": CURVE}, 0.05)


def test_without_matplotlib_a_plot_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str, package: str | None = None) -> Any:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    with pytest.raises(WrongUse, match="needs matplotlib"):
        picture.check("curve.png")
