"""A child of the server that speaks with Ray: it connects, starts actors and ends them, and tells of their end.

It is a process of its own for three reasons. A program that is connected to Ray is ended by Ray once the head of the
cluster has been gone for a minute; the server must live on. Calls of Ray block, and its threads share the interpreter.
And Ray takes a hundred megabytes and a second to import. When the server ends, however it does, its end of the socket
is closed and this process ends; Ray then ends the actors, which are its own.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import signal
import socket
import sys
import threading
from collections import Counter
from functools import partial
from typing import Any

from mosec_asgi.config import variables_of
from mosec_asgi.pool.ray import entry
from mosec_asgi.pool.ray.orders import (
    Ask,
    Command,
    Connect,
    Connected,
    Ended,
    Kill,
    Launch,
    Look,
    Refused,
    Report,
    Room,
    Unpacker,
    Waits,
    packed,
)
from mosec_asgi.pool.ray.room import asked, emptiest, in_words, lacking

READ_SIZE = 1 << 16
# Seconds in which the head of a cluster has to take a connection.
CONNECT_SECONDS = 10.0
# Characters of Ray's own text about the end of an actor that are shown.
MOST_OF_TEXT = 500
NO_NODES = "all nodes of the Ray cluster are gone; it is connected to anew"


def main(descriptor: int) -> None:
    """Run a broker until the server closes its end; the target of the process."""
    # The server decides when its workers end, and a terminal's ctrl-c reaches all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=descriptor)
    unpacker = Unpacker()
    broker: Broker | None = None
    while data := received(sock):
        for command in unpacker.receive(data):
            if broker is None:
                broker = connected(command, sock)
                # Ray's own handler would exit with a traceback.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            else:
                broker.do(command)
    if broker is not None:
        broker.close()


def received(sock: socket.socket) -> bytes:
    """Return what the server says next; empty where it has closed its end, whether it had read all or not."""
    try:
        return sock.recv(READ_SIZE)
    except ConnectionResetError:
        return b""


def connected(command: Connect, sock: socket.socket) -> Broker:
    """Return a broker that is connected to Ray; where that fails, say so and end this process."""
    address = command.address or variables_of(["RAY_ADDRESS"]).get("RAY_ADDRESS", "")
    try:
        if address.startswith("ray://"):
            raise ConnectionError("this is the address of a Ray client, and actors connect to a node of the cluster")
        _check_there(address)
        return Broker(command, sock)
    except ImportError as error:
        text = f"executor='ray' needs Ray ({error}): pip install 'mosec-asgi[ray]'"
    # Ray raises errors of many kinds here, plain ones among them.
    except Exception as error:
        where = address or "this machine, nor start one here"
        text = (
            f"cannot connect to a Ray cluster at {where}: {type(error).__name__}: {error}. Start one by `ray start "
            "--head`, and name another by RAY_ADDRESS=host:port, or by ray.init(address=...) before the service starts"
        )
    sock.sendall(packed(Refused(text)))
    sys.exit(1)


def _check_there(address: str) -> None:
    """Raise `OSError` if nothing listens at a cluster's address: Ray itself would try for a minute and more."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


