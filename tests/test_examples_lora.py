"""examples/lora: a batch has the items of one adapter, and each adapter reads what it has learned to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from documents import assert_keeps_to_its_document
from harness import ROOT, Program, environment_of_programs, python, running, skip_module_without

np = pytest.importorskip("numpy")
skip_module_without("torch", "sklearn")

EXAMPLE = ROOT / "examples" / "lora"
ADAPTERS = ["none", "mirrored", "upside-down", "turned"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service, which trains its network first."""
    folder = tmp_path_factory.mktemp("lora")
    settings = {"XDG_CACHE_HOME": str(folder), "OMP_NUM_THREADS": "1", "MOSEC_TIMEOUT": "60000"}
    with running(python(EXAMPLE / "server.py"), folder / "server.log", environment=settings) as program:
        program.wait_ready(seconds=240)
        yield program


def read_by(program: Program, adapter: str) -> tuple[int, int]:
    """Return how many mirrored digits an adapter reads, by the client, and of how many."""
    command = [sys.executable, str(EXAMPLE / "client.py"), "--adapter", adapter, "--url", program.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment_of_programs())
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    return int(words[0]), int(words[2])


def test_an_adapter_reads_what_the_network_alone_does_not(program: Program) -> None:
    assert read_by(program, "mirrored") > (160, 200) > (120, 200) > read_by(program, "none")


def test_items_of_different_adapters_that_come_together_each_have_their_own(program: Program) -> None:
    from sklearn.datasets import load_digits

    image = np.fliplr(load_digits().images[7]).tolist()

    def ask(adapter: str) -> Any:
        return program.client.post("/inference", json={"image": image, "adapter": adapter}).json()

    alone = {adapter: ask(adapter) for adapter in ADAPTERS}
    assert len({answer["probability"] for answer in alone.values()}) == len(ADAPTERS)
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, ADAPTERS * 16))
    for answer, adapter in zip(together, ADAPTERS * 16, strict=True):
        assert answer["digit"] == alone[adapter]["digit"]
        assert answer["probability"] == pytest.approx(alone[adapter]["probability"], abs=1e-5)


@pytest.mark.parametrize(
    "body", [{"image": [[0] * 8] * 7}, {"image": [[17] * 8] * 8}, {"image": [[0] * 8] * 8, "adapter": "other"}, {}]
)
def test_what_is_no_question_is_refused(program: Program, body: Any) -> None:
    assert program.client.post("/inference", json=body).status_code == 422


def test_it_keeps_to_its_document(program: Program, tmp_path: Path) -> None:
    assert_keeps_to_its_document("lora", program, tmp_path)
