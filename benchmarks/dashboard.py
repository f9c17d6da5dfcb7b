"""Pictures of the dashboard under load, in Chromium: light, dark, and on a phone. To be looked at, and for README.

`make dashboard` writes them to benchmarks/results/; the first, with few colours so that it is small, to docs/.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.append(str(ROOT / "tests"))

from browser import chromium  # type: ignore[import-not-found]  # noqa: E402
from harness import python, running  # type: ignore[import-not-found]  # noqa: E402

# Name, width, height, colours.
PICTURES = (("light", 1280, 1120, "light"), ("dark", 1280, 1120, "dark"), ("phone", 390, 2600, "light"))


async def load(url: str, seconds: float) -> None:
    """Ask a service as many clients do: now more, now less, in bursts, some of them wrongly."""
    limits = httpx.Limits(max_connections=400)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client:
        asked: set[asyncio.Task[None]] = set()
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            rate = 120 + 80 * math.sin(now / 12) + (400 if now % 40 < 8 else 0)
            task = asyncio.create_task(ask(client, random.random()))
            asked.add(task)
            task.add_done_callback(asked.discard)
            await asyncio.sleep(random.expovariate(rate))
        for task in asked:
            task.cancel()


async def ask(client: httpx.AsyncClient, chance: float) -> None:
    """Ask one thing, whose kind `chance` chooses, from 0 to 1."""
    with contextlib.suppress(httpx.HTTPError):
        if chance < 0.0003:
            await client.post("/v1/classify", json={"text": "die"})
        elif chance < 0.02:
            await client.post("/v1/classify", json={})
        elif chance < 0.03:
            await client.post("/v1/write", json={})
        else:
            await client.post("/v1/classify", json={"text": "to be or not to be"})


@contextlib.contextmanager
def loaded(folder: Path, seconds: float) -> Iterator[str]:
    """Run the service, and ask it for so long before the block begins, and then on."""
    program = HERE / "services" / "shown.py"
    with running(python(program), folder / "service.log") as service:
        service.wait_ready()
        command = [sys.executable, __file__, "--load", service.url, "--seconds", str(seconds + 60)]
        with running(command, folder / "load.log", stops=False):
            time.sleep(seconds)
            yield service.url


def take(driver: Any, url: str, folder: Path) -> None:
    """Write the pictures."""
    driver.get(f"{url}/dashboard/")
    for name, width, height, scheme in PICTURES:
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": name == "phone"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        time.sleep(2)
        driver.execute_script("document.documentElement.style.overflow = 'hidden'")
        driver.save_screenshot(str(folder / f"dashboard-{name}.png"))


def shrink(picture: Path, to: Path) -> None:
    """Write a picture with so few colours that it is small."""
    from PIL import Image

    with Image.open(picture) as image:
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(to, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=150, help="of load before the pictures")
    parser.add_argument("--load", metavar="URL", help="only ask a service that runs")
    options = parser.parse_args()
    if options.load:
        asyncio.run(load(options.load, options.seconds))
        return
    results = HERE / "results"
    with (
        tempfile.TemporaryDirectory() as folder,
        loaded(Path(folder), options.seconds) as url,
        chromium(Path(folder) / "profile") as driver,
    ):
        take(driver, url, results)
    shrink(results / "dashboard-light.png", ROOT / "docs" / "dashboard.png")


if __name__ == "__main__":
    main()
