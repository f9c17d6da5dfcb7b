"""Programs that are started without some of the standard streams."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest
from harness import free_port, wait_until, written

PROGRAM = """
    import os, sys

    from mosec_asgi import Server, Worker

    class Streams(Worker):
        def forward(self, data):
            print("printed", flush=True)
            print("printed", file=sys.stderr, flush=True)
            return [os.path.realpath(f"/proc/self/fd/{number}") for number in range(3)]

    if __name__ == "__main__":
        server = Server()
        server.append_worker(Streams, route="/spawn")
        server.append_worker(Streams, route="/fork", start_method="fork")
        server.append_worker(Streams, route="/preload", preload=True)
        server.run()
"""
CLOSED = [which for count in (1, 2, 3) for which in itertools.combinations(range(3), count)]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks at /proc")
@pytest.mark.parametrize("closed", CLOSED, ids=lambda closed: "".join(map(str, closed)))
def test_a_service_without_some_of_them_serves_and_exits_with_0(tmp_path: Path, closed: tuple[int, ...]) -> None:
    file, port = written(tmp_path, textwrap.dedent(PROGRAM)), free_port()
    output = tmp_path / "output"
    streams = "".join(f" {number}>&-" if number in closed else f" {number}>>{output}" for number in range(3))
    command = f"exec {sys.executable} -W error {file} --port {port}{streams}"
    process = subprocess.Popen(["sh", "-c", command], start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:

            def ready() -> bool:
                assert process.poll() is None
                try:
                    return client.get("/readyz").status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(ready, "it is ready")
            for route in ("/spawn", "/fork", "/preload"):
                files = json.loads(client.post(route, content=b"1").content)
                # `multiprocessing` gives the processes that it starts no standard input.
                for number in (1, 2):
                    assert files[number] == ("/dev/null" if number in closed else str(output)), route
        process.terminate()
        assert process.wait(15) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
