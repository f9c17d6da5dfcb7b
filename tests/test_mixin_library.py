"""A mixin's library is an extra: it loads when a worker is made, and where it is missing the error names the extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import python, running, written

from mosec_asgi import Worker
from mosec_asgi.mixin import (
    MsgpackMixin,
    MultipartMixin,
    NumBinIPCMixin,
    PydanticMixin,
    RedisShmIPCMixin,
    TypedMsgPackMixin,
)
from mosec_asgi.mixin.library import load

MIXINS: list[tuple[type[Any], str]] = [
    (MsgpackMixin, "msgpack"),
    (TypedMsgPackMixin, "msgspec"),
    (PydanticMixin, "pydantic"),
    (MultipartMixin, "python_multipart"),
    (NumBinIPCMixin, "numbin"),
    (RedisShmIPCMixin, "redis"),
]


def worker_with(*mixins: type[Any]) -> type[Worker]:
    return type("Mixed", (*mixins, Worker), {"forward": lambda self, data: data})


@pytest.mark.parametrize(("mixin", "name"), MIXINS)
def test_a_worker_whose_library_is_missing_cannot_be_made(
    mixin: type[Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    load.cache_clear()
    worker = worker_with(mixin)
    extra = name.removeprefix("python_")
    with pytest.raises(
        ImportError, match=rf"^this worker needs the library {name}: pip install 'mosec-asgi\[{extra}\]'$"
    ):
        worker()
    monkeypatch.undo()
    worker()


def test_of_several_mixins_each_library_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_with(RedisShmIPCMixin, NumBinIPCMixin, MsgpackMixin)
    worker()
    monkeypatch.setitem(sys.modules, "numbin", None)
    load.cache_clear()
    with pytest.raises(ImportError, match=r"\[numbin\]"):
        worker()


def test_a_library_that_lacks_one_of_its_own_says_so_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written(tmp_path, "import lacking_this", "a_library.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="lacking_this") as raised:
        load("a_library")
    assert raised.value.name == "lacking_this"


@pytest.mark.parametrize(("mixin", "name"), MIXINS)
def test_a_library_loads_with_a_worker_and_not_before(mixin: type[Any], name: str) -> None:
    program = f"""
import sys
from mosec_asgi import Worker
from mosec_asgi.mixin import {mixin.__name__}
class Mixed({mixin.__name__}, Worker):
    def forward(self, data): return data
assert {name!r} not in sys.modules
Mixed()
assert {name!r} in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("mixin", [TypedMsgPackMixin, PydanticMixin, RedisShmIPCMixin])
def test_a_mixin_that_is_a_worker_works_alone_and_beside_worker(mixin: type[Any]) -> None:
    alone = type("Alone", (mixin,), {"forward": lambda self, data: data})
    assert issubclass(alone, Worker)
    assert alone().forward(1) == worker_with(mixin)().forward(1) == 1


def test_a_service_whose_library_is_missing_stops_at_its_start_and_says_what_to_install(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["msgpack"] = None

from mosec_asgi import Server, Worker
from mosec_asgi.mixin import MsgpackMixin

class Inference(MsgpackMixin, Worker):
    def forward(self, data):
        return data

if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference)
    server.run()
"""
    with running(python(written(tmp_path, program)), tmp_path / "log") as service:
        assert service.wait() != 0
        assert "pip install 'mosec-asgi[msgpack]'" in service.output
