"""The command line: what it writes, what it checks, and what it says where it cannot."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, written

from mosec_asgi import __version__
from mosec_asgi.cli import main
from mosec_asgi.cli.commands import COMMANDS
from mosec_asgi.cli.output import STRONG, Output, output

SERVICE = '''
from mosec_asgi import Server, Worker


class Double(Worker):
    """Double a number."""

    def forward(self, data: int) -> int:
        return 2 * data


class Parts:
    server = Server()


server = Server()
server.append_worker(Double)
empty = Server()
Parts.server.append_worker(Double, route="/double")
'''


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mosec_asgi", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    written(tmp_path, SERVICE, "service.py")
    return tmp_path


def test_the_document_is_printed(folder: Path) -> None:
    done = run("openapi", "service:server", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["paths"]["/inference"]["post"]["summary"] == "Double a number."
    assert done.stdout.endswith("}\n")


def test_a_server_may_lie_deeper_and_in_another_folder(folder: Path) -> None:
    done = run("openapi", "service:Parts.server", "--app-dir", folder, cwd=ROOT)
    assert "/double" in json.loads(done.stdout)["paths"]


def test_the_document_is_written_to_a_file_that_then_passes_the_check(folder: Path) -> None:
    assert run("openapi", "service:server", "--output", "api.json", cwd=folder).stdout == ""
    done = run("openapi", "service:server", "--check", "api.json", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_another_indentation_or_order_is_no_difference(folder: Path) -> None:
    document = json.loads(run("openapi", "service:server", cwd=folder).stdout)
    (folder / "api.json").write_text(json.dumps(document, sort_keys=True))
    assert run("openapi", "service:server", "--check", "api.json", cwd=folder).returncode == 0


def test_a_check_shows_the_difference_and_what_to_do(folder: Path) -> None:
    document = json.loads(run("openapi", "service:server", cwd=folder).stdout)
    document["paths"]["/inference"]["post"]["summary"] = "Halve a number."
    before = json.dumps(document)
    (folder / "api.json").write_text(before)
    done = run("openapi", "service:server", "--check", "api.json", cwd=folder)
    assert done.returncode == 1
    changed = [line.split('"')[-2] for line in done.stdout.splitlines() if line[:2] in ("- ", "+ ")]
    assert changed == ["Halve a number.", "Double a number."]
    assert "mosec-asgi openapi service:server --output api.json" in done.stderr
    assert (folder / "api.json").read_text() == before


@pytest.mark.parametrize("content", [None, "no JSON"])
def test_a_check_fails_where_there_is_no_document(folder: Path, content: str | None) -> None:
    if content is not None:
        (folder / "api.json").write_text(content)
    done = run("openapi", "service:server", "--check", "api.json", cwd=folder)
    assert done.returncode == 1
    assert "api.json is no document" in done.stderr


@pytest.mark.parametrize(
    ("server", "text"),
    [
        ("missing:server", "there is no module 'missing'"),
        ("service.missing:server", "there is no module 'service.missing'"),
        ("service:missing", "has no 'missing'; it has service:server, service:empty"),
        ("service:Double", "is of type ABCMeta, and not a mosec_asgi.Server"),
        ("service", "must be MODULE:SERVER"),
        (":server", "must be MODULE:SERVER"),
        ("..service:server", "must be MODULE:SERVER"),
        ("service.py:server", "'service.py' is no name of a module, but the path of a file; write service:server"),
        ("./service:server", "'./service' is no name of a module, but the path of a file; write service:server"),
        ("deep/a.py:server", "the path of a file; write a:server --app-dir deep"),
        ("service:empty", "the server has no stage to serve"),
    ],
)
def test_a_wrong_place_is_answered_with_what_to_change(folder: Path, server: str, text: str) -> None:
    done = run("openapi", server, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_module_fails_to_import_is_shown_with_its_traceback(folder: Path) -> None:
    written(folder, "import no_such_library\n", "broken.py")
    done = run("openapi", "broken:server", cwd=folder)
    assert done.returncode == 1
    assert "broken.py" in done.stderr
    assert "No module named 'no_such_library'" in done.stderr


def test_a_program_that_runs_its_server_when_it_is_imported_is_not_run_by_that(folder: Path) -> None:
    written(folder, SERVICE + "\nserver.run()\n", "service.py")
    done = run("openapi", "service:server", cwd=folder)
    [line] = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert "Put the call under `if __name__ ==" in line


def test_a_module_whose_server_is_made_by_its_program_alone_is_told_where_to_define_it(folder: Path) -> None:
    guarded = SERVICE.replace("\nserver = ", "\nif __name__ == '__main__':\n    server = ").partition("server.append")[
        0
    ]
    written(folder, guarded.replace("class Parts:\n    server = Server()", ""), "service.py")
    done = run("openapi", "service:server", cwd=folder)
    assert done.returncode == 2
    assert "it has no server at all: define one at its top level" in done.stderr


def test_a_command_imports_no_other_and_help_imports_none(folder: Path) -> None:
    program = (
        "import sys; from mosec_asgi.cli import main; code = main(sys.argv[1:]); "
        "print(*sorted(name for name in sys.modules if name.startswith(('mosec_asgi.cli.', 'uvicorn', 'rich'))), "
        "file=sys.stderr)"
    )

    def loaded(*arguments: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True, timeout=60
        )
        return set(done.stderr.split())

    shared = {f"mosec_asgi.cli.{name}" for name in ("commands", "faults")}
    assert loaded("--help") == shared
    assert loaded("openapi", "service:server") == shared | {"mosec_asgi.cli.openapi", "mosec_asgi.cli.loading"}


def test_each_command_has_a_module_that_its_help_needs(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        assert f"Usage: mosec-asgi {name}" in capsys.readouterr().out


def test_the_page_on_the_command_line_names_each_command() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    assert set(re.findall(r"^\| `mosec-asgi ([\w-]+)", page, re.MULTILINE)) == set(COMMANDS)


def test_without_rich_or_a_terminal_output_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    assert type(output()) is Output
    output().table(("name", "count"), [("long name", "1"), ("b", "22")], "Title")
    assert capsys.readouterr().out == "Title\n  name       count\n  long name  1\n  b          22\n\n"


def test_on_a_terminal_what_is_to_be_copied_is_not_broken_into_lines() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    pytest.importorskip("rich")
    terminal = Terminal()
    out = output(terminal)
    out.line("curl " + "[x] " * 100, STRONG)
    out.table(("name",), [("[red]",)])
    assert "[x] " * 100 in terminal.getvalue()
    assert "[red]" in terminal.getvalue(), "a user's text is no markup"


def test_no_command_and_two_targets_are_refused(folder: Path) -> None:
    assert run(cwd=folder).returncode == 2
    assert run("openapi", "service:server", "--output", "a", "--check", "b", cwd=folder).returncode == 2


def test_the_installed_command_says_its_version() -> None:
    command = Path(sys.executable).with_name("mosec-asgi")
    if not command.exists():
        pytest.skip("the package is on the path, and not installed")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == f"mosec-asgi {__version__}"


@pytest.mark.parametrize("document", sorted((ROOT / "openapi").glob("*.json")), ids=lambda path: path.stem)
def test_the_document_of_an_example_is_up_to_date(document: Path) -> None:
    """Else: `make openapi`, and look at what has changed."""
    done = run("openapi", f"examples.{document.stem}.server:server", "--check", document, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_openapi_writes_every_document() -> None:
    told = subprocess.run(["make", "-n", "openapi"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for document in (ROOT / "openapi").glob("*.json"):
        line = f"mosec-asgi openapi examples.{document.stem}.server:server --output openapi/{document.name}"
        assert line in told


@pytest.mark.parametrize(
    ("redirection", "code", "told"),
    [
        (">&-", 0, ""),
        (">/dev/full", 1, "mosec-asgi: error: what it has to say cannot be written: No space left on device\n"),
    ],
)
def test_what_cannot_be_written_is_no_traceback(folder: Path, redirection: str, code: int, told: str) -> None:
    command = f"{sys.executable} -m mosec_asgi check service:server {redirection}"
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, told)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("top", "--port=8000"),
        ("openapi", "--host=::1"),
        ("tune", "--capacity=5"),
        ("map", "--prot=1"),
        ("new", "--debug"),
    ],
)
def test_only_an_option_that_the_command_has_is_meant(
    command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, option]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"No such option '{option.partition('=')[0]}'" in line
    assert "Did you mean '--port'" not in line
    assert not re.search("mean '--(address|capacity|debug)'", line)
    assert line.endswith(f"ee mosec-asgi {command} --help")
