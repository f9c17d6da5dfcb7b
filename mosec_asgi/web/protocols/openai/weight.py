"""What a body costs the event loop is bounded before it is read; see `protocols.weight`.

It takes as long again until its worker has it.
"""

from __future__ import annotations

from mosec_asgi.web.protocols.openai.errors import Refused
from mosec_asgi.web.protocols.weight import Weight, rough_weight, weight_of

# Lists and objects: about a microsecond each. 4096 messages of two parts each have 16,384.
MOST_BRACKETS = 25_000
# Texts, names of fields among them.
MOST_TEXTS = 100_000
# Values in lists and objects: 300,000 may be the tokens of an input.
MOST_COMMAS = 350_000
MOST = Weight(MOST_TEXTS, MOST_BRACKETS, MOST_COMMAS)


def check_weight(body: bytes) -> None:
    """Refuse a body of more values than a request of these kinds needs.

    Raises:
        Refused: it has more.
    """
    # So few bytes hold not so many.
    if len(body) <= MOST_BRACKETS or not rough_weight(body).exceeds(MOST):
        return
    found = weight_of(body, MOST)
    for count, most, what in zip(found, MOST, ("texts", "lists and objects", "values"), strict=True):
        if count > most:
            raise Refused(f"the body has {count} {what}, and one request may have {most}; send several requests")
