"""`/`: a browser gets a page with the way to the others, everybody else mosec's line."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import httpx
import pytest

from mosec_asgi import Server, Worker

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


async def page_of(server: Server, root_path: str = "", **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(server, root_path=root_path)
    async with server.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/", headers=headers)


def server_of(*routes: str, **settings: Any) -> Server:
    server = Server(**settings)
    for route in routes:
        server.append_worker(Echo, route=route, executor="thread")
    return server


async def test_who_asks_for_no_html_is_told_as_by_mosec_that_the_service_is_there() -> None:
    answer = await page_of(server_of("/inference"), accept="*/*")
    assert (answer.status_code, answer.text) == (200, "mosec-asgi service")
    assert answer.headers["vary"] == "accept"


@pytest.mark.parametrize("dashboard", [True, False])
async def test_a_browser_is_shown_the_way_to_the_pages_that_there_are(dashboard: bool) -> None:
    answer = await page_of(server_of("/v1/a", "/v1/b", dashboard=dashboard), root_path="/proxy", **BROWSER)
    links = re.findall(r'href="([^"]+)"', answer.text)
    # Relative, so that they are right below any prefix.
    there = ["openapi/swagger/", "openapi/metadata.json", "metrics", "readyz"]
    assert sorted(links) == sorted([*there, "dashboard/"] if dashboard else there)
    assert "POST /v1/a" in answer.text
    assert "POST /v1/b" in answer.text


async def test_a_title_and_a_route_are_text_and_no_html() -> None:
    answer = await page_of(server_of("/a/<b>x", title="<script>alert(1)</script>"), **BROWSER)
    assert "<script" not in answer.text
    assert "<b>" not in answer.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text


async def test_the_browser_runs_no_script_and_knows_the_style() -> None:
    answer = await page_of(server_of("/inference"), **BROWSER)
    found = re.search("<style>(.*)</style>", answer.text, re.DOTALL)
    assert found
    digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_a_service_of_very_many_routes_names_some_of_them() -> None:
    answer = await page_of(server_of(*[f"/{number}" for number in range(60)]), **BROWSER)
    assert answer.text.count("POST /") == 50
    assert "and 10 more" in answer.text
