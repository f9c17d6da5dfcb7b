"""Where a service's API keys come from: the setting `api_keys`, and the file `api_key_file`, read when it changes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TypeAlias

from mosec_asgi import log
from mosec_asgi.config import Settings, listed
from mosec_asgi.errors import DefinitionError
from mosec_asgi.web.keys import Key, Keys, read_keys

# Seconds between two looks at the file; each is one system call.
LOOK_SECONDS = 1.0
# Bytes of a file of keys; it has a thousand lines at most.
MOST_BYTES = 1 << 20

_Stamp: TypeAlias = "tuple[int, int, int] | None"

logger = log.internal_logger(__name__)


class KeyRing:
    """The keys of a service, from both places.

    Attributes:
        keys: what they are now.
        file: its path; empty for none.
    """

    def __init__(self, settings: Settings) -> None:
        """Read the keys.

        Raises:
            DefinitionError: there is none, or something is no key, or the file cannot be read.
        """
        self.file = settings.api_key_file
        self._fixed = _read(settings.api_keys, "the setting api_keys")
        # Before it is read: a change in between is noticed.
        self._stamp = _stamp(self.file)
        keys = [*self._fixed, *(self._read_file() if self.file else ())]
        if not keys:
            where = f"the file {self.file}" if self.file else "the setting api_keys"
            raise DefinitionError(f"there is no API key in {where}; write one there, or leave the setting out")
        self.keys = Keys(keys, listed(settings.public))

    def look(self) -> None:
        """Read the file again if it has changed. Where that fails, the keys stay what they were."""
        stamp = _stamp(self.file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            keys = self._read_file(_open_at_once)
        except DefinitionError as error:
            logger.error("the API keys stay what they were: %s", error)
            return
        self.keys.change([*self._fixed, *keys])
        logger.info("the API keys were read again: there are %d in %s", len(keys), self.file)
        if not keys:
            logger.error(
                "there is no API key left in %s: requests with a key from this file are refused; write one there",
                self.file,
            )

    def _read_file(self, opener: Callable[[str, int], int] | None = None) -> list[Key]:
        try:
            with open(self.file, "rb", opener=opener) as file:
                data = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise DefinitionError(f"the file of API keys {self.file} cannot be read: {error.strerror}") from None
        if len(data) > MOST_BYTES:
            raise DefinitionError(f"the file of API keys {self.file} has more than {MOST_BYTES} bytes")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise DefinitionError(f"the file of API keys {self.file} is no text") from None
        return _read(text, self.file)


def key_ring(settings: Settings) -> KeyRing | None:
    """Return the keys of a service; None where it has none, and everybody may ask."""
    return KeyRing(settings) if settings.keyed else None


def _read(text: str, source: str) -> list[Key]:
    keys, advice = read_keys(text, source)
    for each in advice:
        logger.warning("%s", each)
    return keys


def _open_at_once(path: str, flags: int) -> int:
    """Open a file while the service runs: a pipe in its place would keep all requests waiting for its writer."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "it is no regular file")


def _stamp(path: str) -> _Stamp:
    """Return what changes with a file: also when another takes its place, as where Kubernetes mounts a secret."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
