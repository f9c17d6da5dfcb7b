"""TLS between an actor and its server, without Ray: who gets in, what passes, and what whoever listens can read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from authority import Authority, needs_openssl, variables
from common import until
from test_ray_listener import SECRET, TOKEN, Port, closed, evil

from mosec_asgi.errors import StartupError
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.channel import Channel
from mosec_asgi.messages import EGRESS, INGRESS, Results, Tasks
from mosec_asgi.pool.ray import handshake, tls
from mosec_asgi.pool.ray.actor import connect
from mosec_asgi.pool.ray.handshake import HandshakeError
from mosec_asgi.pool.ray.port import RayPort
from mosec_asgi.pool.ray.tls import Credentials, Files, TlsSocket

pytestmark = needs_openssl

MB = 1 << 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def files(authority: Authority) -> Files:
    return authority.node()


@pytest.fixture(autouse=True)
def _variables(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tls.SWITCH, raising=False)
    set_variables(monkeypatch, files)


def set_variables(monkeypatch: pytest.MonkeyPatch, files: Files) -> None:
    for name, value in variables(files).items():
        monkeypatch.setenv(name, value)


def credentials(files: Files) -> Credentials:
    made = Credentials(files)
    made.load()
    return made


class TlsPort(Port):
    """A listener that wants TLS, and what it has let in."""

    def __init__(self, files: Files, **limits: Any) -> None:
        super().__init__(credentials=credentials(files), **limits)

    def order(self, secret: bytes = SECRET, token: bytes = TOKEN) -> Any:
        return super().order(secret, token)._replace(tls=True)


@pytest.fixture
async def port(files: Files) -> AsyncIterator[TlsPort]:
    port = TlsPort(files)
    yield port
    port.close()


class Relay:
    """Stands between an actor and its server, and keeps what passes."""

    def __init__(self, to: tuple[str, int]) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._to = to
        self.address = self._server.getsockname()
        self.seen: dict[str, bytearray] = {"up": bytearray(), "down": bytearray()}
        # Called with what goes down before it goes.
        self.change = bytes
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    def _run(self) -> None:
        sock, _ = self._server.accept()
        other = socket.create_connection(self._to)
        pumps = [
            threading.Thread(target=self._pump, args=(sock, other, "up")),
            threading.Thread(target=self._pump, args=(other, sock, "down")),
        ]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        sock.close()
        other.close()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        try:
            while data := source.recv(1 << 16):
                self.seen[way] += data
                sink.sendall(self.change(data) if way == "down" else data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            # One of both has closed its end.
            for sock in (source, sink):
                shut(sock)

    def close(self) -> None:
        self._server.close()
        for thread in self._threads:
            thread.join()


def shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


class Ends:
    """Both ends of a connection, as the server and an actor have them; the actor's in a thread, which echoes."""

    def __init__(self, ours: Any, theirs: Any) -> None:
        self.frames: list[Any] = []
        self.reasons: list[str] = []
        self.theirs = theirs
        self.port = RayPort(theirs)
        self.channel = Channel(ours, self.frames.append, self.reasons.append)
        self.channel.open(asyncio.get_running_loop())
        self._thread = threading.Thread(target=self._echo)
        self._thread.start()

    def _echo(self) -> None:
        while (tasks := self.port.next_tasks()) is not None:
            # Read with others that come meanwhile, as a worker does that looks for clients that have left.
            self.port.poll()
            self.port.answer(Results(tasks.ids, [200] * len(tasks.ids), tasks.payloads, 0.0))  # type: ignore[arg-type]

    def send(self, number: int, payload: bytes) -> None:
        self.channel.send(frames.encode_tasks(Tasks((number,), (INGRESS | EGRESS,), ("a",), (payload,))))

    @property
    def answers(self) -> dict[int, bytes]:
        """The answers that have come, by their tasks' numbers."""
        results = [frame for frame in self.frames if isinstance(frame, Results)]
        return {one: bytes(payload) for each in results for one, payload in zip(each.ids, each.payloads, strict=True)}  # type: ignore[arg-type]

    def close(self) -> None:
        self.channel.send(frames.encode_finish())
        self._thread.join()
        self.channel.close()
        self.theirs.close()


