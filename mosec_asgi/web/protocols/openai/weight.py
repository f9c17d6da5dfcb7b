"""What a body costs the event loop is bounded before it is read: nobody else is served while it is made into objects.

A megabyte of text takes 4 ms, a megabyte of nested objects 200 ms, and as long again until its worker has it. So what
takes long is counted first, outside of texts, where brackets and commas cost nothing.
"""

from __future__ import annotations

from mosec_asgi.web.protocols.openai.errors import Refused

# Lists and objects: about a microsecond each. 4096 messages of two parts each have 16,384.
MOST_BRACKETS = 25_000
# Texts, names of fields among them.
MOST_TEXTS = 100_000
# Values in lists and objects: 300,000 may be the tokens of an input.
MOST_COMMAS = 350_000


def check_weight(body: bytes) -> None:
    """Refuse a body of more values than a request of these kinds needs.

    Raises:
        Refused: it has more.
    """
    # So few bytes hold not so many.
    if len(body) <= MOST_BRACKETS:
        return
    brackets = body.count(b"[") + body.count(b"{")
    if brackets <= MOST_BRACKETS and body.count(b'"') <= 2 * MOST_TEXTS and body.count(b",") <= MOST_COMMAS:
        return
    body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Each text has two: the pieces between them are in turn outside of texts, and inside.
    _check(body.count(b'"') // 2, MOST_TEXTS, "texts")
    outside = b"".join(body.split(b'"')[::2])
    _check(outside.count(b"[") + outside.count(b"{"), MOST_BRACKETS, "lists and objects")
    _check(outside.count(b","), MOST_COMMAS, "values")


def _check(count: int, most: int, what: str) -> None:
    if count > most:
        raise Refused(f"the body has {count} {what}, and one request may have {most}; send several requests")
