"""The file of API keys: read at the start, and again when it changes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from mosec_asgi.config import Settings
from mosec_asgi.errors import DefinitionError
from mosec_asgi.web.key_file import MOST_BYTES, KeyRing, key_ring

OLD, NEW, FIXED = "old-key-0123456789", "new-key-0123456789", "fixed-key-0123456789"

pytestmark = pytest.mark.usefixtures("logged")


def let_in(ring: KeyRing) -> list[str]:
    """Return which of the keys open the door."""
    return [key for key in (OLD, NEW, FIXED) if ring.keys.refusal({b"x-api-key": key.encode()}, "/inference") is None]


def test_without_keys_there_is_no_door() -> None:
    assert key_ring(Settings()) is None
    assert key_ring(Settings(api_keys=FIXED)) is not None


def test_a_change_of_the_file_changes_the_keys_and_those_of_the_setting_stay(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(OLD)
    ring = KeyRing(Settings(api_keys=FIXED, api_key_file=str(file)))
    assert let_in(ring) == [OLD, FIXED]
    file.write_text(f"{OLD}\n{NEW}\n")
    ring.look()
    assert let_in(ring) == [OLD, NEW, FIXED]
    file.write_text(NEW)
    ring.look()
    assert let_in(ring) == [NEW, FIXED]


def test_another_file_in_its_place_is_noticed_though_it_is_as_long_and_as_old(tmp_path: Path) -> None:
    file, other = tmp_path / "keys", tmp_path / "other"
    file.write_text(OLD)
    other.write_text(NEW)
    os.utime(file, ns=(1, 1))
    os.utime(other, ns=(1, 1))
    link = tmp_path / "link"
    link.symlink_to(file)
    ring = KeyRing(Settings(api_key_file=str(link)))
    # As Kubernetes does with a mounted secret.
    second = tmp_path / "second"
    second.symlink_to(other)
    second.replace(link)
    ring.look()
    assert let_in(ring) == [NEW]


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(OLD)
    ring = KeyRing(Settings(api_key_file=str(file)))
    heard: list[int] = []
    ring.keys.on_change = lambda: heard.append(1)
    ring.look()
    assert not heard


def test_a_file_that_cannot_be_read_any_more_leaves_the_keys_and_is_told_once(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text(OLD)
    ring = KeyRing(Settings(api_key_file=str(file)))
    file.unlink()
    ring.look()
    ring.look()
    file.write_bytes(b"\xff\xfe")
    ring.look()
    file.write_bytes(b"x" * (MOST_BYTES + 1))
    ring.look()
    told = [record.getMessage() for record in logged.records if record.levelno == logging.ERROR]
    assert [text.partition(": the file")[0] for text in told] == ["the API keys stay what they were"] * 3
    assert let_in(ring) == [OLD]
    file.write_text(NEW)
    ring.look()
    assert let_in(ring) == [NEW], "it is looked at all the same"


def test_a_file_that_becomes_empty_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(OLD)
    ring = KeyRing(Settings(api_key_file=str(file)))
    file.write_text("# all revoked\n")
    ring.look()
    assert let_in(ring) == []


@pytest.mark.parametrize(("content", "told"), [(None, "cannot be read: No such file"), ("# none\n", "no API key in")])
def test_at_the_start_a_file_without_keys_is_refused(tmp_path: Path, content: str | None, told: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DefinitionError, match=told):
        KeyRing(Settings(api_key_file=str(file)))


def test_a_pipe_or_a_folder_in_its_place_leaves_the_keys_and_keeps_nobody_waiting(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text(OLD)
    ring = KeyRing(Settings(api_key_file=str(file)))
    file.unlink()
    os.mkfifo(file)
    ring.look()
    file.unlink()
    file.mkdir()
    ring.look()
    told = [record.getMessage().rpartition(": ")[2] for record in logged.records if record.levelno == logging.ERROR]
    assert told == ["it is no regular file", "Is a directory"]
    assert let_in(ring) == [OLD]
