"""Large results of an actor for the next stage: they lie in Ray's object store, and a reference stands in the frame.

So an array goes from node to node, or nowhere where both workers are on one, and not through the server. The pickle of
a result is taken apart as for shared memory: its large buffers as they are, and the stream that refers to them. Both
are put into the store as one object, of which the actor that has made it is the owner. The reference holds the object's
id and its owner's address; the other actor reads the buffers in place, and so its arrays cannot be written to.

    reference = number u64, bytes u64, pickle of (object id, owner's address, status)

The owner keeps the object until the server says that its number is free: the task has gone on or has ended. Ray does
not count references that pass by others, so nobody else keeps it alive; whoever reads it has it pinned by that. An
object whose owner has died is lost, which is `Lost`: the call begins again.
"""

from __future__ import annotations

import logging
import pickle
import struct
import threading
from collections.abc import Sequence
from typing import Any

from mosec_asgi import log
from mosec_asgi.inside.pickler import PROTOCOL, Lost, Pickler
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.arena import LARGE
from mosec_asgi.ipc.reference import Span
from mosec_asgi.ration import Ration, later_in_thread

HEAD = struct.Struct("<QQ")

logger = log.internal_logger(__name__)


class RayStore:
    """The object store, as one actor has it; see `inside.pickler.Store`."""

    def __init__(self, seconds: float) -> None:
        """Bind to the Ray of this process.

        Args:
            seconds: that an object may take to come from another node.

        Raises:
            ImportError, AttributeError: this version of Ray has it in another way.
        """
        import ray
        from ray._private.serialization import _object_ref_deserializer

        self._ray = ray
        self._seconds = seconds
        self._core = ray._private.worker.global_worker.core_worker
        self._describe = self._core.serialize_object_ref
        self._reference_of = _object_ref_deserializer
        self._lock = threading.Lock()
        self._number = 0
        # What others may still read, by its number.
        self._kept: dict[int, Any] = {}
        self._ration = Ration(logger, later_in_thread)

    @property
    def kept(self) -> int:
        """The number of objects that others may still read."""
        return len(self._kept)

    def dump(self, result: Any) -> tuple[int, bytes]:
        """Return a result as the status and the payload of an answer; raises what its pickling raises."""
        gathered = _Gathering()
        stream = gathered.stream(result)
        if not gathered.buffers and len(stream) < LARGE:
            return 200, stream
        size = len(stream) + sum(map(len, gathered.raws))
        try:
            kept = self._ray.put((stream, gathered.buffers))
            _, owner, status = self._describe(kept)
            described = pickle.dumps((kept.binary(), owner, status), PROTOCOL)
        except self._ray.exceptions.RayError as error:
            # The store and its disk are full: it goes through the server.
            text = "%d bytes are sent through the server, as Ray's store does not take them: %s"
            self._ration.log(logging.WARNING, text, size, error)
            return 200, pickle.dumps(result, PROTOCOL)
        with self._lock:
            self._number += 1
            number = self._number
            self._kept[number] = kept
        return frames.IN_MEMORY, HEAD.pack(number, size) + described

    def load(self, payload: bytes) -> Any:
        """Return what another actor has put there; raises `Lost`."""
        binary, owner, status = pickle.loads(memoryview(payload)[HEAD.size :])
        errors = self._ray.exceptions
        try:
            reference = self._reference_of(binary, "", owner, status, None)
            stream, buffers = self._ray.get(reference, timeout=self._seconds)
        except (errors.ObjectLostError, errors.GetTimeoutError, errors.RayActorError, errors.RaySystemError) as error:
            logger.info("what the stage before has put into Ray's store is lost: %s", type(error).__name__)
            raise Lost from error
        return pickle.loads(stream, buffers=buffers)

    def freed(self, numbers: Sequence[int]) -> None:
        """Let go of objects that nobody needs any more.

        Raises:
            FrameError: there are no such objects.
        """
        with self._lock:
            for number in numbers:
                if self._kept.pop(number, None) is None:
                    raise frames.FrameError(f"the server frees the object {number}, which is not there")


class _Gathering(Pickler):
    """Takes a pickle apart, and leaves its large buffers where they are."""

    def __init__(self) -> None:
        super().__init__(_Nowhere())
        self.buffers: list[pickle.PickleBuffer] = []
        self.raws: list[memoryview] = []

    def stream(self, result: Any) -> bytes:
        """Return the pickle without its large buffers."""
        return self._stream(result)

    def _place(self, buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:
            # Not contiguous: pickle refuses it with its own message.
            return True
        if raw.nbytes < LARGE:
            return True
        self.buffers.append(buffer)
        self.raws.append(raw)
        return False


class _Nowhere:
    """No memory of this process's own."""

    def put(self, data: bytes | memoryview) -> Span | None:
        """Find no room."""
        return None

    def take_back(self, spans: Sequence[Span]) -> None:
        """Have nothing to take back."""
