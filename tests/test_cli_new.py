"""`mosec-asgi new`, and a stranger's path: from the wheel to a service that is edited while it answers."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from harness import ROOT, running, skip_module_without, wait_until

from mosec_asgi.cli import main
from mosec_asgi.cli.new import FILES, render, requirement
from mosec_asgi.version import __version__

skip_module_without("hatchling")


def made(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_service_is_made_in_a_new_folder_or_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["new", "deep/demo"]) == 0
    assert main(["new", "empty"]) == 0
    assert made(tmp_path / "deep/demo") == made(tmp_path / "empty") == set(FILES)
    assert "cd deep/demo" in capsys.readouterr().out
    for name in FILES:
        assert "$" not in (tmp_path / "empty" / name).read_text().replace("$KEY", ""), f"{name} has a place left"


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("full", 2, "the folder full is not empty"),
        ("file", 1, "choose another place"),
        ("file/demo", 1, "choose another place"),
        ("a b", 2, "'a b' is no name for a service"),
        ("-x", 2, "No such option"),
    ],
)
def test_what_cannot_be_made_is_one_line_and_leaves_nothing(
    name: str, code: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    assert main(["new", name]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert text in line
    assert made(tmp_path) == {"full", "file"}
    assert made(tmp_path / "full") == {"mine.txt"}


def test_a_folder_that_cannot_be_filled_is_taken_away_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mosec_asgi.cli.new.render", lambda title: {"app.py": "text", "no/such/folder.txt": "text"})
    assert main(["new", "demo"]) == 1
    assert "cannot be made" in capsys.readouterr().err
    assert made(tmp_path) == set()


def test_the_image_has_all_that_the_service_needs() -> None:
    texts = render("demo")
    lines = re.findall(r"^COPY (.*) \./$", texts["Dockerfile"], re.MULTILINE)
    copied = {name for line in lines for name in line.split()}
    assert copied <= {*FILES, "*.whl"}
    assert {"app.py", "requirements.txt", "*.whl"} <= copied


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        ({}, f"mosec-asgi[cli]>={__version__}"),
        ({"url": "https://a/b.whl", "archive_info": {}}, "mosec-asgi[cli] @ https://a/b.whl"),
        (
            {"url": "https://a/b.git", "vcs_info": {"vcs": "git", "commit_id": "1f"}},
            "mosec-asgi[cli] @ git+https://a/b.git@1f",
        ),
        ({"url": "file:///a/b.whl", "archive_info": {}}, "mosec-asgi[cli] @ file:///a/b.whl"),
        ({"url": "file:///a", "dir_info": {"editable": True}}, "mosec-asgi[cli] @ file:///a"),
    ],
    ids=["index", "url", "git", "wheel", "clone"],
)
def test_the_requirements_name_the_place_from_which_this_package_came(origin: dict[str, object], line: str) -> None:
    lines = requirement(origin).splitlines()
    assert lines[-1] == line
    # An image cannot read a file of this machine.
    assert len(lines) == (3 if "file:" in line else 1)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, as a release does."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [file] = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a virtual environment with the wheel in it; what it depends on is that of the tests' own environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*command, "--no-index", str(wheel)], check=True, capture_output=True, timeout=120)
    [packages] = folder.glob("lib/python*/site-packages")
    [ours] = {path for path in sys.path if path.endswith("site-packages") and path.startswith(sys.prefix)}
    # After the wheel. A file of paths adds none that stand in files of paths there, such as this checkout.
    (packages / "others.pth").write_text(ours + "\n")
    return folder


def test_the_wheel_has_the_templates(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"mosec_asgi/cli/templates/{name.lstrip('.')}.template" for name in FILES} <= set(names)


def test_a_strangers_path(environment: Path, wheel: Path, tmp_path: Path) -> None:
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables["PATH"] = f"{environment / 'bin'}{os.pathsep}{variables['PATH']}"

    def run(command: str, cwd: Path) -> str:
        done = subprocess.run(shlex.split(command), cwd=cwd, env=variables, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("mosec-asgi new demo", tmp_path)
    demo = tmp_path / "demo"
    where = run("python -c 'import mosec_asgi; print(mosec_asgi.__file__)'", demo)
    assert where.startswith(str(environment)), "the wheel is what is tried, and not this checkout"
    assert f"mosec-asgi[cli] @ {wheel.as_uri()}\n" in (demo / "requirements.txt").read_text()
    assert "3 passed" in run("python -m pytest -q -p no:cacheprovider -p no:schemathesis", demo)
    assert "app:server can be served: no warnings" in run("mosec-asgi check app:server", demo)
    run("mosec-asgi dry-run app:server", demo)

    command = [str(environment / "bin/mosec-asgi"), "serve", "app:server", "--reload", "--port={port}"]
    with running(command, tmp_path / "output.log", cwd=demo, environment={"PYTHONPATH": ""}) as program:
        program.wait_for_output("  stop ")
        [line] = re.findall(r"try +(curl .*)", program.output)
        assert run(line + " -s", demo) == '{"words":6,"of_weight":1}'
        app = demo / "app.py"
        before = app.read_text()

        def weight() -> object:
            return program.client.post("/inference", json={"text": "to be or not to be"}).json()["of_weight"]

        app.write_text(before.replace('"be", "or"', '"be", "not", "or"'))
        wait_until(lambda: weight() == 0, "the edit does not take over")
        app.write_text(before.replace("server = Server(", "server = Sever("))
        program.wait_for_output("the edit does not start")
        assert "NameError" in program.output
        assert weight() == 0
        program.stop(signal.SIGINT)
    assert made(demo) - {"__pycache__", ".pytest_cache"} == set(FILES)
