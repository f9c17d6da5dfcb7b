"""A socket that only this user can open."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from mosec_asgi.ipc import private_socket
from mosec_asgi.ipc.private_socket import CannotListen


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the system does not tell")
def test_the_kernel_tells_who_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert private_socket.stranger(ours) is None
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        # Root may open it, whoever it belongs to.
        assert private_socket.stranger(ours) == (None if user == 0 else user)


def test_its_file_is_this_users_alone_and_is_removed_by_its_owner_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    with private_socket.listen(path, backlog=1):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        inode = os.stat(path).st_ino
        private_socket.remove(path, inode + 1)
        assert os.path.exists(path)
        with pytest.raises(CannotListen, match="another program listens there"):
            private_socket.listen(path, backlog=1)
        with private_socket.listen(path, backlog=1, takes_over=True):
            assert os.stat(path).st_ino != inode or os.path.exists(path)
    private_socket.remove(path, os.stat(path).st_ino)
    assert not os.path.exists(path)


def test_what_a_killed_program_has_left_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    private_socket.listen(path, backlog=1).close()
    private_socket.listen(path, backlog=1).close()
    other = tmp_path / "file"
    other.write_text("text")
    with pytest.raises(CannotListen, match="a file is there that is no socket"):
        private_socket.listen(str(other), backlog=1)
    with pytest.raises(CannotListen, match="there is no such folder"):
        private_socket.listen(str(tmp_path / "none" / "a.sock"), backlog=1)
