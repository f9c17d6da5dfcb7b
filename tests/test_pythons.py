"""What the package needs can be installed on the oldest Python that it names."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import Requirement

TEXT = (Path(__file__).parent.parent / "pyproject.toml").read_text()


def test_the_package_for_http2_which_needs_a_later_python_is_marked_so() -> None:
    assert 'requires-python = ">=3.10"' in TEXT
    quoted = re.search(r'"(zttp[^"]*)"', TEXT)
    assert quoted
    marker = Requirement(quoted[1]).marker
    assert marker is not None
    wanted = [python for python in ("3.10", "3.11", "3.14") if marker.evaluate({"python_version": python})]
    assert wanted == ["3.11", "3.14"]
