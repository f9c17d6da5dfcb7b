"""How many parts a message has, counted before it is read: each may take two bytes there, a hundred in memory. Pure.

A message is a row of fields: a number and a kind (a varint), and then a value: a varint, 4 or 8 bytes, or a length and
so many bytes, which may be a message again. A group, which the parser still reads, is two fields without a value: its
begin and its end, with its own fields between them.

Where the counting stops, for bytes that are no message, the parser must stop as well: it must not read on behind them.
"""

from __future__ import annotations

from collections.abc import Iterator

from mosec_asgi.errors import ClientError

# Fields of a request and of its inputs and outputs, values not among them.
MOST_FIELDS = 4096
# The fields of `ModelInferRequest` that are messages with fields of their own: inputs, outputs.
_TENSORS = (5, 6)
_VARINT, _EIGHT, _BYTES, _BEGIN, _END, _FOUR = range(6)
# How many bytes the values take whose kind says so.
_SIZES = {_EIGHT: 8, _FOUR: 4, _BEGIN: 0, _END: 0}


def check_fields(body: bytes) -> None:
    """Refuse a `ModelInferRequest` of more parts than one needs. What is no message at all is left to its parser.

    Raises:
        ClientError: it has too many.
    """
    count = 0
    try:
        for number, kind, start, end in _fields(body, 0, len(body)):
            count += 1
            # By another kind it is a field that nobody knows, and its value no message.
            if number in _TENSORS and kind == _BYTES:
                for _ in _fields(body, start, end):
                    count += 1
                    if count > MOST_FIELDS:
                        break
            if count > MOST_FIELDS:
                raise ClientError(f"the request has more than {MOST_FIELDS} parts: inputs, outputs, parameters")
    except (IndexError, ValueError):
        return


def _fields(body: bytes, place: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield each field's number and kind, and where its bytes begin and end."""
    while place < end:
        key, place = _varint(body, place)
        kind = key & 7
        if kind == _BYTES:
            length, place = _varint(body, place)
        elif kind == _VARINT:
            _, after = _varint(body, place)
            length = after - place
        elif kind in _SIZES:
            length = _SIZES[kind]
        else:
            raise ValueError("no kind at all")
        yield key >> 3, kind, place, place + length
        place += length


def _varint(body: bytes, place: int) -> tuple[int, int]:
    """Return a number, and where the next thing begins."""
    value = shift = 0
    while True:
        byte = body[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("longer than any number")
