"""Which part of a failed batch to run again, so that one bad item does not fail its neighbours. Pure.

When `forward` raises on a batch, nobody knows for which item. `search` asks for parts of the batch to be run again: it
is a generator that yields lists of places, is sent back whether that part succeeded, and ends when every place has
its verdict. It is binary splitting, as in group testing (Dorfman 1943; Hwang's generalised splitting) with no prior:
a part that fails is halved, one that succeeds is done, and a failed part of one item is a culprit.

Batches up to `COMPLETE` items are resolved completely: at most 2n - 2 calls, and for one culprit 2·log2(n). Larger ones
get a budget of 4·log2(n) calls, since each call costs the model's time and other tasks wait. Items that are undecided
when the budget is spent fail with the batch's error.

`resolve` is what a worker uses: it also gathers the results of the parts that succeed.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

COMPLETE = 16

# Stands in place of a result that no run of `forward` has given yet.
_UNDECIDED: Any = object()


@dataclass(frozen=True, slots=True)
class Raised:
    """What `forward` raised instead of returning results.

    Attributes:
        error: the exception.
        final: to run parts again is of no use: they would raise the same error, or there is no time left.
    """

    error: BaseException
    final: bool = False


Outcome: TypeAlias = Sequence[Any] | Raised

Search: TypeAlias = Generator[list[int], bool, list[int]]


def budget(size: int) -> int:
    """Return the most calls that the search in a batch of `size` items may make."""
    if size < 2:
        return 0
    return 2 * size - 2 if size <= COMPLETE else math.ceil(4 * math.log2(size))


def search(size: int, calls: int | None = None) -> Search:
    """Find the items that make a batch of `size` fail, the whole of which has just failed.

    Yields:
        the places of a part to run again, in order; send True back if it succeeded and False if it failed.

    Args:
        size: the number of items.
        calls: the most parts to ask for; None for `budget(size)`, 0 for no search.

    Returns:
        the places that no successful run has covered, in order: the culprits, and the items that were undecided when
        the calls were spent.
    """
    left = budget(size) if calls is None else calls
    failed: list[int] = []
    # Breadth first: with few calls, larger parts are cleared first.
    parts = [list(range(size))]
    while parts:
        part = parts.pop(0)
        if len(part) == 1:
            failed += part
            continue
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            if not left:
                failed += half
                continue
            left -= 1
            if not (yield half):
                parts.append(half)
    return sorted(failed)


def resolve(size: int, calls: int | None = None) -> Generator[list[int], Outcome | None, list[Any]]:
    """Find one result for each of `size` items, even if some of them make `forward` raise.

    Yields:
        the places of the items to run `forward` on, all of them first; send back its results for these, or what it
        raised. None ends the search: there is no time for more.

    Args:
        size: the number of items, at least 1.
        calls: the most parts to run again; None for `budget(size)`.

    Returns:
        for each place its result, or the exception that it failed with.
    """
    outcome = yield list(range(size))
    assert outcome is not None, "there is always time for the first call"
    if not isinstance(outcome, Raised):
        return list(outcome)
    results: list[Any] = [_UNDECIDED] * size
    errors: list[BaseException] = [outcome.error] * size
    parts = search(size, calls)
    part = None if outcome.final else next(parts, None)
    while part is not None:
        outcome = yield part
        if outcome is None:
            break
        failed = isinstance(outcome, Raised)
        if isinstance(outcome, Raised):
            for place in part:
                errors[place] = outcome.error
            if outcome.final:
                # Items without a result fail with the error that ended the search.
                errors = [outcome.error] * size
                break
        else:
            for place, result in zip(part, outcome, strict=True):
                results[place] = result
        try:
            part = parts.send(not failed)
        except StopIteration:
            part = None
    return [error if result is _UNDECIDED else result for result, error in zip(results, errors, strict=True)]
