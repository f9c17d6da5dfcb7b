"""What gRPC's core writes to standard error, past all logging."""

from __future__ import annotations

import subprocess
import sys

import pytest
from harness import environment_of_programs

from mosec_asgi.errors import DefinitionError
from mosec_asgi.protocols import OpenInference

pytest.importorskip("grpc")
pytest.importorskip("tritonclient.grpc")

# Serves, and asks itself with a deadline that is none. The client's modules import gRPC as well: only once it serves.
PROGRAM = """
import asyncio, os, sys
import grpc_workers

async def main():
    assert "grpc" not in sys.modules
    server, protocol = grpc_workers.serve()
    async with server:
        from test_grpc_clients import Raw, echo
        raw = Raw(*await asyncio.open_connection("127.0.0.1", protocol.grpc_port))
        stream = await raw.call("ModelInfer", echo(1), ends=True, metadata=[("grpc-timeout", "soon")])
        print(await raw.status(stream))
        raw.writer.close()
    print(os.environ.get("GRPC_VERBOSITY"))

asyncio.run(main())
"""


@pytest.mark.parametrize("verbosity", [None, "ERROR"])
def test_a_deadline_that_is_none_writes_nothing_unless_the_environment_says_so(verbosity: str | None) -> None:
    environment = environment_of_programs()
    environment.pop("GRPC_VERBOSITY", None)
    if verbosity is not None:
        environment["GRPC_VERBOSITY"] = verbosity
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    # Workers' programs know nothing of it.
    assert done.stdout.split()[1] == str(verbosity)
    assert ("grpc-timeout" in done.stderr) is (verbosity is not None)


def test_a_port_without_grpc_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(DefinitionError, match=r"mosec-asgi\[grpc\]"):
        OpenInference({"echo": "/echo"}, grpc_port=0)
