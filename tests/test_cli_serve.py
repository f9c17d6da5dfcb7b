"""`mosec-asgi serve`: where it listens, what it says, and one line for what it cannot do."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from harness import Program, environment_of_programs, free_port, running, written

from mosec_asgi.config import FLAGS

SERVICE = '''
import os
from mosec_asgi import Server, Worker


class Double(Worker):
    """Double a number."""

    example = 21

    def forward(self, data: int) -> int:
        return 2 * data


server = Server(title="doubles")
server.append_worker(Double)
server.append_worker(Double, route="/again")
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    written(tmp_path, SERVICE, "app.py")
    return tmp_path


def command_of(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mosec_asgi", "serve", *arguments]


@contextmanager
def serving(folder: Path, *arguments: str, stops: bool = True) -> Iterator[Program]:
    command = command_of("app:server", *arguments)
    with running(command, folder / "output.log", cwd=folder, stops=stops) as program:
        yield program


def failed(folder: Path, *arguments: str) -> tuple[int, str]:
    """Return the exit code of a program that must end by itself, and the one line that it has printed."""
    done = subprocess.run(
        command_of(*arguments), cwd=folder, capture_output=True, text=True, timeout=60, env=environment_of_programs()
    )
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    return done.returncode, line


def certificate(folder: Path, name: str) -> tuple[str, str]:
    """Make a certificate and its key; return their files."""
    files = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = ["openssl", "req", "-x509", *kind, *subject, "-days", "2", "-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return files


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


def test_the_banner_has_the_routes_pages_that_are_there_and_a_curl_line_that_works(folder: Path) -> None:
    with serving(folder, "--port={port}", "--address=127.0.0.1", "--dashboard") as program:
        program.wait_for_output("  stop ")
        assert f"serves doubles on {program.url}" in program.output
        assert f"route      POST {program.url}/inference" in program.output
        assert f"route      POST {program.url}/again" in program.output
        assert "/openapi/metadata.json\n" not in program.output, "only models are routes"
        for name in ("docs", "dashboard", "metrics"):
            [page] = re.findall(rf"{name} +(\S+)", program.output)
            assert program.client.get(page).status_code == 200
        [line] = re.findall(r"try +(curl .*)", program.output)
        done = subprocess.run([*shlex.split(line), "-s"], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout == "42"
        assert re.search(r"worker is ready after [\d.]+ s \(1 of 1\), process", program.output)
        assert program.stop() == 0


def test_a_banner_that_cannot_be_written_is_no_traceback(folder: Path) -> None:
    command = " ".join(command_of("app:server", "--port={port}", "--address=127.0.0.1", "--log-level=debug"))
    with running(["sh", "-c", f"exec {command} > /dev/full"], folder / "output.log", cwd=folder) as program:
        program.wait_for_output("the banner could not be written: [Errno 28]")
        assert program.client.post("/inference", json=4).text == "8"
        assert program.stop() == 0
        assert "Traceback" not in program.output


BYTES = """
from mosec_asgi import Server, Worker


class Count(Worker):
    req_mime_type = "application/octet-stream"
    example = b"100% of 'a'\\n\\\\n\\n"

    def deserialize(self, data):
        return data

    def forward(self, data):
        return data.decode()


