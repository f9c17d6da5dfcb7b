"""Forms of `application/x-www-form-urlencoded`, decoded at the speed of C whatever a client has escaped.

`urllib.parse` goes through the escapes one by one, in Python, and takes a second for some megabytes of them; what it
returns is the same. Here the decoder of quoted-printable does it, whose escapes begin with another character.
"""

from __future__ import annotations

import re
from binascii import a2b_qp

# Begins no escape, and stands for itself.
_STRAY = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def read_pairs(data: bytes) -> list[tuple[str, str]]:
    """Return the names and the values of a form; a name without a value has an empty one.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    # Of bytes that are sent as they are, each character must be whole: no escape may be a part of it.
    data.decode()
    parts = (part.partition(b"=") for part in data.split(b"&") if part)
    return [(_decoded(name), _decoded(value)) for name, _, value in parts]


def _decoded(text: bytes) -> str:
    text = text.replace(b"+", b" ")
    if b"%" in text:
        if _STRAY.search(text) is not None:
            # Those before another first, as many as there may be; those that are left come one by one.
            while b"%%" in text:
                text = text.replace(b"%%", b"%25%")
            text = _STRAY.sub(b"%25", text)
        text = a2b_qp(text.replace(b"=", b"=3D").replace(b"%", b"="))
    return text.decode()
