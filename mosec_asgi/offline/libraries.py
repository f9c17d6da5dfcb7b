"""Libraries that only some runs need."""

from __future__ import annotations

import importlib
from typing import Any

from mosec_asgi.offline.faults import WrongUse


def pyarrow(module: str) -> Any:
    """Return a module of pyarrow.

    Raises:
        WrongUse: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in ("pyarrow", module):
            raise
        raise WrongUse(
            "Parquet is read and written by the package pyarrow, which is not installed: pip install "
            "'mosec-asgi[parquet]', or use JSON lines or CSV"
        ) from error
