"""The README, and the pages that go on from it, are true: their programs run, and their tables name what there is."""

from __future__ import annotations

import html
import io
import json
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, python, running

from mosec_asgi import config
from mosec_asgi.cli.banner import show
from mosec_asgi.cli.output import Output
from mosec_asgi.host.listening import Listener

README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
HEADERS = (DOCS / "http.md").read_text().partition("## Headers")[2]
# These go on from the README, and share its programs.
PAGES = {name: (DOCS / f"{name}.md").read_text() for name in ("service", "requests", "streams", "app", "settings")}
FOUND = re.findall(r"```python\n(# (\S+\.py)\n.*?)```", "\n".join([README, *PAGES.values()]), re.DOTALL)
PROGRAMS = {name: text for text, name in FOUND}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write all programs into one folder, where they can import each other."""
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_python_snippet_is_a_named_program() -> None:
    assert "".join([README, *PAGES.values()]).count("```python") == len(FOUND)
    assert len(set(FOUND)) == len(PROGRAMS), "a program that stands in two places is the same in both"
    assert set(PROGRAMS) == {
        "server.py",
        "typed.py",
        "app.py",
        "call.py",
        "streams.py",
        "models.py",
        "uploads.py",
        "hinted.py",
    }


def test_the_service_in_20_lines_answers_as_shown(folder: Path, log: Path) -> None:
    body, answer = re.search(r"inference -d '(.*)'\n    (\{.*\})\n", README).groups()  # type: ignore[union-attr]
    with running(python(folder / "server.py"), log, cwd=folder) as program:
        program.wait_ready()
        response = program.client.post("/inference", content=body)
        assert (response.status_code, response.text) == (200, answer)
        for wrong in ({"text": 1}, {}, [1], "text", 1):
            assert program.client.post("/inference", json=wrong).status_code == 422


def test_the_typed_service_checks_requests_and_shows_its_contract(folder: Path, log: Path) -> None:
    with running(python(folder / "typed.py"), log, cwd=folder) as program:
        program.wait_ready()
        response = program.client.post("/inference", json={"text": "one two three", "limit": 2})
        assert (response.status_code, response.json()) == (200, {"words": ["one", "two"]})
        refused = program.client.post("/inference", json={"limit": "many"})
        assert (refused.status_code, "text" in refused.text, "limit" in refused.text) == (422, True, True)
        schemas = program.client.get("/openapi/metadata.json").json()["components"]["schemas"]
        assert {"Request", "Answer"} <= set(schemas)


def test_the_streams_answer_as_shown(folder: Path, log: Path) -> None:
    body, shown = re.search(r"/spell -d '(.*)'\n((?:    .*\n|\n)+)", PAGES["streams"]).groups()  # type: ignore[union-attr]
    with running(python(folder / "streams.py"), log, cwd=folder) as program:
        program.wait_ready()
        spelt = program.client.post("/spell", content=body).text
        assert [line.strip() for line in spelt.splitlines()] == [
            line.strip() for line in shown.strip().splitlines()
        ] + [""]
        letters = "data: h\n\ndata: e\n\ndata: y\n\n"
        assert program.client.post("/together", json="hey").text == letters
        assert program.client.post("/steps", json="hey").text == letters
        assert program.client.post("/countdown", json=2).text == "data: 2\n\ndata: 1\n\n"


def test_the_service_that_takes_the_request_answers_by_it(folder: Path, log: Path) -> None:
    with running(python(folder / "models.py"), log, cwd=folder) as program:
        program.wait_ready()
        headers = {"x-user": "ada", "x-request-id": "one"}
        made = program.client.post("/models/bert", json={"text": "a"}, headers=headers)
        assert made.json() == {"model": "bert", "user": "ada", "id": "one"}
        missing = program.client.post("/models/other", json={"text": "a"})
        assert (missing.status_code, missing.headers["cache-control"]) == (404, "no-store")
        assert program.client.get("/models/bert?text=b").json() == {"model": "bert", "text": "b"}


def test_the_upload_is_what_its_annotation_says(folder: Path, log: Path) -> None:
    with running(python(folder / "uploads.py"), log, cwd=folder) as program:
        program.wait_ready()
        image = {"image": ("photo.png", b"12345")}
        answer = program.client.post("/inference", files=image, data={"caption": "bear"})
        assert answer.json() == {"caption": "bear", "name": "photo.png", "bytes": 5}
        assert program.client.post("/inference", data={"caption": "bear"}).status_code == 422
        large = {"image": ("photo.png", bytes(5 * 1024 * 1024 + 1))}
        assert program.client.post("/inference", files=large).status_code == 413


def test_the_hinted_service_adds_up_what_its_model_returns(folder: Path) -> None:
    (folder / "ask.py").write_text(
        "import asyncio, hinted\n\n"
        "async def main():\n    async with hinted.server:\n        print(await hinted.total(['a', 'bcd']))\n\n"
        "if __name__ == '__main__':\n    asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "ask.py"], cwd=folder, capture_output=True, text=True, timeout=180)
    assert done.stdout == "4\n", done.stderr


def test_the_mounted_app_serves_its_own_route_and_the_model(folder: Path, log: Path) -> None:
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", "{port}"]
    with running(command, log, cwd=folder) as program:
        program.wait_ready("/ml/readyz")
        assert program.client.get("/texts/hamlet").json() == {"words": 6, "unique": 4}
        assert program.client.get("/texts/lear").status_code == 404
        assert program.client.post("/ml/inference", json={"text": "a b a"}).json() == {"words": 3, "unique": 2}
        assert "starting the workers at the first request" not in program.output


def test_the_call_in_process_prints_the_answer(folder: Path) -> None:
    done = subprocess.run([sys.executable, "call.py"], cwd=folder, capture_output=True, text=True, timeout=180)
    assert done.stdout.splitlines() == ["{'words': 2, 'unique': 2}", str(sum(range(10_000)))], done.stderr


def test_the_table_of_settings_names_each_setting_with_its_default() -> None:
    table = PAGES["settings"]
    named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert named == set(config.FIELDS) - {"path"}
    for default in ("| 1024 |", "| 3000 |", "| 10 |", "| 0.0.0.0, 8000 |", "| 10 MiB |", "| mosec_service |"):
        assert default in table


def test_the_tables_of_headers_name_those_that_the_code_reads_and_writes() -> None:
    told = set(re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| (`.*?) \|", HEADERS, re.MULTILINE))))
    code = "".join(path.read_text().lower() for path in (ROOT / "mosec_asgi").rglob("*.py"))
    for name in told:
        assert f'"{name}"' in code, f"no code reads or writes {name}"
    media_types = {"x-yaml", "x-msgpack"}
    assert set(re.findall(r"""["'](x-[a-z-]+)["']""", code)) - media_types <= told


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_the_numbers_are_those_of_the_results() -> None:
    results = ROOT / "benchmarks" / "results"
    ratios = {one["name"]: one["ratio"] for one in json.loads((results / "latest.json").read_text())["scenarios"]}
    told = [float(number) for number in re.findall(r"(\d\.\d) times", README)]
    assert told == [round(ratios[name], 1) for name in ("echo", "batched-echo", "model")]
    rows = json.loads((results / "overload.json").read_text())["rows"]
    at_three = {row["server"]: row["goodput"] for row in rows if row["load"] == 3 and row["model"] == "constant"}
    assert f"answers {at_three['mosec_asgi']:.2f} of what the model can" in README
    assert at_three["mosec"] < 0.05
    table = (DOCS / "numbers.md").read_text()
    for ratio in list(ratios.values())[:10]:
        assert f"| {ratio:.2f} |" in table or f"| {ratio:.1f} |" in table


def test_the_recording_shows_what_the_commands_print_today(folder: Path) -> None:
    """docs/session.svg is made by `make picture`: it has to be made anew where this fails."""
    picture = html.unescape(re.sub(r"<[^>]*>", "\n", (DOCS / "session.svg").read_text())).splitlines()
    server = runpy.run_path(str(folder / "server.py"))["server"]
    printed = io.StringIO()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = Listener(sock, tls=False)
        show(Output(printed), listener, config.Settings(dashboard=True), server.openapi())
        port = sock.getsockname()[1]
    wanted = printed.getvalue().replace(f":{port}", ":8000").splitlines()[1:]
    wanted += [
        "mosec-asgi serve server:server --dashboard",
        *re.findall(r"^    (curl .*)\n    (\{.*)$", README, re.M)[0],
    ]
    assert len(wanted) > 8
    for line in wanted:
        # A terminal breaks lines that are longer than it is wide.
        assert any(line.startswith(part) and len(part) >= min(len(line), 100) for part in picture if part), line
    assert (DOCS / "session.svg").read_text().count("<image ") >= 3, "of the dashboard"
    assert "](docs/session.svg)" in README


def test_the_readme_leads_to_every_page_that_stands_in_the_repository() -> None:
    of_the_site = {"index.md", "app.md", "examples.md", "numbers.md"}
    linked = set(re.findall(r"\]\(docs/(\w+\.md)\)", README))
    assert linked | of_the_site == {path.name for path in DOCS.glob("*.md")}


# Pages that are there on the site alone.
MADE = ("api.md", "reference.md", "contributing.md", "changelog.md")


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in DOCS.glob("*.md"))])
def test_a_link_leads_to_a_file(page: str) -> None:
    file = ROOT / page
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", file.read_text()):
        assert (page == "docs/index.md" and link in MADE) or (file.parent / link).exists(), link