async def connected(port: TlsPort, relay: Relay | None = None) -> Ends:
    order = port.order()
    if relay is not None:
        order = order._replace(address=relay.address)
    theirs = await asyncio.to_thread(connect, order)
    await until(lambda: port.came)
    assert isinstance(theirs, TlsSocket)
    return Ends(port.came.pop(), theirs)


async def answer(ends: Ends, number: int, payload: bytes) -> bytes:
    ends.send(number, payload)
    await until(lambda: number in ends.answers)
    return ends.answers[number]


# -- what passes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1000, tls.READ_SIZE, 10 * MB])
async def test_payloads_of_each_size_come_back_as_they_were(port: TlsPort, size: int) -> None:
    ends = await connected(port)
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert await answer(ends, 1, payload) == payload
    # Nothing of it is left over.
    assert await answer(ends, 2, b"small") == b"small"
    ends.close()


async def test_much_in_both_directions_at_one_time_keeps_its_order(port: TlsPort) -> None:
    ends = await connected(port)
    sent = {number: (b"%d " % number) * (number * 997 % 40_000) for number in range(300)}
    for number, payload in sent.items():
        ends.send(number, payload)
    await until(lambda: len(ends.answers) == len(sent))
    assert ends.answers == sent
    assert list(ends.answers) == sorted(sent)
    ends.close()


async def test_a_thread_may_send_while_another_receives(port: TlsPort) -> None:
    ends = await connected(port)

    def push() -> None:
        for number in range(2000):
            ends.port.emit([1], [b"%d;" % number])

    pushing = asyncio.ensure_future(asyncio.to_thread(push))
    sent = {number: bytes([number % 256]) * 3000 for number in range(2, 1000)}
    for number, payload in sent.items():
        ends.send(number, payload)
        await asyncio.sleep(0)
    await pushing
    await until(lambda: len(ends.answers) == len(sent))
    assert ends.answers == sent
    chunks = [bytes(p) for f in ends.frames if isinstance(f, frames.Chunks) for p in f.payloads]
    assert chunks == [b"%d;" % number for number in range(2000)]
    ends.close()


async def test_what_is_sent_is_counted_once_it_is_on_its_way(files: Files) -> None:
    """A full connection takes what it can, and whoever sends goes on with the rest."""
    ours, theirs = socket.socketpair()
    server, client = sessions(files)
    sender, receiver = TlsSocket(ours, server), TlsSocket(theirs, client)
    sender.setblocking(False)
    data = b"".join(b"%d," % number for number in range(400_000))
    buffer = memoryview(bytearray(MB))
    rest, received, refused = memoryview(data), b"", 0
    while rest:
        try:
            rest = rest[sender.send(rest) :]
        except BlockingIOError:
            refused += 1
        received += buffer[: receiver.recv_into(buffer)]
    sender.close()
    while size := receiver.recv_into(buffer):
        received += buffer[:size]
    assert received == data
    assert refused
    receiver.close()


def sessions(files: Files) -> tuple[tls.Session, tls.Session]:
    """Return both ends of a connection that has been established."""
    server = tls.Session(tls.context(files, server_side=True), server_side=True)
    client = tls.Session(tls.context(files, server_side=False), server_side=False)
    said = client.shake_hands()
    while not server.established:
        said = client.shake_hands(server.shake_hands(said))
    return server, client


async def test_nobody_in_between_can_read_a_request(port: TlsPort) -> None:
    relay = Relay(port.address)
    ends = await connected(port, relay)
    secret = b"the number of the account is 123456789"
    assert await answer(ends, 1, secret * 100) == secret * 100
    ends.close()
    relay.close()
    up, down = bytes(relay.seen["up"]), bytes(relay.seen["down"])
    assert min(len(up), len(down)) > 100 * len(secret)
    for seen in (up, down):
        for part in (b"account", handshake.MAGIC, TOKEN, SECRET):
            assert part not in seen


async def test_nor_change_it_unnoticed(port: TlsPort) -> None:
    relay = Relay(port.address)
    ends = await connected(port, relay)
    assert await answer(ends, 1, b"as it is") == b"as it is"
    relay.change = lambda data: data[:-1] + bytes([data[-1] ^ 1])
    ends.send(2, b"changed")
    # The actor ends, and so does the connection.
    await asyncio.to_thread(ends._thread.join)
    assert ends.port.forsaken
    ends.theirs.close()
    await until(lambda: ends.reasons)
    assert 2 not in ends.answers
    relay.close()


