"""Which files of a folder are watched, and what is noticed of them, with watchfiles and without."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mosec_asgi.cli.watching import differences, edits, is_wanted, snapshot

PATTERNS = ("*.py",)


def test_hidden_folders_environments_and_caches_are_left_out(tmp_path: Path) -> None:
    for name in ("app.py", "deep/er/model.py", ".git/hook.py", "env/lib/x.py", "__pycache__/app.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "env/pyvenv.cfg").write_text("")
    wanted = {"app.py", "deep/er/model.py"}
    assert {str(Path(path).relative_to(tmp_path)) for path in snapshot(tmp_path, PATTERNS)} == wanted
    every = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path)) for path in every if is_wanted(path, tmp_path, PATTERNS)} == wanted
    assert not is_wanted(Path("/elsewhere/app.py"), tmp_path, PATTERNS)


def test_what_is_new_gone_or_changed_is_a_difference() -> None:
    before = {"same": (1, 1), "gone": (1, 1), "changed": (1, 1), "longer": (1, 1)}
    after = {"same": (1, 1), "changed": (2, 1), "longer": (1, 2), "new": (1, 1)}
    assert differences(before, after) == {"gone", "changed", "longer", "new"}


@pytest.mark.parametrize("polling", [True, False])
async def test_an_edit_is_noticed(tmp_path: Path, polling: bool) -> None:
    file = tmp_path / "app.py"
    file.write_text("1")
    watching = edits(tmp_path, PATTERNS, polling=polling)
    found = asyncio.ensure_future(anext(watching))
    # Until the watching has begun, an edit is not noticed: so there are several.
    for text in map(str, range(200)):
        file.write_text("2" + text)
        (tmp_path / "app.txt").write_text(text)
        done, _ = await asyncio.wait([found], timeout=0.1)
        if done:
            break
    assert {Path(path) for path in found.result()} == {file}
    await watching.aclose()  # type: ignore[attr-defined]
