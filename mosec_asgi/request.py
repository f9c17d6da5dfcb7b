"""What a worker may know of the request behind an item: `Request`, and its form on the way to a worker.

It goes with the tasks of those stages only whose workers ask for it (`Worker.takes_request`).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

# Bytes of one value of a request's state, pickled, above which it stays with the server.
MOST_STATE = 64 * 1024
# Of W3C Trace Context: a version, the trace's id, that of the span, flags. Later versions may have more behind them.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?![0-9a-f])")


class Headers(Mapping[str, str]):
    """The headers of a request by name, in upper or lower case; of one that is there twice, the last."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, str] | None = None) -> None:
        """Store them; a name is kept in lower case."""
        self._items = {name.lower(): value for name, value in (items or {}).items()}

    def __getitem__(self, name: str) -> str:
        """Return the value of a header."""
        return self._items[name.lower()]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, which are in lower case."""
        return iter(self._items)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._items)

    def __contains__(self, name: object) -> bool:
        """Whether there is a header of that name."""
        return isinstance(name, str) and name.lower() in self._items

    def __repr__(self) -> str:
        return f"Headers({self._items})"

    def __reduce__(self) -> tuple[type[Headers], tuple[dict[str, str]]]:
        return Headers, (self._items,)


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker may know of the request behind an item: `self.request(index)`, where it says `takes_request`.

    It is small: the body is not in it, and its headers are bounded by the service's setting `max_head_size` (bytes).
    Of a call by `infer` or `stream` there are `id` and `route`; of an example that warms a worker up there is nothing.

    Attributes:
        id: what the logs and the client call the request.
        route: the route as it was defined, such as `/models/{name}`.
        method: of HTTP, such as `POST`; empty for a call by `infer` or `stream`.
        headers: by name, in upper or lower case; of one that is there twice, the last.
        query_string: what stands behind the path's question mark, as it was sent.
        path_params: what stands in the path in the places of the route's parameters.
        traceparent: of W3C Trace Context; empty where the request has none.
    """

    id: str = ""
    route: str = ""
    method: str = ""
    headers: Headers = field(default_factory=Headers)
    query_string: str = ""
    path_params: Mapping[str, Any] = field(default_factory=dict)
    traceparent: str = ""
    # The values of the state, pickled: a worker may be unable to unpickle one, and need not know it.
    packed_state: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def query(self) -> dict[str, str]:
        """The query, decoded: its values by name; of a name that is there twice, the last.

        For all values of a name use `urllib.parse.parse_qs(request.query_string)`.
        """
        return dict(parse_qsl(self.query_string, keep_blank_values=True))

    @property
    def trace_id(self) -> str:
        """The id of the trace that `traceparent` names, 32 hexadecimal digits; empty where there is none."""
        found = _TRACEPARENT.match(self.traceparent)
        return found[1] if found else ""

    @property
    def state(self) -> dict[str, Any]:
        """What middleware has put into `scope["state"]`, which is Starlette's `request.state`: a copy.

        A value that cannot be pickled, or is larger than 64 KiB in that form, is not there: it stays with the server.

        Raises:
            Exception: whatever it raises to unpickle a value here, where its class cannot be imported, say.
        """
        return {name: pickle.loads(value) for name, value in self.packed_state.items()}


def packed(request: Request | None) -> bytes:
    """Return a request in its form on the way to a worker; None is one of which nothing is known."""
    if request is None:
        return b""
    fields = (
        request.id,
        request.route,
        request.method,
        dict(request.headers),
        request.query_string,
        dict(request.path_params),
        request.traceparent,
        dict(request.packed_state),
    )
    return pickle.dumps(fields, pickle.HIGHEST_PROTOCOL)


def unpacked(data: bytes) -> Request:
    """Return the request that was packed."""
    if not data:
        return Request()
    name, route, method, headers, query, parameters, traceparent, state = pickle.loads(data)
    return Request(name, route, method, Headers(headers), query, parameters, traceparent, state)


def packed_state(state: Any) -> dict[str, bytes]:
    """Return what workers are told of `scope["state"]`: those of its values that are small and can be pickled."""
    packed: dict[str, bytes] = {}
    if isinstance(state, Mapping):
        for name, value in state.items():
            target = _Small()
            try:
                pickle.Pickler(target, pickle.HIGHEST_PROTOCOL).dump(value)
            # Whatever its own way to be pickled raises: connections, locks and models stay where they are.
            except Exception:
                continue
            packed[str(name)] = bytes(target.data)
    return packed


class _Small:
    """Takes a pickle, as long as it is small: of a large object no more than that is made."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Any) -> int:
        """Take a piece.

        Raises:
            ValueError: it has become too large.
        """
        self.data += data
        if len(self.data) > MOST_STATE:
            raise ValueError(f"more than {MOST_STATE} bytes")
        return len(data)
