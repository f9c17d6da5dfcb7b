"""Which part of a failed batch to run again, so that one bad item does not fail its neighbours. Pure.

When `forward` raises on a batch, nobody knows for which item. `search` asks for parts of the batch to be run again: it
is a generator that yields lists of places, is sent back whether that part succeeded, and ends when every place has
its verdict. It is binary splitting, as in group testing (Dorfman 1943; Hwang's generalised splitting) with no prior:
a part that fails is halved, one that succeeds is done, and a failed part of one item is a culprit.

Batches up to `COMPLETE` items are resolved completely: at most 2n - 2 calls, and for one culprit 2·log2(n). Larger ones
get a budget of 4·log2(n) calls; what is still undecided when it is spent fails with the batch's error, since each call
costs a model's time and its neighbours wait.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import TypeAlias

COMPLETE = 16

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
        the places that no successful run has covered, in order: the culprits, and where the calls were spent first,
        their undecided neighbours.
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
