"""The settings for pages of other sites (CORS), and for host names."""

from __future__ import annotations

from typing import Any

import pytest
from workers import Echo

from mosec_asgi import Server, testing
from mosec_asgi.config import Settings

ORIGIN = {"origin": "https://app.example"}


def server_with(**settings: Any) -> Server:
    server = Server(**settings)
    server.append_worker(Echo)
    return server


async def test_pages_of_the_origins_may_ask_and_read_what_they_need() -> None:
    async with testing.serving(server_with(cors_origins=["https://app.example"], api_keys="a" * 20)) as service:
        asks = {**ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        before = await service.client.options("/inference", headers=asks)
        assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, ORIGIN["origin"])
        assert "authorization" in before.headers["access-control-allow-headers"]
        answer = await service.client.post("/inference", json=1, headers={**ORIGIN, "x-api-key": "a" * 20})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN["origin"])
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        refused = await service.client.post("/inference", json=1, headers=ORIGIN)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN["origin"])
        other = await service.client.post("/inference", json=1, headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_without_the_setting_no_page_of_another_site_reads_anything() -> None:
    async with testing.serving(server_with()) as service:
        answer = await service.client.post("/inference", json=1, headers=ORIGIN)
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_other_hosts_are_refused_but_for_health() -> None:
    async with testing.serving(server_with(allowed_hosts="api.example,*.internal.example")) as service:
        for host, status in (("api.example", 200), ("api.example:8000", 200), ("a.internal.example", 200)):
            assert (await service.client.post("/inference", json=1, headers={"host": host})).status_code == status
        for host in ("evil.example", "10.0.0.1", "api.example.evil.example"):
            assert (await service.client.post("/inference", json=1, headers={"host": host})).status_code == 400
            assert (await service.client.get("/metrics", headers={"host": host})).status_code == 400
            assert (await service.client.get("/readyz", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("name", ["cors_origins", "allowed_hosts"])
def test_they_take_requests_off_the_direct_way_which_is_said(name: str) -> None:
    server = server_with()
    server._settings = Settings(**{name: "a.example"})  # type: ignore[arg-type]
    assert server.why_not_direct() == f"the setting {name} is set"