# -- who gets in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pickle", "plain claim", "zeros", "nearly TLS", "long record"])
async def test_what_is_no_tls_is_closed_before_anything_is_said(port: TlsPort, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "made"
    data = {
        "pickle": evil(path) * 20,
        "plain claim": handshake.claim(SECRET, TOKEN, bytes(32), bytes(32)),
        "zeros": bytes(4096),
        "nearly TLS": b"\x16\x03\x01\x00\x50" + evil(path).ljust(0x50, b"\0")[:0x50],
        "long record": b"\x16\x03\x01\xff\xff" + bytes(0xFFFF),
    }[kind]
    with socket.create_connection(port.address) as sock:
        sock.sendall(data)
        sock.settimeout(10.0)
        heard = await asyncio.to_thread(received_until_the_end, sock)
    # Its greeting would be the first of the handshake.
    assert handshake.MAGIC not in heard
    assert not port.came
    assert not path.exists()
    # The worker that is expected still is.
    (await port.connect()).close()
    await until(lambda: port.came)


async def test_a_handshake_of_many_records_is_closed_before_it_holds_the_event_loop(
    port: TlsPort, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the bytes are there already, reading a record does not wait: nothing else would run before the last."""
    hello = b"\x01" + (100_000).to_bytes(3, "big") + bytes(100_000)
    data = b"".join(b"\x16\x03\x01\x00\x01%c" % byte for byte in hello)
    with socket.create_connection(port.address) as sock:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(sock.sendall, data)
        assert await closed(sock)
    await until(lambda: "was closed" in caplog.text)
    assert f"more than {tls.MOST_RECORDS} records" in caplog.text
    assert not port.came


@pytest.mark.parametrize("head", [b"\x16\x03\x01\xff\xff", b"\x16\x02\x01\x00\x50", b"mosec"])
def test_no_more_is_awaited_than_a_record_has(head: bytes) -> None:
    with pytest.raises(HandshakeError, match="does not speak TLS"):
        tls.length_after(head)


def received_until_the_end(sock: socket.socket) -> bytes:
    heard = b""
    try:
        while data := sock.recv(4096):
            heard += data
    except ConnectionResetError:
        return heard
    return heard


async def test_a_connection_without_tls_is_closed_after_a_while(files: Files) -> None:
    """It waits for a greeting, which comes inside of TLS only."""
    port = TlsPort(files, seconds=0.05)
    plain = port.order()._replace(tls=False)
    with pytest.raises((HandshakeError, ConnectionResetError)):
        await asyncio.to_thread(connect, plain)
    assert not port.came
    port.close()


async def test_a_certificate_of_another_authority_gets_nobody_in(
    port: TlsPort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Files
) -> None:
    foreign = Authority(tmp_path, "foreign").node()
    # It takes the server's certificate for a good one, and has another itself.
    set_variables(monkeypatch, foreign._replace(authority=files.authority))
    with pytest.raises(HandshakeError, match=r"has refused TLS .* RAY_TLS_CA_CERT"):
        await port.connect()
    assert not port.came


async def test_nor_does_none_at_all(port: TlsPort, files: Files) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(files.authority)

    def attempt() -> bytes:
        with socket.create_connection(port.address) as sock, context.wrap_socket(sock) as wrapped:
            return wrapped.recv(100)

    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await asyncio.to_thread(attempt)
    assert not port.came


async def test_an_actor_refuses_a_server_of_another_authority(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = TlsPort(Authority(tmp_path, "foreign").node())
    with pytest.raises(HandshakeError, match=r"its certificate is not accepted .* RAY_TLS_CA_CERT"):
        await port.connect()
    await until(lambda: "was closed" in caplog.text)
    assert not port.came
    port.close()


async def test_the_secret_is_wanted_inside_of_tls(port: TlsPort) -> None:
    with pytest.raises(HandshakeError):
        await port.connect(secret=b"x" * len(SECRET))
    assert not port.came


async def test_whoever_has_a_certificate_of_the_cluster_cannot_stand_in_between(port: TlsPort, files: Files) -> None:
    """The handshake of one connection is worth nothing on another."""
    server = socket.create_server(("127.0.0.1", 0))
    ours = tls.context(files, server_side=True)
    theirs = tls.context(files, server_side=False)

    def relay() -> None:
        sock, _ = server.accept()
        real = theirs.wrap_socket(socket.create_connection(port.address))
        with real, ours.wrap_socket(sock, server_side=True) as actor:
            actor.sendall(real.recv(handshake.GREETING_SIZE))
            real.sendall(actor.recv(handshake.CLAIM_SIZE))
            assert received_until_the_end(real) == b""

    relaying = asyncio.ensure_future(asyncio.to_thread(relay))
    order = port.order()._replace(address=server.getsockname())
    with pytest.raises((HandshakeError, OSError)):
        await asyncio.to_thread(connect, order)
    await relaying
    assert not port.came
    server.close()


async def test_one_that_stalls_holds_nobody_else_and_is_closed(files: Files) -> None:
    port = TlsPort(files, seconds=0.5, most_unproved=3)
    hello = tls.Session(tls.context(files, server_side=False), server_side=False).shake_hands()
    stalled = [socket.create_connection(port.address) for _ in range(2)]
    stalled[0].sendall(hello[:7])
    stalled[1].sendall(hello)
    await until(lambda: port.listener.unproved == 2)
    (await port.connect()).close()
    await until(lambda: port.came)
    for sock in stalled:
        assert await closed(sock)
        sock.close()
    assert port.listener.unproved == 0
    port.close()


# -- files and settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "variable", "wanted"),
    [
        ("auto", "", False), ("auto", "0", False), ("auto", "1", True), ("auto", "True", True),
        ("on", "0", True), ("off", "1", False),
    ],
)  # fmt: skip
def test_it_is_wanted_where_ray_has_it_or_the_setting_says_so(
    setting: str, variable: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tls.SWITCH, variable)
    assert tls.is_wanted(setting) == wanted


@pytest.mark.parametrize("name", ["RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"])
def test_a_variable_that_is_not_set_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(StartupError, match=f"the variable {name} is not set.*ray_tls"):
        tls.files_of_node()


def unusable(files: Files, authority: Authority, tmp_path: Path) -> Iterator[tuple[Files, str]]:
    missing, garbage = str(tmp_path / "missing"), str(tmp_path / "garbage")
    Path(garbage).write_text("this is no certificate")
    for place, name in enumerate(("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")):
        for file, why in ((missing, "cannot be read: No such file"), (garbage, "cannot be used")):
            parts = list(files)
            parts[place] = file
            yield Files(*parts), f"{file} of {name}.*{why}"
    yield files._replace(key=authority.node("other").key), "the key is not that of the certificate"


def test_a_file_that_cannot_be_used_is_named(files: Files, authority: Authority, tmp_path: Path) -> None:
    for wrong, text in unusable(files, authority, tmp_path):
        with pytest.raises(StartupError, match=f"{text}.*ray_tls"):
            tls.context(wrong, server_side=True)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_not_opened(make: Callable[[Path], None], files: Files, tmp_path: Path) -> None:
    make(tmp_path / "other")
    with pytest.raises(StartupError, match="RAY_TLS_CA_CERT cannot be read: it is no regular file"):
        tls.context(files._replace(authority=str(tmp_path / "other")), server_side=True)


async def test_files_that_have_changed_are_read_again(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    used = Files(*(str(shutil.copy(file, tmp_path / f"used{place}")) for place, file in enumerate(files)))
    port = TlsPort(used)
    new = Authority(tmp_path, "new").node()
    Path(used.certificate).write_text("half of a new one")
    # They are all replaced by and by; until then what was read before is used, and told once.
    for times in (1, 2):
        (await port.connect()).close()
        await until(lambda times=times: len(port.came) == times)
        port.expect_again()
    assert caplog.text.count("what was read before is used") == 1
    for file, source in zip(used, new, strict=True):
        shutil.copy(source, file)
    set_variables(monkeypatch, new)
    (await port.connect()).close()
    await until(lambda: len(port.came) == 3)
    port.close()
