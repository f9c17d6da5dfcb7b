"""Large payloads between a web process and the workers of an engine: written once by one, and read where they lie.

A web process has a region of its own, as each worker has one (`ipc.ledger`): it alone writes there, and the engine says
which blocks are free again. What workers have written it copies out at once, or sends from there to a client (`lend`),
and then says so.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from mosec_asgi.ipc import reference
from mosec_asgi.ipc.arena import LARGE
from mosec_asgi.ipc.frames import FrameError
from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.ipc.reference import Span
from mosec_asgi.ipc.shm import Share, SharedMemory, SharedPayload, WorkerMemory
from mosec_asgi.messages import Payload, Pieces

# Called with the memory in which a result lies, the number of its call, and its size.
OnRead: TypeAlias = Callable[["WebMemory", int, int], None]


class PutPayload:
    """A payload that this process has put into shared memory, until it is submitted; see `messages.HeldPayload`.

    Attributes:
        description: what the engine is told of it.
        memory: where it lies.
    """

    __slots__ = ("description", "memory")

    def __init__(self, description: bytes, memory: WebMemory) -> None:
        self.description = description
        self.memory = memory

    def __len__(self) -> int:
        return LARGE

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        """Leave this memory as plain bytes."""
        return bytes, (self.copy(),)

    def read(self) -> bytes:
        """Return a copy of what was put as bytes.

        Raises:
            FrameError: it is an object.
        """
        taken = self.memory.read(self.description)
        if not isinstance(taken, bytes):
            raise FrameError("an object in shared memory is not read as bytes")
        return taken

    def copy(self) -> bytes:
        """Return a copy of what was put, an object as one pickle; it stays where it is."""
        taken = self.memory.read(self.description)
        return taken if isinstance(taken, bytes) else pickle.dumps(taken.load(), protocol=5)

    def lend(self) -> memoryview:
        """Return the same."""
        return memoryview(self.read())

    def load(self) -> Any:
        """Return the object that is pickled here."""
        taken = self.memory.read(self.description)
        self.drop()
        return pickle.loads(taken) if isinstance(taken, bytes) else taken.load()

    def drop(self) -> None:
        """Have its blocks written over."""
        self.memory.take_back(reference.unpack(self.description).spans)


class TakenPayload:
    """An object that was copied out of shared memory, and is not unpickled yet; see `messages.HeldPayload`."""

    __slots__ = ("_buffers", "_stream")

    def __init__(self, stream: bytes, buffers: Sequence[bytearray]) -> None:
        self._stream = stream
        self._buffers = buffers

    def __len__(self) -> int:
        return LARGE

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        return bytes, (self.copy(),)

    def copy(self) -> bytes:
        """Return the object as one pickle."""
        return pickle.dumps(self.load(), protocol=5)

    def read(self) -> bytes:
        """Return the same."""
        return self.copy()

    def lend(self) -> memoryview:
        """Return the same."""
        return memoryview(self.copy())

    def load(self) -> Any:
        """Return the object; its arrays may be written to, as they are copies."""
        return pickle.loads(self._stream, buffers=self._buffers)

    def drop(self) -> None:
        """Do nothing: the memory was given back when this was copied."""


class LyingPayload:
    """A result that lies where its worker has written it, until it is dropped; see `messages.HeldPayload`."""

    __slots__ = ("_call_id", "_memory", "_on_read", "_span")

    def __init__(self, span: Span, memory: WebMemory, call_id: int, on_read: OnRead) -> None:
        self._span = span
        self._memory = memory
        self._call_id = call_id
        self._on_read = on_read

    def __len__(self) -> int:
        return self._span.length

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        return bytes, (self.copy(),)

    def lend(self) -> memoryview:
        """Return it where it lies, to be read and released."""
        return self._memory.lend(self._span)

    def read(self) -> bytes:
        """Return a copy."""
        with self.lend() as lent:
            return bytes(lent)

    def copy(self) -> bytes:
        """Return the same."""
        return self.read()

    def load(self) -> Any:
        """Return the object that is pickled here."""
        pickled = self.read()
        self.drop()
        return pickle.loads(pickled)

    def drop(self) -> None:
        """Have it written over."""
        self._on_read(self._memory, self._call_id, self._span.length)


class WebMemory:
    """The shared memory, as a web process has it; also the place of `calls.objects` for large buffers.

    Attributes:
        size: bytes of each region: its own, and those of workers.
    """

    def __init__(self, descriptor: int, total: int, region: tuple[int, int]) -> None:
        """Map it, and close the descriptor.

        Raises:
            StartupError: the system refuses it.
        """
        self._descriptor = descriptor
        self.size = region[1] or LARGE
        try:
            self._mapped = Mapped(Share(descriptor, total, region))
        except BaseException:
            os.close(descriptor)
            raise

    def put(self, data: bytes | memoryview) -> Span | None:
        """Write a block; None where there is no room."""
        return self._mapped.put(data)

    def put_payload(self, payload: bytes) -> bytes | None:
        """Write a payload, and return its description; None where there is no room."""
        span = self._mapped.put(payload)
        return None if span is None else reference.pack(reference.BYTES, [span])

    def put_pieces(self, pieces: Pieces) -> bytes | None:
        """Write a payload that came in pieces, and return its description; None where there is no room."""
        span = self._mapped.put_pieces(pieces.pieces, len(pieces))
        return None if span is None else reference.pack(reference.BYTES, [span])

    def take_back(self, spans: Sequence[Span]) -> None:
        """Have blocks written over, of which the engine has not been told."""
        self._mapped.take_back(spans)

    def hold(self, description: bytes) -> PutPayload:
        """Return the payload that lies in blocks that were put, by their description."""
        return PutPayload(description, self)

    def freed(self, blocks: Sequence[int]) -> None:
        """Take note that blocks may be written to again."""
        self._mapped.freed(blocks)

    def read(self, description: bytes) -> bytes | TakenPayload:
        """Return a copy of what lies in the memory.

        Raises:
            FrameError: the description is none.
        """
        contents = reference.unpack(description)
        read = self._mapped.read
        if contents.kind is reference.BYTES:
            return read(contents.spans[0])
        if contents.kind is reference.PICKLE:
            return TakenPayload(contents.stream, [bytearray(read(span)) for span in contents.spans])
        stream, *buffers = contents.spans
        return TakenPayload(read(stream), [bytearray(read(span)) for span in buffers])

    def span_of_bytes(self, description: bytes) -> Span | None:
        """Return where a payload of bytes lies; None for an object.

        Raises:
            FrameError: the description is none.
        """
        contents = reference.unpack(description)
        return contents.spans[0] if contents.kind is reference.BYTES else None

    def lend(self, span: Span) -> memoryview:
        """Return a block without a copy, to be read, and released before the engine is told that it was read.

        Raises:
            FrameError: it is not in the memory.
        """
        return self._mapped.lend(span)

    def close(self) -> None:
        """Close the file. What is mapped goes when nobody refers to it any more."""
        os.close(self._descriptor)


class CallerMemory:
    """The engine's account of one web process: what lies in its region, and what it has been given to read."""

    def __init__(self, memory: SharedMemory) -> None:
        """Open a region; there may be none left."""
        self._memory = memory
        self._account: WorkerMemory = memory.open_worker()
        # Results that it has been told of and has not read, by the calls' numbers there.
        self._given: dict[int, SharedPayload] = {}

    @property
    def share(self) -> Share:
        """What the web process is given."""
        return self._account.share

    def payload(self, description: bytes) -> SharedPayload:
        """Return the payload that the web process has written.

        Raises:
            FrameError: there is none, or it does not lie in its region.
        """
        return self._account.hold(description)

    def give(self, call_id: int, payload: Payload) -> tuple[bytes] | None:
        """Return what tells the web process where a result lies; None for one that does not lie in this memory."""
        if not isinstance(payload, SharedPayload) or not payload.lies_in(self._memory):
            return None
        self._given[call_id] = payload
        return (payload.description,)

    def taken(self, call_id: int) -> None:
        """Note that a result has been read.

        Raises:
            FrameError: it had none.
        """
        payload = self._given.pop(call_id, None)
        if payload is None:
            raise FrameError(f"call {call_id} has no result in shared memory")
        payload.drop()
        self._memory.give_back()

    def freed(self) -> list[int]:
        """Return the blocks of its region that are free, of which it has not been told."""
        return self._account.take_freed()

    def on_full(self, tell: Any) -> None:
        """Have `tell` called when it should be told of its free blocks."""
        self._account.on_full(tell)

    def close(self) -> None:
        """Note that the web process is gone."""
        given, self._given = self._given, {}
        for payload in given.values():
            payload.drop()
        self._account.close()
