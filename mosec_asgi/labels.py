"""What a stage wants to know of an item before it is batched: its cost and its key. Pure.

A worker class says so by two hooks, static or class methods, because they run where the item is at hand and no instance
is: in `infer`'s caller, and in the worker of the stage before. Over HTTP the first stage's item is not decoded yet, so
there the cost is the length of the body in bytes and the key is the header `x-batch-key`, unless the class says
otherwise by two more hooks.

    cost(item) -> int          cost_of_body(body) -> int           tokens, pixels, bytes: 0 or more
    batch_key(item) -> str     batch_key_of_body(body) -> str      an adapter, a resolution: equal ones share a batch
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple

from mosec_asgi.errors import ClientError, DefinitionError, MosecError, ServerError

HOOKS = ("cost", "batch_key", "cost_of_body", "batch_key_of_body")
# Bytes of a key in UTF-8: a client may choose it, and it is kept while the task waits.
MOST_KEY = 128
MOST_COST = (1 << 63) - 1


class Label(NamedTuple):
    """What is known of an item.

    Attributes:
        cost: of the item, in the unit of the stage's `max_batch_cost`.
        key: what it may share a batch with: items of the same key.
    """

    cost: int = 1
    key: str = ""


UNLABELLED = Label()


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels the items of a stage. Crosses to the workers of the stage before.

    Attributes:
        worker: the stage's class, whose hooks are asked.
        counts: ask for the cost.
        groups: ask for the key.
        most: an item of a higher cost is refused with 413; 0 for none.
    """

    worker: type[Any]
    counts: bool = False
    groups: bool = False
    most: int = 0

    def of(self, item: Any) -> Label:
        """Return the label of an item.

        Raises:
            MosecError: a hook has raised, or has returned what is no cost or key; or the item costs too much.
        """
        cost = self._cost("cost", item) if self.counts else 1
        return Label(cost, self._key("batch_key", item) if self.groups else "")

    def of_body(self, body: bytes, key: str = "") -> Label:
        """Return the label of an item that is the body of a request.

        Args:
            body: as the client has sent it, unpacked.
            key: that the client has given, where the class does not read it from the body.

        Raises:
            MosecError: as in `of`.
        """
        cost = 1
        if self.counts:
            own = hasattr(self.worker, "cost_of_body")
            cost = self._cost("cost_of_body", body) if own else self._checked_cost(len(body), "the body's length")
        if not self.groups:
            return Label(cost)
        return Label(cost, self._key("batch_key_of_body", body) if hasattr(self.worker, "batch_key_of_body") else key)

    def _cost(self, hook: str, item: Any) -> int:
        return self._checked_cost(self._asked(hook, item), f"{self.worker.__name__}.{hook}")

    def _checked_cost(self, cost: Any, where: str) -> int:
        try:
            # A number of numpy's, or of a tensor's shape, is one as well.
            number = cost.__index__()
        except Exception:
            # It has no such form, or its own way to it fails.
            number = -1
        if isinstance(cost, bool) or not 0 <= number <= MOST_COST:
            raise ServerError(f"{where} must return a whole number, 0 or more, not {_shown(cost)}")
        if self.most and number > self.most:
            error = ClientError(
                f"this item has a cost of {number}, and {self.worker.__name__} takes at most {self.most} "
                "(its max_batch_cost); send a smaller one"
            )
            error.code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            raise error
        return int(number)

    def _key(self, hook: str, item: Any) -> str:
        key = self._asked(hook, item)
        if not isinstance(key, str):
            raise ServerError(f"{self.worker.__name__}.{hook} must return text, not {_shown(key)}")
        return checked_key(key, f"what {self.worker.__name__}.{hook} has returned")

    def _asked(self, hook: str, item: Any) -> Any:
        ask: Callable[[Any], Any] = getattr(self.worker, hook)
        try:
            return ask(item)
        except (MosecError, KeyboardInterrupt):
            raise
        # A library may raise what is no `Exception`, and the event loop that asks would end with it.
        except BaseException as error:
            # The text of a foreign exception may hold what clients must not see; the log has the traceback.
            raise ServerError(f"{self.worker.__name__}.{hook} raised {type(error).__name__}") from error


def checked_key(key: str, what: str) -> str:
    """Return a key that may be kept, as plain text where it is a member of an `Enum`.

    Raises:
        ClientError: it is too long, or no Unicode.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise ClientError(f"{what} is no Unicode text") from None
    if size > MOST_KEY:
        raise ClientError(f"{what} is a key of {size} bytes, and a key has at most {MOST_KEY}; send a shorter one")
    return str.__str__(key)


def check_hooks(worker: type[Any]) -> None:
    """Check that the hooks of a class can be called without an instance.

    Raises:
        DefinitionError: one cannot; the text says what to change.
    """
    for name in HOOKS:
        member = inspect.getattr_static(worker, name, None)
        if member is not None and not isinstance(member, (staticmethod, classmethod)):
            raise DefinitionError(
                f"{worker.__name__}.{name} is asked where no {worker.__name__} has been made; write it as a static "
                f"method: `@staticmethod def {name}({'body' if name.endswith('body') else 'item'}):`"
            )


def _shown(value: Any) -> str:
    """Return a value for an error's text, whatever its own `repr` does."""
    try:
        return repr(value)[:80]
    except Exception:
        return f"a {type(value).__name__}"
