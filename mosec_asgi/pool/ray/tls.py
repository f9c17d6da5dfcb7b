"""TLS between an actor and its server, where Ray's own connections have it or the setting `ray_tls` asks for it.

Ray has TLS for its connections by four variables on every node: RAY_USE_TLS, and the files of the node's certificate,
its key, and the authority that has signed all of them. The same files are used here. Each side shows its certificate
and checks that of the other against that authority. The names in a certificate are not checked, as nodes are known by
their addresses; what tells one worker from another is the secret of `handshake`, whose messages pass inside of TLS. The
secret is mixed with what only the two ends of one TLS connection know (`Session.bound`): whoever has a certificate of
the cluster and stands in between cannot pass these messages on.

OpenSSL works on memory here (`Session`), and the socket is read and written beside it. Two threads of an actor may use
the connection at one time, of which one waits for what comes. OpenSSL allows only one thread at a time on a connection,
so none may wait inside of it.

Before the secret is proved, the socket is read record by record, and each message is a record of its own. So nothing is
left in between when the connection is handed over.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import socket
import ssl
import stat
import threading
from typing import NamedTuple, cast

from mosec_asgi import log
from mosec_asgi.config import variables_of
from mosec_asgi.errors import StartupError
from mosec_asgi.pool.ray.handshake import HandshakeError

SWITCH = "RAY_USE_TLS"
CERTIFICATE, KEY, AUTHORITY = "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"
_TURN_OFF = "or turn it off by the setting ray_tls (MOSEC_RAY_TLS=off)"
# The first bytes of each record: its kind, the version 3.x, and its length.
HEAD_SIZE = 5
_KINDS = range(20, 24)
_MOST_OF_RECORD = (1 << 14) + 256
# Records of one side before its certificate is accepted. It needs about five, and some more for a long chain. OpenSSL
# bounds the bytes of each message, and not in how many records they come: each takes time of the event loop.
MOST_RECORDS = 64
# Bytes that are read, and encrypted, at a time. What was read is less when it is decrypted, but for the part of one
# record that was there before.
READ_SIZE = 1 << 16
WRITE_SIZE = 1 << 18

logger = log.internal_logger(__name__)


class TlsError(HandshakeError):
    """There is no TLS with the other side.

    Attributes:
        alert: what to send it, so that it hears why.
    """

    def __init__(self, text: str, alert: bytes = b"") -> None:
        """Say why."""
        super().__init__(text)
        self.alert = alert


class Files(NamedTuple):
    """The files of one node, by Ray's variables."""

    certificate: str
    key: str
    authority: str


def is_wanted(setting: str) -> bool:
    """Whether connections are to be encrypted, by the setting `ray_tls`."""
    if setting == "auto":
        # What Ray takes for true.
        return variables_of([SWITCH]).get(SWITCH, "").lower() in ("1", "true")
    return setting == "on"


def files_of_node() -> Files:
    """Return the files of this node.

    Raises:
        StartupError: a variable is not set.
    """
    names = (CERTIFICATE, KEY, AUTHORITY)
    found = variables_of(names)
    for name in names:
        if not found.get(name):
            raise StartupError(
                f"the connections of Ray's actors are to be encrypted, as {SWITCH} or the setting ray_tls says, and "
                f"the variable {name} is not set: set it on each node to the file (PEM), {_TURN_OFF}"
            )
    return Files(*(found[name] for name in names))