server = Server()
server.append_worker(Count)
"""


def test_the_banner_has_a_curl_line_for_a_model_that_takes_bytes(tmp_path: Path) -> None:
    written(tmp_path, BYTES, "app.py")
    with serving(tmp_path, "--port={port}") as program:
        program.wait_for_output("  stop ")
        [line] = re.findall(r"try +(printf .*)", program.output)
        done = subprocess.run(["sh", "-c", f"{line} -s"], capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(done.stdout) == "100% of 'a'\n\\n\n"


def test_quiet_leaves_the_banner_out(folder: Path) -> None:
    with serving(folder, "--port={port}", "--quiet", "--log-level=warning") as program:
        program.wait_ready()
        program.stop()
        assert program.output == ""


def test_a_flag_wins_over_the_environment_and_that_over_the_program(folder: Path) -> None:
    written(folder, SERVICE.replace("Server(", "Server(port=1, namespace='mine', "), "app.py")
    environment = {"MOSEC_PORT": "2", "MOSEC_NAMESPACE": "theirs"}
    command = command_of("app:server", "--port={port}")
    with running(command, folder / "output.log", cwd=folder, environment=environment) as program:
        program.wait_ready()
        assert "theirs_" in program.client.get("/metrics").text


def test_each_setting_is_a_flag(folder: Path) -> None:
    done = subprocess.run(command_of("--help"), capture_output=True, text=True, check=True, timeout=60)
    assert set(re.findall(r"^  (--[\w-]+)", done.stdout, re.MULTILINE)) >= set(FLAGS.values())


def test_a_unix_socket_is_listened_on_and_removed(folder: Path) -> None:
    path = folder / "service.sock"
    # As a program leaves it that was killed.
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with serving(folder, f"--uds={path}", "--access-log") as program:
        program.wait_for_output("  stop ")
        assert f"on unix:{path}" in program.output
        [line] = re.findall(r"try +(curl .*)", program.output)
        done = subprocess.run([*shlex.split(line), "-s"], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout == "42"
        code, text = failed(folder, "app:server", "--uds", str(path))
        assert (code, "another program listens there" in text) == (1, True)
        assert program.stop() == 0
    assert not path.exists()


def test_a_file_in_the_place_of_a_unix_socket_is_left_alone(folder: Path) -> None:
    code, text = failed(folder, "app:server", "--uds", str(folder / "app.py"))
    assert (code, "a file is there" in text) == (1, True)
    assert (folder / "app.py").read_text() == SERVICE
    code, text = failed(folder, "app:server", "--uds", str(folder / ("long" * 40)))
    assert (code, "Choose another path" in text) == (1, True)


@needs_openssl
@pytest.mark.parametrize("http", ["auto", "plain"])
def test_tls_is_spoken_with_a_certificate(folder: Path, http: str) -> None:
    files = certificate(folder, "mine")
    flags = ["--port={port}", f"--http={http}", "--ssl-certfile", files[0], "--ssl-keyfile", files[1]]
    with serving(folder, *flags) as program:
        program.wait_for_output("  stop ")
        [line] = re.findall(r"try +(curl .*)", program.output)
        assert f"https://127.0.0.1:{program.port}/inference" in line
        done = subprocess.run([*shlex.split(line), "-s"], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout == "42"
        trusting = [word for word in shlex.split(line) if word != "--insecure"]
        done = subprocess.run(
            [*trusting, "-s", "--cacert", files[0]], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout == "42"


@needs_openssl
def test_a_certificate_that_does_not_fit_is_one_line(folder: Path) -> None:
    (mine, key), (_, other) = certificate(folder, "mine"), certificate(folder, "other")
    locked = str(folder / "locked.key")
    encrypt = ["openssl", "ec", "-in", key, "-out", locked, "-aes256", "-passout", "pass:secret"]
    subprocess.run(encrypt, check=True, capture_output=True, timeout=60)
    cases = [
        (["--ssl-certfile", mine, "--ssl-keyfile", other], "is not that of the certificate"),
        (["--ssl-certfile", mine], "must be a PEM file, with the key in it"),
        (["--ssl-certfile", str(folder / "app.py"), "--ssl-keyfile", key], "both must be PEM files"),
        (["--ssl-certfile", mine, "--ssl-keyfile", locked], "without a password"),
        (["--ssl-certfile", str(folder / "none.pem")], "cannot be read: No such file"),
        (["--ssl-keyfile", key], "without its certificate"),
    ]
    for flags, text in cases:
        code, line = failed(folder, "app:server", "--port=0", *flags)
        assert (code, text in line) == (1, True), line


def test_what_cannot_be_served_is_one_line(folder: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = [
            (["missing:server"], 2, "there is no module 'missing'"),
            (["app:nothing"], 2, "has no 'nothing'; it has app:server"),
            (["app"], 2, "must be MODULE:SERVER"),
            ([], 2, "Missing argument"),
            (["app:server", "--prot=1"], 2, "Did you mean '--port'"),
            (["app:server", "--host=::1"], 2, "Did you mean '--address'"),
            (["app:server", "--port=80x"], 2, "--port must be a whole number, not '80x'"),
            (["app:server", "--timeout=5s"], 2, "write 5000"),
            (["app:server", "--log-level=loud"], 2, "'loud' is not one of"),
            (["app:server", "--port", port], 1, "cannot listen on 0.0.0.0:" + port),
        ]
        for arguments, code, text in cases:
            got, line = failed(folder, *arguments)
            assert (got, text in line) == (code, True), line
            assert line.startswith("mosec-asgi: error: ")


def test_a_stage_that_cannot_start_ends_the_program(folder: Path) -> None:
    written(
        folder,
        SERVICE.replace("    example = 21", "    def __init__(self):\n        raise ValueError('no model')"),
        "app.py",
    )
    with serving(folder, "--port={port}") as program:
        assert program.wait() != 0
        assert "no model" in program.output
        assert "  stop " not in program.output


def test_run_listens_with_the_same_settings(folder: Path) -> None:
    path = folder / "service.sock"
    file = written(folder, SERVICE + '\nif __name__ == "__main__":\n    server.run()\n', "app.py")
    with running([sys.executable, str(file), "--uds", str(path)], folder / "output.log") as program:
        program.wait_for_output("all workers are ready")
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
            assert client.post("/inference", json=4).text == "8"
        assert program.stop() == 0
    assert not path.exists()


def test_a_port_that_is_taken_ends_run_with_one_line(folder: Path) -> None:
    file = written(folder, SERVICE + '\nif __name__ == "__main__":\n    server.run()\n', "app.py")
    with socket.create_server(("0.0.0.0", port := free_port())):
        done = subprocess.run(
            [sys.executable, str(file), "--port", str(port)], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot listen on 0.0.0.0:{port}")
