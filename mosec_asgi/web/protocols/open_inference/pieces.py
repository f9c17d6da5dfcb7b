"""What a worker that streams has yielded for an item, as results. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mosec_asgi.errors import ClientError
from mosec_asgi.events import Event


def whole(events: Sequence[Any]) -> Any:
    """Return the events of a stream as one result: pieces of a text are joined.

    Raises:
        ClientError: they are several results, each of them whole.
    """
    pieces = [piece_of(event) for event in events]
    if len(pieces) == 1:
        return pieces[0]
    if not all(isinstance(each, str) for each in pieces):
        raise ClientError(f"the model gives {len(pieces)} responses to one request; use generate_stream")
    return "".join(pieces)


def piece_of(event: Any) -> Any:
    """Return an event as a result: text and bytes as text, all else as it is."""
    if isinstance(event, Event):
        event = event.data
    if isinstance(event, (bytes, bytearray)):
        return bytes(event).decode(errors="replace")
    return str(event) if isinstance(event, str) else event
