"""Pickles results for the next stage so that their large buffers go into shared memory, with one copy, and stay there.

This uses pickle protocol 5 with out-of-band buffers (PEP 574), which numpy arrays and many other types support. A torch
tensor does not: its pickle contains a file in torch's own format and is copied several times. So large CPU tensors are
taken apart here. This module never imports torch: a worker whose result holds a tensor has imported it.
"""

from __future__ import annotations

import copyreg
import ctypes
import io
import pickle
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from mosec_asgi.ipc import frames, reference
from mosec_asgi.ipc.arena import LARGE
from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.ipc.reference import Contents, Span

PROTOCOL = 5

_memory_at = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_at.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_memory_at.restype = ctypes.py_object
# From CPython's object.h: the memory may be written to.
_PY_BUF_WRITE = 0x200


class Memory(Protocol):
    """Where large buffers are put: the shared memory, as one side has it."""

    def put(self, data: bytes | memoryview) -> Span | None:
        """Write a block; None where there is no room."""

    def take_back(self, spans: Sequence[Span]) -> None:
        """Have blocks written over, which nobody has been told of."""


class Lost(BaseException):
    """What a task was to be given is lost with whoever had it. The user's code never raises it; it is not logged."""


class Store(Protocol):
    """Where results for the next stage are put that its workers read, and the server does not."""

    def dump(self, result: Any) -> tuple[int, bytes]:
        """Return a result as the status and the payload of an answer; raises what its pickling raises."""

    def load(self, payload: bytes) -> Any:
        """Return what another worker has put there; raises `Lost`."""


class Pickler:
    """Pickles results of a worker, or what it is given."""

    def __init__(self, memory: Memory) -> None:
        """Put large buffers into `memory`."""
        self._memory = memory
        # The buffers of the result that is being pickled.
        self._spans: list[Span] = []

    def dump(self, result: Any) -> tuple[int, bytes]:
        """Return a result as the status and the payload of an answer; raises what its pickling raises."""
        try:
            stream = self._stream(result)
        except BaseException:
            self._memory.take_back(self._spans)
            self._spans = []
            raise
        if not self._spans and len(stream) < LARGE:
            return 200, stream
        spans, self._spans = self._spans, []
        return self._as_reference(stream, spans)

    def _stream(self, result: Any) -> bytes:
        # While another thread imports torch, it is there without its contents.
        tensor = getattr(sys.modules.get("torch"), "Tensor", None)
        if tensor is not None:
            return self._dump_with_tensors(result, tensor)
        return pickle.dumps(result, PROTOCOL, buffer_callback=self._place)

    def _as_reference(self, stream: bytes, spans: list[Span]) -> tuple[int, bytes]:
        span = self._memory.put(stream) if len(stream) >= LARGE else None
        if span is not None:
            return frames.IN_MEMORY, reference.pack(reference.LARGE_PICKLE, [span, *spans])
        # If there was no room for any buffer, the stream holds all of them.
        return (frames.IN_MEMORY, reference.pack(reference.PICKLE, spans, stream)) if spans else (200, stream)

    def _place(self, buffer: pickle.PickleBuffer) -> bool:
        """Put a buffer into shared memory; return True where it must stay in the stream, as pickle expects."""
        try:
            raw = buffer.raw()
        except BufferError:
            # Not contiguous: pickle refuses it with its own message.
            return True
        if raw.nbytes < LARGE or (span := self._memory.put(raw)) is None:
            return True
        self._spans.append(span)
        return False

    def _dump_with_tensors(self, result: Any, tensor: type[Any]) -> bytes:
        file = io.BytesIO()
        pickler = pickle.Pickler(file, PROTOCOL, buffer_callback=self._place)
        # A table of this pickler, for the exact class only, beside those that `copyreg` has for the whole process.
        pickler.dispatch_table = {**copyreg.dispatch_table, tensor: _take_apart}
        pickler.dump(result)
        return file.getvalue()


def load(contents: Contents, memory: Mapped, *, again: bool = False) -> Any:
    """Unpickle the output of a `Pickler`; the large buffers stay in the memory, and may be written to.

    Args:
        contents: what it has put out.
        memory: in which its buffers lie.
        again: it was unpickled before, and may have been written to: copy the buffers as they were.
    """
    spans = list(contents.spans)
    stream = contents.stream if contents.kind is reference.PICKLE else memory.read(spans.pop(0))
    return pickle.loads(stream, buffers=map(memory.copy if again else memory.view, spans))


def _take_apart(tensor: Any) -> Any:
    """Return how to pickle a tensor: as a buffer and its shape, or by torch's own way if it is not plain numbers."""
    size = tensor.numel() * tensor.element_size()
    plain = (
        size >= LARGE
        and tensor.device.type == "cpu"
        and tensor.layout is sys.modules["torch"].strided
        and tensor.is_contiguous()
        # Only a tensor that is alone in its storage: views of one storage stay views only in torch's own way.
        and tensor.untyped_storage().nbytes() == size
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        and not (tensor.__dict__ or any(getattr(tensor, "names", ())))
    )
    if not plain:
        return tensor.__reduce_ex__(PROTOCOL)
    buffer = pickle.PickleBuffer(_memory_at(tensor.data_ptr(), size, _PY_BUF_WRITE))
    return _put_together, (buffer, tensor.dtype, tuple(tensor.shape))


def _put_together(buffer: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    torch = sys.modules.get("torch")
    if torch is None:
        # Imports torch, as the unpickling of any tensor does.
        import importlib

        torch = importlib.import_module("torch")
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)
