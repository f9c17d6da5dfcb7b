"""API keys: who may ask for what, decided from the head of a request alone. No I/O.

A key stands in `authorization: Bearer <key>` or in `x-api-key`. What is kept of the service's keys are SHA-256 digests,
and the digest of what a client has sent is compared with each of them, in constant time and to the end of the list. So
the time of an answer says neither how much of a key was right, nor which one it was.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mosec_asgi.errors import KEY_IS_FOR_OTHERS, NO_KEY, WRONG_KEY, DefinitionError, Failure
from mosec_asgi.web.responses import Headers

# The most keys of a service: a request is compared with each, which takes 0.2 µs.
MOST_KEYS = 1000
MOST_LENGTH = 512
# Characters of a key below which a guess may find it; 32 hex digits are a usual form.
FEW = 16
# Answered to anybody: probes have no keys, and learn nothing but whether the service works.
HEALTH = frozenset({"/livez", "/readyz"})
# The files of the dashboard, which are those of any service: the page asks for a key to get at the numbers of this one.
DASHBOARD_FILES = frozenset(
    f"/dashboard{file}"
    for file in (
        "", "/", "/dashboard.css", "/dashboard.js", "/icon.svg", "/uplot/uPlot.min.css", "/uplot/uPlot.iife.min.js"
    )
)  # fmt: skip
# What else may be answered without a key, by its name in the setting `public`; a slash at the end stands for all below.
PUBLIC_PATHS = {
    "root": ("/",),
    "metrics": ("/metrics",),
    "docs": ("/openapi", "/openapi/"),
    "dashboard": ("/dashboard", "/dashboard/"),
}


class Key(NamedTuple):
    """A key.

    Attributes:
        digest: of its text.
        paths: that it is for; one with a `*` at its end stands for all that begin so. Empty for all.
    """

    digest: bytes
    paths: tuple[str, ...] = ()

    def is_for(self, path: str) -> bool:
        """Whether requests to a path may bring this key."""
        return not self.paths or any(
            path.startswith(each[:-1]) if each.endswith("*") else path == each for each in self.paths
        )


class Keys:
    """The keys of a service.

    Attributes:
        on_change: called when the keys have become others.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        public: Sequence[str] = (),
        compare: Callable[[bytes, bytes], bool] = hmac.compare_digest,
    ) -> None:
        """Begin.

        Args:
            keys: of which a request must bring one.
            public: what is answered without one, of `PUBLIC_PATHS`.
            compare: two digests, in a time that does not depend on them.
        """
        self.on_change: Callable[[], object] = lambda: None
        self._keys = tuple(keys)
        self._compare = compare
        paths = [path for name in public for path in PUBLIC_PATHS[name]]
        self._open = {*HEALTH, *DASHBOARD_FILES, *(path for path in paths if path == "/" or not path.endswith("/"))}
        self._open_below = tuple(path for path in paths if path != "/" and path.endswith("/"))

    def change(self, keys: Sequence[Key]) -> None:
        """Let these be the keys from here on."""
        self._keys = tuple(keys)
        self.on_change()

    def open_health(self, path: str) -> None:
        """Have a path answered without a key that says no more than whether the service works."""
        self._open.add(path)

    def is_open(self, path: str) -> bool:
        """Whether a path is answered without a key."""
        return path in self._open or path.startswith(self._open_below)

    def refusal(self, headers: Headers, path: str) -> Failure | None:
        """Return why a request to a path is refused; None where it is not."""
        if self.is_open(path):
            return None
        known = sent = False
        for given in _given(headers):
            sent = True
            digest = hashlib.sha256(given).digest()
            # All of them, whichever it is.
            same = [self._compare(digest, key.digest) for key in self._keys]
            for key, is_same in zip(self._keys, same, strict=True):
                if is_same:
                    known = True
                    if key.is_for(path):
                        return None
        if known:
            return KEY_IS_FOR_OTHERS
        return WRONG_KEY if sent else NO_KEY


def _given(headers: Headers) -> Iterator[bytes]:
    """Yield the keys that a request has brought."""
    kind, _, bearer = headers.get(b"authorization", b"").strip().partition(b" ")
    if kind.lower() == b"bearer" and (bearer := bearer.strip()):
        yield bearer
    if key := headers.get(b"x-api-key", b"").strip():
        yield key


def read_keys(text: str, source: str) -> tuple[list[Key], list[str]]:
    """Read keys as they stand in a file, one a line, or in a setting, with commas between them.

    A key may be followed by spaces and the paths that it is for. What stands behind a `#` at the beginning of a line is
    a comment.

    Args:
        text: of the file or of the setting.
        source: its name, for messages; they never hold a key.

    Returns:
        the keys, and what to warn of.

    Raises:
        DefinitionError: something in it is no key; the text says where.
    """
    keys: list[Key] = []
    advice: list[str] = []
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    entries = [words for line in lines for entry in line.split(",") if (words := entry.split())]
    for number, (key, *paths) in enumerate(entries, 1):
        who = f"key {number} of {source}"
        if not (key.isascii() and key.isprintable()) or len(key) > MOST_LENGTH:
            raise DefinitionError(f"{who} must be up to {MOST_LENGTH} printable ASCII characters, without spaces")
        if key.startswith("/"):
            raise DefinitionError(f"{who} begins with a slash, as a path does; write the key before its paths")
        for path in paths:
            if not re.fullmatch(r"/[^*]*\*?", path):
                raise DefinitionError(
                    f"{who} is followed by {path!r}, which is no path; write paths such as /inference or /v1/*, and "
                    "several keys with commas, or lines, between them"
                )
        if len(key) < FEW:
            advice.append(
                f"{who} has only {len(key)} characters and may be guessed; make one by: "
                "python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        keys.append(Key(hashlib.sha256(key.encode()).digest(), tuple(paths)))
    if len(keys) > MOST_KEYS:
        raise DefinitionError(f"{source} has {len(keys)} keys; a service can have {MOST_KEYS}")
    return keys, advice
