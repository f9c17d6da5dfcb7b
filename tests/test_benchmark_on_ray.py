"""The numbers of `make ray` and the page that shows them agree."""

from __future__ import annotations

from harness import ROOT, benchmark

page = benchmark("on_ray.page")


def test_the_pages_table_is_that_of_the_results() -> None:
    numbers = page.read()
    assert len(numbers) >= 3
    assert page.table(numbers) in (ROOT / "docs" / "scaling.md").read_text()
