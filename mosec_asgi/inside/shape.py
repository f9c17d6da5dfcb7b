"""What `forward` must return for a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mosec_asgi.errors import WrongShape
from mosec_asgi.inside.returned import check_finished


def checked(results: Any, size: int) -> Sequence[Any]:
    """Return what `forward` made of a batch; raise if it is not a sequence of the batch's length."""
    check_finished(results)
    # Checked by its methods, not by its type: a numpy array, a tensor or the values of a dictionary are no `Sequence`.
    sized = hasattr(results, "__len__") and (hasattr(results, "__getitem__") or hasattr(results, "__iter__"))
    # Of these the order or the items are hardly what was meant.
    if not sized or isinstance(results, (str, bytes, dict, set, frozenset)):
        raise WrongShape(
            f"forward must return a sequence with one result for each of the {size} items of the batch, "
            f"not {type(results).__name__}"
        )
    if len(results) != size:
        raise WrongShape(f"forward returned {len(results)} results for a batch of {size} items")
    return results if isinstance(results, (list, tuple)) else list(results)
