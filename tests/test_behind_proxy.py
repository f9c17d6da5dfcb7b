"""Early answers behind nginx: what a client is told is what the service has said, and not the proxy's 502."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from harness import Program, free_port, serving, wait_until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

BODY = b"x" * 2_000_000
CONFIG = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream service {{ server 127.0.0.1:{upstream}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://service;
            {options}
        }}
    }}
}}
"""
OPTIONS = {
    "as it comes": "",
    "kept": 'proxy_http_version 1.1; proxy_set_header Connection "";',
    "unbuffered": 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_request_buffering off;',
}


@contextmanager
def proxied(program: Program, folder: Path, options: str) -> Iterator[httpx.Client]:
    """Run nginx before a service."""
    port = free_port()
    config = folder / "nginx.conf"
    # As root it would take another user, who may not write below the tests' folder.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(CONFIG.format(user=user, folder=folder, upstream=program.port, port=port, options=options))
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-c", str(config), "-e", str(folder / "error.log")])
    # nginx may close its own connection behind an early answer.
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, limits=limits) as client:

        def answers() -> bool:
            try:
                return client.get("/livez").status_code == 200
            except httpx.TransportError:
                return False

        try:
            wait_until(answers, "nginx does not answer")
            yield client
        finally:
            process.terminate()
            process.wait(10)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_answer_that_is_given_early_reaches_the_client(options: str, tmp_path: Path) -> None:
    stages = "server.append_worker(Raw)\nserver.append_worker(Raw, route='/packed')"
    with (
        serving(tmp_path, stages, "--max-request-size", "1000") as program,
        proxied(program, tmp_path, options) as client,
    ):
        for _ in range(5):
            assert client.post("/inference", content=BODY).status_code == 413
            assert client.post("/unknown", content=BODY).status_code == 404
            assert client.put("/inference", content=BODY).status_code == 405
            assert client.post("/inference", content=b"small").content == b"small"
