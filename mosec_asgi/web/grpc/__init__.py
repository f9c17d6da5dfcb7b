"""gRPC: how its calls come to the endpoints of a protocol, on a port of their own. Needs the extra `grpc`."""

from __future__ import annotations

import os

# gRPC's core writes a line to standard error, past all logging, for what a client sends wrongly, such as a deadline.
VERBOSITY = "GRPC_VERBOSITY"


def _import_grpc() -> None:
    """Import gRPC with a core that writes nothing, unless the environment says otherwise, or somebody has before."""
    if VERBOSITY in os.environ:
        import grpc

        return
    os.environ[VERBOSITY] = "NONE"
    try:
        import grpc  # noqa: F401
    finally:
        # It was read: what workers have of gRPC is as they know it.
        del os.environ[VERBOSITY]


_import_grpc()
