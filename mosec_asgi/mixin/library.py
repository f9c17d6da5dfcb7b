"""The libraries of the mixins: each is an extra, and loads when a worker that needs it is made."""

from __future__ import annotations

import functools
import importlib
from typing import Any, TypeVar

_Self = TypeVar("_Self")
# Extras that are not called as what they import.
_EXTRAS = {"python_multipart": "multipart"}


class NeedsLibrary:
    """Base of the mixins: a worker whose library is missing cannot be made, so that its service stops at the start.

    Attributes:
        _library: the name under which a mixin's library is imported, and of the extra that installs it.
    """

    _library: str = ""

    def __new__(cls: type[_Self], *_: Any, **__: Any) -> _Self:
        """Make the worker, once its libraries are loaded."""
        for base in cls.__mro__:
            if name := vars(base).get("_library"):
                load(name)
        return super().__new__(cls)  # type: ignore[misc,no-any-return]  # this class is among the bases of `cls`


@functools.cache
def load(name: str) -> Any:
    """Return a library's module.

    Args:
        name: the library's name, and the extra's.

    Raises:
        ImportError: it is not installed; the text says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        extra = _EXTRAS.get(name, name)
        raise ImportError(f"this worker needs the library {name}: pip install 'mosec-asgi[{extra}]'") from error
