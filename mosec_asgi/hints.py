"""What a type checker is told of a worker: `Worker[In, Out]`. While a worker runs, nothing of this is used.

`In` is an item and `Out` the result for it, whether `forward` takes one item or a list of them: that is decided where
the stage is appended. So `forward` is shown to type checkers as a variable that holds any of these functions, since an
override has to fit one member of a union, and would have to fit all overloads of a method. Each form stands there
twice: mypy compares a method that has been bound to its worker, pyright one that still takes `self`.

Both parameters are `Any` where a class leaves them out (PEP 696). `typing.Generic` is not among the bases where a
program runs: `class Base(Generic[T], Worker)` stays possible, and `Worker[In, Out]` is an alias of the class.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

__all__ = ["Forward", "In", "Out", "StreamingForward", "Typed"]

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from typing import Generic as Typed
    from typing import Protocol, TypeAlias

    from typing_extensions import TypeVar

    from mosec_asgi.events import Finished
    from mosec_asgi.reply import Reply

    In = TypeVar("In", default=Any)
    Out = TypeVar("Out", default=Any)
    _T = TypeVar("_T")
    _Each_co = TypeVar("_Each_co", covariant=True)

    class Results(Protocol[_Each_co]):
        """What `forward` may return for a batch: a list, a tuple, an array; no text, which contains text alone."""

        def __len__(self) -> int: ...
        def __iter__(self) -> Iterator[_Each_co]: ...
        def __contains__(self, value: object, /) -> bool: ...

    _Soon: TypeAlias = _T | Awaitable[_T]
    _Function: TypeAlias = Callable[[In], Out] | Callable[[Any, In], Out]
    _Steps: TypeAlias = Iterator[_T] | AsyncIterator[_T]
    _End: TypeAlias = _T | BaseException | Finished | None

    Forward: TypeAlias = (
        _Function[In, _Soon[Out | Reply]] | _Function[list[In], _Soon[Results[Out | Reply | BaseException]]]
    )
    # What a stream's `forward` returns is not looked at where it sends its events itself.
    StreamingForward: TypeAlias = (
        _Function[In, _Steps[Out | BaseException] | _Soon[Out | Reply | None]]
        | _Function[
            list[In],
            _Steps[tuple[int, _End[Out]] | Sequence[_End[Out]]]
            | _Soon[Results[Out | Reply | BaseException | _Steps[Out | BaseException] | None] | None],
        ]
    )

else:
    from typing import TypeVar

    In = TypeVar("In")
    Out = TypeVar("Out")
    Forward = StreamingForward = Any

    class Typed:
        """Takes the parameters, and leaves them alone."""

        __class_getitem__ = classmethod(types.GenericAlias)
