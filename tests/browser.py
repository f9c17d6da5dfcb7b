"""Chromium, for pages that are looked at as people do; every host but this machine is unknown to it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """Run Chromium for the time of a block; skip the test where there is none.

    Args:
        profile: a folder of its own.
    """
    if BROWSER is None or DRIVER is None:
        pytest.skip("the page is looked at in Chromium: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="Chromium is driven by selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=1280,1800",
        f"user-data-dir={profile}",
        "host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def requested(driver: Any) -> set[str]:
    """Return the addresses of all that the page has loaded."""
    return set(driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)"))


def complaints(driver: Any) -> list[str]:
    """Return what the browser has complained of since the last time: errors in scripts, refused or missing files."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
