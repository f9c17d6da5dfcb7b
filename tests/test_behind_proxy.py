"""Early answers behind nginx: what a client is told is what the service has said, and not the proxy's 502."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import free_port, serving
from proxies import needs_nginx, nginx

pytestmark = needs_nginx

BODY = b"x" * 2_000_000
CONFIG = """
client_max_body_size 0;
upstream service {{ server 127.0.0.1:{upstream}; keepalive 4; }}
server {{
    listen 127.0.0.1:{port};
    location / {{
        proxy_pass http://service;
        {options}
    }}
}}
"""
OPTIONS = {
    "as it comes": "",
    "kept": 'proxy_http_version 1.1; proxy_set_header Connection "";',
    "unbuffered": 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_request_buffering off;',
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_answer_that_is_given_early_reaches_the_client(options: str, tmp_path: Path) -> None:
    stages = "server.append_worker(Raw)\nserver.append_worker(Raw, route='/packed')"
    port = free_port()
    with (
        serving(tmp_path, stages, "--max-request-size", "1000") as program,
        nginx(tmp_path, port, CONFIG.format(upstream=program.port, port=port, options=options)) as client,
    ):
        for _ in range(5):
            assert client.post("/inference", content=BODY).status_code == 413
            assert client.post("/unknown", content=BODY).status_code == 404
            assert client.put("/inference", content=BODY).status_code == 405
            assert client.post("/inference", content=b"small").content == b"small"
