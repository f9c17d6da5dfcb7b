"""Reads the fields of a request: each is of its kind and within its bounds, or the request is refused by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mosec_asgi.errors import DecodingError
from mosec_asgi.formats import loads_json
from mosec_asgi.web.protocols.openai.errors import Refused
from mosec_asgi.web.protocols.openai.weight import check_weight

# Tokens of a request, where it has tokens in the place of texts: OpenAI's own bound. Each is looked at, and nobody else
# is served meanwhile.
MOST_TOKENS = 300_000
# Messages of a conversation, and tools.
MOST_OBJECTS = 4096
_MOST_WHOLE = 2**31 - 1
# Characters of a name that are repeated in an error.
_MOST_SHOWN = 40
# Returns a value as it is to be used; raises `ValueError` that says what it must be.
Check = Callable[[Any], Any]


def read_object(body: bytes) -> dict[str, Any]:
    """Return the fields of a request's body, without those that are null: clients send null for what is not set.

    Raises:
        Refused: it is no JSON object, or one of too many values.
    """
    if not body:
        raise Refused("the body is empty; it must be a JSON object")
    check_weight(body)
    try:
        value = loads_json(body, strict=True)
    except DecodingError as error:
        raise Refused(str(error)) from error
    if not isinstance(value, dict):
        raise Refused(f"the body must be a JSON object, not {_kind(value)}")
    return {name: field for name, field in value.items() if field is not None}


def checked(fields: dict[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    """Return the fields, those of `checks` as they are to be used; others are left to the worker.

    Raises:
        Refused: a field is not what it must be.
    """
    for name in checks.keys() & fields.keys():
        fields[name] = one(name, fields[name], checks[name])
    return fields


def refuse_others(fields: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse a field that nobody would read.

    Raises:
        Refused: there is one.
    """
    for name in fields.keys() - set(known):
        shown = name[:_MOST_SHOWN]
        raise Refused(f"{shown}: there is no such field here; leave it out", shown)


def one(name: str, value: Any, check: Check) -> Any:
    """Return a field's value as it is to be used.

    Raises:
        Refused: it is not what it must be.
    """
    try:
        return check(value)
    except ValueError as error:
        raise Refused(f"{name}: {error}", name) from error


def required(fields: Mapping[str, Any], name: str, check: Check) -> Any:
    """Return the value of a field that must be there.

    Raises:
        Refused: it is missing, or not what it must be.
    """
    if name not in fields:
        raise Refused(f"{name}: it is missing", name)
    return one(name, fields[name], check)


def number(least: float, most: float) -> Check:
    """Return the check of a number."""

    def check(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise ValueError(f"it must be a number from {least:g} to {most:g}, not {_shown(value)}")
        return value

    return check


def whole(least: int, most: int = _MOST_WHOLE) -> Check:
    """Return the check of a whole number; 5.0 is the same as 5 in JSON."""

    def check(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"it must be a whole number from {least} to {most}, not {_shown(value)}")
        return value

    return check


def of(kind: type[Any], name: str, *, filled: bool = False) -> Check:
    """Return the check of a type.

    Args:
        kind: the type.
        name: what clients call it.
        filled: it must not be empty.
    """

    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError(f"it must be {name}, not {_shown(value)}")
        if filled and not value:
            raise ValueError(f"it must be {name} that is not empty")
        return value

    return check


text = of(str, "a text")
filled = of(str, "a text", filled=True)
flag = of(bool, "true or false")
mapping = of(dict, "an object")


def objects(least: int = 0, member: str | None = None) -> Check:
    """Return the check of a list of objects.

    Args:
        least: how many there must be.
        member: a text that each must have.
    """

    def check(value: Any) -> Any:
        if not isinstance(value, list) or len(value) < least:
            raise ValueError(f"it must be a list of objects, {least} at least, not {_shown(value)}")
        if len(value) > MOST_OBJECTS:
            raise ValueError(f"it has {len(value)} objects, and may have {MOST_OBJECTS}")
        for place, each in enumerate(value):
            if not isinstance(each, dict):
                raise ValueError(f"[{place}] must be an object, not {_shown(each)}")
            if member is not None and not isinstance(each.get(member), str):
                raise ValueError(f"[{place}].{member} must be a text, not {_shown(each.get(member))}")
        return value

    return check


def stops(value: Any) -> Any:
    """Check the texts at which writing stops."""
    several = value if isinstance(value, list) else [value]
    if len(several) > 4 or not all(isinstance(each, str) and each for each in several):
        raise ValueError("it must be a text, or a list of up to 4 texts, none of them empty")
    return value


def choice(*names: str) -> Check:
    """Return the check of one of several words."""

    def check(value: Any) -> Any:
        if value not in names:
            raise ValueError(f"it must be {' or '.join(map(repr, names))}, not {_shown(value)}")
        return value

    return check


def inputs(most: int) -> Check:
    """Return the check of a text, several texts, the tokens of a text, or those of several, as a list of items.

    Args:
        most: how many items there may be.
    """
    token = whole(0)

    def tokens(value: list[Any]) -> list[int]:
        if len(value) > MOST_TOKENS:
            raise ValueError(f"it has {len(value)} tokens, and one request may have {MOST_TOKENS}")
        # The usual ones at C's speed: nobody else is served meanwhile.
        if set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= _MOST_WHOLE:
            return value
        return [token(each) for each in value]

    def item(value: Any) -> Any:
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list) and value and not isinstance(value[0], (str, list)):
            return tokens(value)
        raise ValueError("it must be a text or a list of texts, none of them empty; or, in place of a text, its tokens")

    def check(value: Any) -> list[Any]:
        if isinstance(value, str) or (isinstance(value, list) and value and not isinstance(value[0], (str, list))):
            return [item(value)]
        if not isinstance(value, list) or not value:
            return [item(value)]
        if len(value) > most:
            raise ValueError(f"it has {len(value)} items, and one request may have {most}; send several requests")
        if isinstance(value[0], str) and not all(isinstance(each, str) for each in value):
            raise ValueError("it must be a list of texts only, or of lists of tokens only")
        total = sum(len(each) for each in value if isinstance(each, list))
        if total > MOST_TOKENS:
            raise ValueError(f"it has {total} tokens, and one request may have {MOST_TOKENS}; send several requests")
        return [item(each) for each in value]

    return check


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", dict: "an object", type(None): "null"}
    return kinds.get(type(value), "a number")


def _shown(value: Any) -> str:
    """Return a value for a message: itself where it is short, else its kind."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # A number of thousands of digits cannot even be written.
        return repr(value) if isinstance(value, float) or value.bit_length() < 64 else "a larger one"
    return repr(value) if isinstance(value, str) and len(value) <= _MOST_SHOWN else _kind(value)
