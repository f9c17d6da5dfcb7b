"""Python objects to payloads, as they pass between stages, and back: the server's side of a call of objects."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, Protocol

from mosec_asgi.errors import EncodingError, ServerError
from mosec_asgi.inside.pickler import PROTOCOL, Pickler
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.reference import Span
from mosec_asgi.messages import Payload


class Blocks(Protocol):
    """Where large buffers are put; see `ipc.shm.OwnBlocks`."""

    def put(self, data: bytes | memoryview) -> Span | None:
        """Write a block; None where there is no room."""

    def take_back(self, spans: Sequence[Span]) -> None:
        """Have blocks written over, which nobody has been told of."""

    def hold(self, description: bytes) -> Payload:
        """Return the payload that lies in blocks that were put, by their description."""


class Objects:
    """Pickles what workers are given. Large buffers, such as arrays, go into shared memory where there is some."""

    def __init__(self, blocks: Blocks | None = None) -> None:
        """Prepare.

        Args:
            blocks: where large buffers are put; None for no such place.
        """
        self._blocks = blocks
        self._pickler = None if blocks is None else Pickler(blocks)

    def payload(self, item: Any, *, apart: bool) -> Payload:
        """Return an item as a payload, which is to be submitted, or dropped.

        Args:
            item: any object that can be pickled.
            apart: the worker that gets it can read shared memory.

        Raises:
            EncodingError: it cannot be pickled; the text names its type.
        """
        try:
            if self._pickler is None or not apart:
                return pickle.dumps(item, PROTOCOL)
            code, data = self._pickler.dump(item)
            if code != frames.IN_MEMORY:
                return data
            assert self._blocks is not None
            return self._blocks.hold(data)
        except KeyboardInterrupt:
            raise
        # Whatever its own way to be pickled raises: the event loop would end with what is no `Exception`.
        except BaseException as error:
            why = str(error) if isinstance(error, Exception) else repr(error)
            raise EncodingError(
                f"the item, a {type(item).__name__}, cannot be pickled for its worker: {why}; give plain data, "
                "arrays or objects with a __reduce__"
            ) from error


def value_of(payload: Payload, stage: str) -> Any:
    """Return the object that came as a payload, which must not be used after that.

    Args:
        payload: the answer to a call of objects, or a piece of its stream.
        stage: the name of the stage that has made it.

    Raises:
        ServerError: it cannot be unpickled here.
    """
    try:
        return pickle.loads(payload) if isinstance(payload, bytes) else payload.load()
    except KeyboardInterrupt:
        raise
    # Whatever the code of its classes raises.
    except BaseException as error:
        raise ServerError(
            f"what {stage} returned cannot be unpickled in the server: {type(error).__name__}: {error}; return plain "
            "data, arrays or objects of a class that the server's process can import as well"
        ) from error
