"""docs/security.md is true: its programs run as they stand there, and its tables name what there is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from harness import ROOT, environment_of_programs, running

from mosec_asgi.config import FIELDS, NO_FLAG
from mosec_asgi.web.keys import PUBLIC_PATHS

PAGE = (ROOT / "docs" / "security.md").read_text()
PROGRAMS = {name: text for text, name in re.findall(r"```python\n(# (\S+\.py)\n.*?)```", PAGE, re.DOTALL)}


def test_the_settings_that_it_names_exist_and_what_may_be_public_is_named() -> None:
    table = PAGE.partition("\n\n## ")[0]
    named = {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert named <= FIELDS.keys()
    assert named >= NO_FLAG
    assert all(f"`{name}`" in table for name in PUBLIC_PATHS)
    assert FIELDS["public"].metadata["members"] == tuple(PUBLIC_PATHS)


def test_the_program_with_middleware_of_its_own_runs(tmp_path: Path) -> None:
    (tmp_path / "behind.py").write_text(PROGRAMS["behind.py"])
    command = [sys.executable, "-m", "uvicorn", "behind:server", "--port", "{port}"]
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-the-page-0123")
    environment = {**environment_of_programs(), "MOSEC_API_KEY_FILE": str(keys)}
    with running(command, tmp_path / "log", cwd=tmp_path, environment=environment) as program:
        program.wait_ready()
        origin = {"origin": "https://app.example.com"}
        asks = {**origin, "access-control-request-method": "POST"}
        assert program.client.options("/inference", headers=asks).status_code == 200
        assert program.client.post("/inference", json=1).status_code == 401
        answer = program.client.post("/inference", json=1, headers={**origin, "x-api-key": keys.read_text()})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin["origin"])
