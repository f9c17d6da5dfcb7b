"""The dashboard in a real browser, and the numbers that it asks for."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import chromium, complaints, requested
from harness import Program, free_port, python, running, serving, until, wait_until, written
from test_swagger import MOUNTED, PROXY

from mosec_asgi import Server, Worker
from mosec_asgi.web.dashboard import ASSETS, POLICY
from mosec_asgi.web.keys import DASHBOARD_FILES

SERVICE = """
import os
import sys
from pathlib import Path
from typing import Any

from mosec_asgi import Server, Worker

BROKEN = Path(__file__).with_name("broken")


class Good(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Fragile(Worker):
    def __init__(self) -> None:
        if BROKEN.exists():
            raise RuntimeError("<img src=x onerror=alert(1)> no memory")

    def forward(self, data: list[Any]) -> list[Any]:
        if "die" in data:
            os._exit(3)
        return data


server = Server(title="<script>alert(1)</script>", dashboard=True)
server.append_worker(Good, num=2, route="/good")
server.append_worker(Fragile, max_batch_size=8, route="/<b>fragile</b>")

if __name__ == "__main__":
    server.run()
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def browser(driver: Any) -> Any:
    # The page of the test before asks on, and complains that nobody answers.
    driver.get("about:blank")
    complaints(driver)
    return driver


def shows(driver: Any, selector: str, text: str) -> None:
    """Wait until an element that matches says `text`."""

    def said() -> bool:
        script = "return [...document.querySelectorAll(arguments[0])].map(each => each.textContent)"
        return any(text in each for each in driver.execute_script(script, selector))

    wait_until(said, f"no {selector} says {text!r}: {driver.execute_script('return document.body.innerText')}")


def draws(driver: Any, place: int) -> bool:
    """Whether a line of the plot at this place has been drawn: some of its canvas has a strong colour."""
    script = """
        const canvas = document.querySelectorAll("canvas")[arguments[0]];
        if (!canvas) return false;
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        for (let i = 0; i < data.length; i += 4) {
            const [r, g, b, a] = data.slice(i, i + 4);
            if (a > 200 && Math.max(r, g, b) - Math.min(r, g, b) > 100) return true;
        }
        return false;
    """
    return bool(driver.execute_script(script, place))


@contextmanager
def on_its_own(folder: Path) -> Iterator[Program]:
    file = written(folder, SERVICE, "service.py")
    with running(python(file), folder / "service.log", cwd=folder) as program:
        program.wait_ready()
        yield program


@contextmanager
def mounted_behind_a_proxy(folder: Path) -> Iterator[Program]:
    written(folder, SERVICE, "service.py")
    written(folder, MOUNTED, "mounted.py")
    command = [sys.executable, "-m", "uvicorn", "mounted:app", "--port", "{port}", "--root-path", "/proxy"]
    with running(command, folder / "mounted.log", cwd=folder) as mounted:
        mounted.wait_ready("/ml/readyz")
        proxy = [sys.executable, str(written(folder, PROXY, "proxy.py")), "{port}", str(mounted.port)]
        with running(proxy, folder / "proxy.log", stops=False) as program:
            program.client.base_url = f"{program.url}/proxy/ml/"
            program.wait_ready()
            yield program


@pytest.mark.parametrize("served", [on_its_own, mounted_behind_a_proxy])
def test_the_page_shows_what_the_service_does_with_no_network(browser: Any, tmp_path: Path, served: Any) -> None:
    with served(tmp_path) as program:
        url = str(program.client.base_url).rstrip("/")
        browser.get(f"{url}/dashboard/")
        shows(browser, "#state", "serving")
        # While nobody asks anything, it says so.
        shows(browser, ".tile", "Answers0 /s")
        for number in range(20):
            assert program.client.post("good", json=number).status_code == 200
        shows(browser, ".tile", "20 in all")
        shows(browser, "#routes td", "20")
        shows(browser, ".stage h3", "Good_1")
        shows(browser, ".workers li", "worker 2, ready")
        wait_until(lambda: draws(browser, 0) and draws(browser, 1), "answers and latency are not drawn")
        # Names are text.
        shows(browser, "h1", "<script>alert(1)</script>")
        shows(browser, ".routes", "/<b>fragile</b>")
        links = browser.execute_script("return [...document.querySelectorAll('nav a')].map(each => each.href)")
        assert links == [f"{url}/", f"{url}/openapi/swagger/", f"{url}/metrics"]
        assert all(address.startswith(f"{url}/") for address in requested(browser)), requested(browser)
        assert complaints(browser) == []


def test_it_shows_a_stage_that_dies_and_a_service_that_goes_and_comes_back(browser: Any, tmp_path: Path) -> None:
    port = str(free_port())
    file = written(tmp_path, SERVICE, "service.py")
    command = [sys.executable, str(file), "--port", port]
    url = f"http://127.0.0.1:{port}"

    with running(command, tmp_path / "first.log", cwd=tmp_path), httpx.Client(base_url=url) as client:

        def ready() -> bool:
            try:
                return client.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(ready, "it does not start")
        browser.get(f"{url}/dashboard/")
        shows(browser, "#state", "serving")
        (tmp_path / "broken").touch()
        assert client.post("/<b>fragile</b>", json="die").status_code in (500, 503)
        shows(browser, "#notice", "No worker of Fragile_2 starts")
        shows(browser, ".fault", "<img src=x onerror=alert(1)> no memory")
        assert complaints(browser) == []
    shows(browser, "#state", "no connection")
    (tmp_path / "broken").unlink()
    with running(command, tmp_path / "second.log", cwd=tmp_path):
        shows(browser, "#state", "serving")
        shows(browser, ".stage .state", "1 of 1 ready")
        wait_until(lambda: not browser.find_element("id", "notice").is_displayed(), "the notice stays")
        # Before it, nothing but that nobody answered.
        assert all("CONNECTION" in each for each in complaints(browser))


def test_on_a_phone_nothing_is_wider_than_the_screen_and_at_night_it_is_dark(browser: Any, tmp_path: Path) -> None:
    with on_its_own(tmp_path) as program:
        size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        try:
            browser.get(f"{program.url}/dashboard/")
            shows(browser, ".stage h3", "Good_1")
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
            colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert max(int(part) for part in re.findall(r"\d+", colour)) < 60
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_where_there_are_api_keys_the_page_asks_for_one(browser: Any, tmp_path: Path) -> None:
    key = "0123456789abcdef0123"
    with serving(tmp_path, "server.append_worker(Echo)", "--dashboard", environment={"MOSEC_API_KEYS": key}) as program:
        browser.get(f"{program.url}/dashboard/")
        shows(browser, "#state", "locked")
        browser.find_element("id", "key-text").send_keys("wrong\n")
        # It is hidden while the key is tried.
        wait_until(browser.find_element("id", "key").is_displayed, "it asks again")
        shows(browser, "#state", "locked")
        browser.find_element("id", "key-text").clear()
        browser.find_element("id", "key-text").send_keys(f"{key}\n")
        shows(browser, "#state", "serving")
        assert not browser.find_element("id", "key").is_displayed()
        # It is kept for this tab, and stands in no address.
        browser.refresh()
        shows(browser, "#state", "serving")
        assert not any(key in address for address in requested(browser))
        assert all("401" in each for each in complaints(browser))


# -- its files and numbers ---------------------------------------------------------------------------------------------


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


def server_of(**settings: Any) -> Server:
    server = Server(**settings)
    server.append_worker(Echo, executor="thread")
    return server


def client_of(server: Server, root_path: str = "") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(server, root_path=root_path), base_url="http://test")


