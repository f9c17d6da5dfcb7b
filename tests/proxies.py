"""Runs nginx, Debian's, before services."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from harness import wait_until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian's package nginx-light)")

CONFIG = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {inside}
}}
"""


@contextmanager
def nginx(folder: Path, port: int, inside: str) -> Iterator[httpx.Client]:
    """Run nginx for the time of a block, from when it answers `/livez`.

    Args:
        folder: for all of its files.
        port: on which `inside` has it listen.
        inside: what stands in its block `http`.
    """
    assert NGINX is not None
    config = folder / "nginx.conf"
    # As root it would take another user, who may not write below the tests' folder.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(CONFIG.format(user=user, folder=folder, inside=inside))
    process = subprocess.Popen([NGINX, "-c", str(config), "-e", str(folder / "error.log")])
    # nginx may close its own connection behind an early answer.
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, limits=limits) as client:

        def answers() -> bool:
            assert process.poll() is None, (folder / "error.log").read_text()
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