class Broker:
    """What the server has asked of Ray."""

    def __init__(self, command: Connect, sock: socket.socket) -> None:
        """Connect to Ray, and tell the server."""
        import ray
        import ray.cloudpickle

        self._ray = ray
        self._sock = sock
        # Held while something is sent: Ray calls back in threads of its own.
        self._lock = threading.Lock()
        self._actors: dict[int, Any] = {}
        self._wanted: dict[int, dict[str, float]] = {}
        # Of those that are spread, the stage and the node that was chosen.
        self._placed: dict[int, tuple[str, str]] = {}
        context = ray.init(
            command.address,
            namespace=command.namespace or None,
            runtime_env=dict(command.runtime_env) or None,
            # Its own lines are about what the server's log says better.
            logging_level=logging.WARNING,
        )
        ray.cloudpickle.register_pickle_by_value(entry)
        self._class = ray.remote(entry.Entry)
        nodes = self._room().nodes
        total: Counter[str] = Counter()
        for node in nodes:
            total.update(node)
        told = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'} with {in_words(total)}"
        self._send(Connected(ray.util.get_node_ip_address(), context.address_info["gcs_address"], told))

    def close(self) -> None:
        """Disconnect; Ray ends what was started."""
        self._ray.shutdown()

    def do(self, command: Command) -> None:
        """Do what the server asks."""
        if isinstance(command, Launch):
            self._launch(command)
        elif isinstance(command, Kill):
            self._kill(command)
        elif isinstance(command, Ask):
            self._tell_why_it_waits(command.number)
        elif isinstance(command, Look):
            self._send(self._room())

    def _tell_why_it_waits(self, number: int) -> None:
        if self._room().nodes:
            self._send(Waits(number, self._lacking(number)))
        else:
            # This connection goes by a node that is gone. The server's next launch makes another; where Ray had started
            # the cluster for it, Ray then starts one anew.
            self._send(Refused(NO_NODES))

    def _launch(self, command: Launch) -> None:
        number = command.number
        try:
            options = pickle.loads(command.options)
            self._wanted[number] = asked(options)
            actor = self._class.options(
                **options, **self._strategy(command), max_restarts=0, max_task_retries=0
            ).remote(command.order)
            self._actors[number] = actor
            actor.run.remote().future().add_done_callback(partial(self._ended, number))
        # Whatever is wrong with the options: Ray checks them in many places.
        except Exception as error:
            self._actors.pop(number, None)
            self._placed.pop(number, None)
            self._send(Ended(number, "was not started", f"Ray refuses the actor: {type(error).__name__}: {error}"))

    def _strategy(self, command: Launch) -> dict[str, Any]:
        """Return the options by which Ray chooses a node."""
        placement = pickle.loads(command.placement)
        if placement is None:
            return {}
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

        if placement == "PACK":
            # The server's own node as long as it has room, then as Ray chooses, which fills one after the other.
            node = self._ray.get_runtime_context().get_node_id()
        elif placement == "SPREAD":
            node = self._emptiest(command)
            if not node:
                return {"scheduling_strategy": "SPREAD"}
        else:
            return {"scheduling_strategy": PlacementGroupSchedulingStrategy(placement)}
        strategy = NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)
        return {"scheduling_strategy": strategy}

    def _emptiest(self, command: Launch) -> str:
        """Choose the node for one of the actors of a stage that are spread; empty where none has what it asks for.

        Ray's own "SPREAD" takes the nodes in turn, and counts an actor that it has to try twice as two: both of two may
        come to one node.
        """
        nodes = {node["NodeID"]: node["Resources"] for node in self._ray.nodes() if node["Alive"]}
        taken = Counter(node for stage, node in self._placed.values() if stage == command.stage)
        node = emptiest(nodes, taken, self._wanted[command.number])
        if node:
            self._placed[command.number] = (command.stage, node)
        return node

    def _kill(self, command: Kill) -> None:
        actor = self._actors.get(command.number)
        if actor is None:
            return
        lack = self._lacking(command.number) if command.why else ""
        # It may have ended meanwhile.
        with contextlib.suppress(ValueError, self._ray.exceptions.RayError):
            self._ray.kill(actor)
        if command.why:
            # One that has no node yet does not end, as there is nothing of it.
            self._tell_end(Ended(command.number, f"had not begun: {lack}"))

    def _ended(self, number: int, future: Any) -> None:
        """Tell of the end of an actor; called in a thread of Ray."""
        error = future.exception()
        if error is None:
            fault = future.result()
            self._tell_end(Ended(number, "has ended" if not fault else "could not begin", fault))
        elif isinstance(error, self._ray.exceptions.RayTaskError):
            self._tell_end(Ended(number, "failed", str(error)))
        else:
            self._tell_end(Ended(number, f"died: {_in_short(str(error))}"))

    def _tell_end(self, ended: Ended) -> None:
        self._wanted.pop(ended.number, None)
        self._placed.pop(ended.number, None)
        # Ray ends an actor to which nobody has a handle.
        if self._actors.pop(ended.number, None) is not None:
            self._send(ended)

    def _lacking(self, number: int) -> str:
        room = self._room()
        return lacking(room.nodes, room.free, self._wanted.get(number, {}))

    def _room(self) -> Room:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return Room(nodes, self._ray.available_resources())

    def _send(self, report: Report) -> None:
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._sock.sendall(packed(report))


def _in_short(text: str) -> str:
    """Return what Ray says of an actor's end without the lines of its names."""
    lines = [line.strip() for line in text.splitlines()]
    # "class_name: Entry", "actor_id: ...".
    said = [line for line in lines if line and not line.split(" ")[0].endswith(":")]
    return " ".join(said)[:MOST_OF_TEXT]
