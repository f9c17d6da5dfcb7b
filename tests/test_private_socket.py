"""A socket that only this user can open."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mosec_asgi.ipc import private_socket
from mosec_asgi.ipc.private_socket import CannotListen

MANY = 6


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


def test_of_many_that_listen_at_the_same_instant_one_does_whatever_was_left_there(tmp_path: Path) -> None:
    def begin(path: str, together: threading.Barrier) -> socket.socket | str:
        together.wait(20)
        try:
            return private_socket.listen(path, backlog=MANY)
        except CannotListen as error:
            return str(error)

    with ThreadPoolExecutor(MANY) as threads:
        for number in range(50):
            path = str(tmp_path / f"{number}.sock")
            private_socket.listen(path, backlog=1).close()
            together = threading.Barrier(MANY)
            came = list(threads.map(begin, [path] * MANY, [together] * MANY))
            [winner] = [one for one in came if isinstance(one, socket.socket)]
            with winner, socket.socket(socket.AF_UNIX) as client:
                assert came.count(f"another program listens there, process {os.getpid()}") == MANY - 1
                client.connect(path)
                # Of those who have looked, and behind them the client.
                for _ in range(MANY):
                    connection, _ = winner.accept()
                    connection.close()


def test_who_looks_at_a_path_is_waited_for_and_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "a.sock")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        monkeypatch.setattr(private_socket, "LOCK_SECONDS", 0.02)
        with pytest.raises(CannotListen, match="another program keeps its folder locked"):
            private_socket.listen(path, backlog=1)
        assert not os.path.exists(path)
        monkeypatch.setattr(private_socket, "LOCK_SECONDS", 20)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(private_socket.listen, path, backlog=1)
            fcntl.flock(folder, fcntl.LOCK_UN)
            waiting.result(20).close()
    finally:
        os.close(folder)
    assert sorted(os.listdir(tmp_path)) == ["a.sock"], "the lock leaves no file"