@pytest.mark.parametrize("prefix", ["", "/proxy"])
async def test_the_page_and_its_files_are_there_whether_or_not_the_path_has_the_prefix(prefix: str) -> None:
    server = server_of(dashboard=True)
    async with server.lifespan(), client_of(server, root_path="/proxy") as client:
        page = await client.get(f"{prefix}/dashboard/")
        files = re.findall(r'(?:src|href)="([^".][^"]*)"', page.text)
        assert len(files) == 5
        assert {"/dashboard", "/dashboard/", *(f"/dashboard/{file}" for file in files)} == DASHBOARD_FILES
        for file in files:
            answer = await client.get(f"{prefix}/dashboard/{file}")
            assert (answer.status_code, answer.content) == (200, (ASSETS / file).read_bytes())
        assert (await client.get(f"{prefix}/dashboard/data")).json()["report"]["state"] == "serving"
        without_slash = await client.get(f"{prefix}/dashboard")
        assert (without_slash.status_code, without_slash.headers["location"]) == (307, "dashboard/")


async def test_the_browser_is_told_to_run_nothing_but_the_files_of_the_page() -> None:
    server = server_of(dashboard=True)
    async with server.lifespan(), client_of(server) as client:
        page = await client.get("/dashboard/")
        assert page.headers["content-security-policy"] == POLICY
        assert "unsafe" not in POLICY
        assert re.findall(r'(?:src|href)="(?:/|\w+:)', page.text) == []
        assert re.findall(r"<script[^>]*>[^<]", page.text) == []
        assert re.findall(r"\s(?:style|on\w+)=", page.text) == []
    # What the service says is never made HTML of.
    script = (ASSETS / "dashboard.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", script)