def context(files: Files, *, server_side: bool) -> ssl.SSLContext:
    """Return what makes connections by these files, with both sides checked.

    Raises:
        StartupError: they cannot be used; the text says which, and why.
    """
    for name, file in ((CERTIFICATE, files.certificate), (KEY, files.key), (AUTHORITY, files.authority)):
        try:
            # It is opened several times, and another kind may keep whoever opens it waiting.
            if not stat.S_ISREG(os.stat(file).st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            with open(file, "rb"):
                pass
        except OSError as error:
            raise StartupError(f"the file {file} of {name} cannot be read: {error.strerror}; {_mend()}") from error
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    # An authority may be one that another has signed, as with Ray's own connections.
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if server_side:
        # Each connection is made once.
        made.num_tickets = 0
    try:
        # OpenSSL would ask the terminal for a password.
        made.load_cert_chain(files.certificate, files.key, lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = "the key is not that of the certificate"
        else:
            why = f"{error.reason or error}: both must be PEM, the key without a password"
        raise StartupError(
            f"the files {files.certificate} of {CERTIFICATE} and {files.key} of {KEY} cannot be used: {why}; {_mend()}"
        ) from error
    try:
        made.load_verify_locations(files.authority)
    except ssl.SSLError as error:
        raise StartupError(
            f"the file {files.authority} of {AUTHORITY} cannot be used: {error.reason or error}; {_mend()}"
        ) from error
    return made


def _mend() -> str:
    return f"name another, {_TURN_OFF}"


class Credentials:
    """The server's side of TLS. Its files are read again once they have changed: certificates may be valid for days."""

    def __init__(self, files: Files) -> None:
        """Prepare; `load` reads the files."""
        self._files = files
        self._context: ssl.SSLContext
        self._read: object = None

    def load(self) -> None:
        """Read the files.

        Raises:
            StartupError: they cannot be used.
        """
        stamp = self._stamp()
        self._context = context(self._files, server_side=True)
        self._read = stamp

    def session(self) -> Session:
        """Return the server's end of a new connection."""
        if (stamp := self._stamp()) != self._read:
            try:
                self.load()
            except StartupError as error:
                # Perhaps one of them is still being written; each change is told once.
                self._read = stamp
                logger.warning(
                    "the files for TLS with Ray's actors have changed, and what was read before is used: %s", error
                )
        return Session(self._context, server_side=True)

    def _stamp(self) -> object:
        try:
            found = [os.stat(file) for file in self._files]
        except OSError as error:
            return error.errno
        return [(one.st_mtime_ns, one.st_size, one.st_ino) for one in found]


class Session:
    """One end of a TLS connection: bytes in, bytes out. Any thread may use it.

    Attributes:
        established: both sides have shown their certificates, as far as this one knows.
        ended: the other side has ended it in good order.
    """

    def __init__(self, made_by: ssl.SSLContext, *, server_side: bool) -> None:
        """Begin; nothing has been said."""
        self.established = self.ended = False
        # Of the other side's, before it was established.
        self._records = 0
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = made_by.wrap_bio(self._came, self._goes, server_side=server_side)
        self._lock = threading.Lock()

    def shake_hands(self, record: bytes = b"") -> bytes:
        """Take in a record of the other side; return what to send it.

        Raises:
            TlsError: it is not what it should be.
        """
        self._records += 1
        if self._records > MOST_RECORDS:
            raise TlsError(f"its handshake of TLS takes more than {MOST_RECORDS} records")
        self._came.write(record)
        try:
            self._tls.do_handshake()
            self.established = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise TlsError(_told(error), self._goes.read()) from error
        return self._goes.read()

    def bound(self, secret: bytes) -> bytes:
        """Return a secret as it is on this connection alone."""
        # The client's last message: an HMAC over all that both have said, by a key that only they have.
        finished = self._tls.get_channel_binding("tls-unique")
        assert finished is not None
        return hmac.new(secret, b"tls" + finished, hashlib.sha256).digest()

    def encrypted(self, data: bytes | memoryview) -> bytes:
        """Return data as records."""
        with self._lock:
            written = self._tls.write(data)
            while written < len(data):
                # It may take a record at a time.
                written += self._tls.write(memoryview(data)[written:])
            return self._goes.read()

    def decrypted(self, record: bytes) -> bytes:
        """Return what is in a record.

        Raises:
            TlsError: it is not from the other side, or that has refused this one.
        """
        buffer = bytearray(_MOST_OF_RECORD)
        try:
            return bytes(buffer[: self.decrypt_into(record, memoryview(buffer))])
        except ssl.SSLError as error:
            raise TlsError(_told(error)) from error

    def decrypt_into(self, data: bytes, buffer: memoryview) -> int:
        """Take data in, and write into the buffer what is in it; return how much that is.

        Args:
            data: records, cut anywhere.
            buffer: has room for all of the data, and for a record that was begun before.

        Raises:
            ssl.SSLError: they are not from the other side.
        """
        filled = 0
        with self._lock:
            self._came.write(data)
            try:
                # Asked for more than there is, it raises: an exception for each small frame.
                while self._came.pending and not self.ended:
                    # With a buffer it returns a number.
                    size = cast("int", self._tls.read(len(buffer) - filled, buffer[filled:]))
                    self.ended = not size
                    filled += size
            except ssl.SSLWantReadError:
                pass
        return filled


class TlsSocket:
    """A socket that encrypts, as far as frames need one: see `ipc.stream.Stream`."""

    def __init__(self, sock: socket.socket, session: Session) -> None:
        """Take over a socket and the session that has been established on it."""
        self._sock = sock
        self._session = session
        # What has been encrypted and not been sent, and how many bytes of the caller's that are.
        self._unsent = memoryview(b"")
        self._held = 0
        # Records have to be sent in the order in which they were made.
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    def setblocking(self, flag: bool, /) -> None:
        """Say whether the others wait."""
        self._sock.setblocking(flag)

    def send(self, data: bytes | memoryview, /) -> int:
        """Send what there is room for, and return how much of the data that was.

        A part is counted once all of its records have been sent. So that this is done, the next call has to begin with
        what was not counted, as a caller does that wants all of it sent.
        """
        # What is held is the beginning of this data.
        sent = 0
        data = memoryview(data)
        while self._held or sent < len(data):
            if not self._held:
                part = data[sent : sent + WRITE_SIZE]
                self._unsent = memoryview(self._session.encrypted(part))
                self._held = len(part)
            try:
                while self._unsent:
                    self._unsent = self._unsent[self._sock.send(self._unsent) :]
            except (BlockingIOError, InterruptedError):
                if not sent:
                    raise
                break
            sent, self._held = sent + self._held, 0
        return sent

    def sendall(self, data: bytes, /) -> None:
        """Send all, waiting where there is no room."""
        with self._sending:
            if len(data) <= WRITE_SIZE:
                self._sock.sendall(self._session.encrypted(data))
                return
            view = memoryview(data)
            for start in range(0, len(view), WRITE_SIZE):
                self._sock.sendall(self._session.encrypted(view[start : start + WRITE_SIZE]))

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0, /) -> int:
        """Receive what has come, and return how much that is; 0 at the end.

        Args:
            buffer: has room for `READ_SIZE` and a record.
            nbytes: not used.
            flags: as for a socket.

        Raises:
            ConnectionResetError: what has come is not from the other side.
        """
        while not self._session.ended and (data := self._sock.recv(READ_SIZE, flags)):
            try:
                size = self._session.decrypt_into(data, buffer)
            except ssl.SSLError as error:
                # It has been changed on its way.
                raise ConnectionResetError(errno.EBADMSG, _told(error)) from error
            if size:
                return size
        return 0

    def shutdown(self, how: int, /) -> None:
        """End the connection's directions, without a word."""
        self._sock.shutdown(how)

    def close(self) -> None:
        """Close the connection. A frame tells its end in good order, and so TLS need not."""
        self._sock.close()


def length_after(head: bytes) -> int:
    """Return how many bytes of a record follow its head.

    Raises:
        HandshakeError: it is none.
    """
    length = int.from_bytes(head[3:HEAD_SIZE], "big")
    if head[0] not in _KINDS or head[1] != 3 or length > _MOST_OF_RECORD:
        raise TlsError("it does not speak TLS")
    return length


def _told(error: ssl.SSLError) -> str:
    """Say what went wrong, and what may help."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not accepted ({error.verify_message}): the certificates of all nodes must be signed "
            f"by the authority of {AUTHORITY}"
        )
    reason = error.reason or str(error)
    if "ALERT" in reason:
        return (
            f"it has refused TLS ({reason}): the certificates of all nodes ({CERTIFICATE}) must be signed by the "
            f"authority of {AUTHORITY}"
        )
    return f"TLS has failed ({reason})"
