"""The messages between the server and its broker, and what an actor is told to do. Pure.

    server ── Connect, Launch, Kill, Ask ──► broker ── actors ──► Ray
    server ◄─ Connected, Ended, Waits, Room ─ broker

The broker is a child of the server, so both trust each other: a message is a pickle behind its length.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

LENGTH_SIZE = 8


class Order(NamedTuple):
    """What an actor is to do; an argument of its class, so it holds what every node understands.

    Attributes:
        version: of the package, which must be the same on both sides.
        paths: where modules are looked for in the server's process.
        main: the server's main module, by its name or else its file, where the worker's class is defined there.
        address: host and port of the server.
        token, secret: see `handshake`.
        variables: environment variables to set before the worker is loaded.
        spec: a pickled `WorkerSpec`.
        name: of the worker, before its lines in Ray's logs.
        tls: connect by TLS, with the files that are named on the worker's node.
    """

    version: str
    paths: Sequence[str]
    main: tuple[str, str]
    address: tuple[str, int]
    token: bytes
    secret: bytes
    variables: Mapping[str, str]
    spec: bytes
    name: str
    tls: bool = False


class Connect(NamedTuple):
    """Connect to Ray; the first message to a broker.

    Attributes:
        address: of the cluster; None where Ray is to look for one, and to start one where it finds none.
        namespace: of the job; empty for none.
        runtime_env: of the job, where the server's own process has connected to Ray with one.
    """

    address: str | None
    namespace: str
    runtime_env: Mapping[str, Any]


class Launch(NamedTuple):
    """Start an actor.

    Attributes:
        number: what the server calls it.
        options: pickled options of the actor (`RayOptions.actor_options`); pickled as they may hold objects of Ray.
        placement: pickled, as `RayOptions.placement`.
        stage: whose actors are to be spread, if they are.
        order: what it is to do, by position.
    """

    number: int
    options: bytes
    placement: bytes
    stage: str
    order: tuple[Any, ...]


class Kill(NamedTuple):
    """End an actor; `Ended` follows.

    Attributes:
        number: which.
        why: say what it may have lacked, as it has never begun.
    """

    number: int
    why: bool


class Ask(NamedTuple):
    """Ask why an actor has not begun; `Waits` follows."""

    number: int


class Look(NamedTuple):
    """Ask what the cluster has; `Room` follows."""


class Connected(NamedTuple):
    """The broker is connected.

    Attributes:
        host: the address of this machine by which Ray's nodes reach it.
        cluster: the address of the cluster.
        told: the cluster in words.
    """

    host: str
    cluster: str
    told: str


class Refused(NamedTuple):
    """The broker cannot connect, and ends; the text says why, and what to do."""

    text: str


class Ended(NamedTuple):
    """An actor has ended.

    Attributes:
        number: which.
        text: how, as the end of a sentence.
        fault: what kept it from beginning; empty where it has begun.
    """

    number: int
    text: str
    fault: str = ""


class Waits(NamedTuple):
    """What an actor that has not begun lacks, in words."""

    number: int
    text: str


class Room(NamedTuple):
    """What the cluster has.

    Attributes:
        nodes: the resources of each living node.
        free: what of all that nobody has taken.
    """

    nodes: Sequence[Mapping[str, float]]
    free: Mapping[str, float]


Command: TypeAlias = Connect | Launch | Kill | Ask | Look
Report: TypeAlias = Connected | Refused | Ended | Waits | Room


def packed(message: Command | Report) -> bytes:
    """Return a message as bytes."""
    data = pickle.dumps(message, 5)
    return len(data).to_bytes(LENGTH_SIZE, "big") + data


class Unpacker:
    """Bytes in, messages out."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._buffer = bytearray()

    def receive(self, data: bytes) -> list[Any]:
        """Take in bytes as they came; return the messages that are whole."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= LENGTH_SIZE:
            end = LENGTH_SIZE + int.from_bytes(self._buffer[:LENGTH_SIZE], "big")
            if len(self._buffer) < end:
                break
            messages.append(pickle.loads(self._buffer[LENGTH_SIZE:end]))
            del self._buffer[:end]
        return messages