@pytest.mark.parametrize(("settings", "status"), [({}, 404), ({"dashboard": True}, 200), ({"debug": True}, 200)])
async def test_there_is_a_dashboard_where_it_is_wished_for_or_debug_is_on(settings: Any, status: int) -> None:
    server = server_of(**settings)
    async with server.lifespan(), client_of(server) as client:
        assert (await client.get("/dashboard/")).status_code == status
        assert (await client.get("/dashboard/data")).status_code == status
        links = (await client.get("/openapi/swagger/links.json")).json()
        assert links == {"dashboard": status == 200}


async def test_a_page_is_sent_only_the_points_that_it_has_not() -> None:
    server = server_of(dashboard=True)
    async with server.lifespan(), client_of(server) as client:

        async def told(**query: str) -> Any:
            answer = await client.get("/dashboard/data", params=query)
            assert answer.headers["cache-control"] == "no-store"
            return answer.json()

        first: Any = {}

        async def recorded() -> bool:
            nonlocal first
            first = await told()
            return len(first["history"]["times"]) > 0

        while not await recorded():
            await until_next_point(server)
        run, after = first["run"], str(first["history"]["next"])
        assert len((await told(run=run, after=after))["history"]["times"]) <= 1
        # Whatever else is asked for is as if nothing were.
        for wrong in ({"run": "other", "after": after}, {"run": run, "after": "-1"}, {"run": run, "after": "9" * 5000}):
            assert (await told(**wrong))["history"]["first"] == 0


async def until_next_point(server: Server) -> None:
    before = server.statistics().uptime
    await until(lambda: server.statistics().uptime > before + 0.2, "time stands still")


async def test_the_record_goes_on_while_nobody_looks_and_ends_with_the_service() -> None:
    import asyncio

    server = server_of(dashboard=True)
    async with server.lifespan(), client_of(server) as client:
        [record] = [task for task in asyncio.all_tasks() if "Dashboard.record" in repr(task.get_coro())]
        await until(lambda: server.statistics().uptime > 2.2, "time stands still")
        assert len((await client.get("/dashboard/data")).json()["history"]["times"]) >= 2
    await until(record.done, "the record goes on after the service's end")
    assert record.cancelled()


def test_the_licence_of_the_charting_library_lies_beside_it() -> None:
    folder = ASSETS / "uplot"
    assert "MIT License" in (folder / "LICENSE").read_text()
    version = re.search(r"# uPlot (\S+)", (folder / "README.md").read_text())
    assert version
    assert f"v{version[1]}" in (folder / "uPlot.iife.min.js").read_text()
