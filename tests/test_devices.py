"""Which GPUs there are: found by each of the ways in turn, on machines that the tests make up."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from mosec_asgi.errors import DefinitionError
from mosec_asgi.host.devices import Devices, Machine, by_nvml, find, named

LISTED = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 3g.20gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-15b1e3a0-54c0-3e9f-9b5e-2d0f29d4c1f2)
"""
PARTS = ("MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb")


class FakeNvml:
    """NVIDIA's library, as `ctypes` calls it: `parts` are the UUIDs of each GPU's parts, None where it has no MIG."""

    def __init__(self, parts: list[list[str] | None], status: int = 0) -> None:
        self._parts = parts
        self._status = status
        self.is_open = False
        # Handles are addresses: of a GPU its number from 1, of a part the same and its place.
        self._uuids: dict[int, str] = {}

    def nvmlInit_v2(self) -> int:
        self.is_open = not self._status
        return self._status

    def nvmlShutdown(self) -> int:
        self.is_open = False
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self._parts)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, device: Any) -> int:
        device._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetMigMode(self, device: ctypes.c_void_p, now: Any, later: Any) -> int:
        assert device.value is not None
        parts = self._parts[device.value - 1]
        now._obj.value = int(parts is not None)
        # Not supported.
        return 3 if parts is None else 0

    def nvmlDeviceGetMaxMigDeviceCount(self, device: ctypes.c_void_p, most: Any) -> int:
        most._obj.value = 7
        return 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: ctypes.c_void_p, place: ctypes.c_uint, part: Any) -> int:
        assert device.value is not None
        parts = self._parts[device.value - 1] or []
        if place.value >= len(parts):
            return 6
        part._obj.value = device.value * 100 + place.value
        self._uuids[part._obj.value] = parts[place.value]
        return 0

    def nvmlDeviceGetUUID(self, part: ctypes.c_void_p, uuid: Any, size: ctypes.c_uint) -> int:
        assert part.value is not None
        uuid.value = self._uuids[part.value].encode()
        return 0


def no_library() -> Any:
    raise OSError("libnvidia-ml.so.1: cannot open shared object file")


def bare(folder: Path, **changes: Any) -> Machine:
    """Return a machine without anything."""
    (folder / "dev").mkdir(exist_ok=True)
    empty: dict[str, Any] = {
        "smi": (str(folder / "nvidia-smi"), "-L"),
        "nvml": no_library,
        "dev": folder / "dev",
        "proc": folder / "gpus",
        "topology": folder / "nodes",
    }
    return Machine(**{**empty, **changes})


def smi(folder: Path, text: str, status: int = 0) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] || exit 9\ncat <<'END'\n{text}END\nexit {status}\n")
    program.chmod(0o755)


def amd(folder: Path, *gpu_ids: str) -> None:
    """Make AMD's files: a node has 0 for its number where it is a CPU."""
    (folder / "dev").mkdir(exist_ok=True)
    (folder / "dev" / "kfd").touch()
    for place, gpu_id in enumerate(gpu_ids):
        node = folder / "nodes" / str(place)
        node.mkdir(parents=True)
        (node / "gpu_id").write_text(f"{gpu_id}\n")


def test_a_machine_without_any_has_none(tmp_path: Path) -> None:
    assert find({}, bare(tmp_path)) == Devices("CUDA_VISIBLE_DEVICES", (), "")


def test_nvidias_command_lists_gpus_and_of_a_divided_one_its_parts(tmp_path: Path) -> None:
    smi(tmp_path, LISTED)
    assert find({}, bare(tmp_path)) == Devices("CUDA_VISIBLE_DEVICES", (*PARTS, "1"), "nvidia-smi")


def test_where_the_command_fails_nvidias_library_is_asked(tmp_path: Path) -> None:
    smi(tmp_path, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9)
    library = FakeNvml([None, list(PARTS), None])
    found = find({}, bare(tmp_path, nvml=lambda: library))
    assert found == Devices("CUDA_VISIBLE_DEVICES", ("0", *PARTS, "2"), "NVML")
    assert not library.is_open, "it is given up again"


def test_a_library_that_fails_or_is_too_old_is_no_fault() -> None:
    assert by_nvml(lambda: FakeNvml([None], status=9)) == []
    assert by_nvml(lambda: object()) == []
    old = type("Old", (FakeNvml,), {"nvmlDeviceGetMigMode": property(lambda self: getattr(self, "missing"))})  # noqa: B009
    assert by_nvml(lambda: old([None, None])) == ["0", "1"]


def test_then_the_files_of_devices_count_and_then_those_of_the_driver(tmp_path: Path) -> None:
    machine = bare(tmp_path)
    for name in ("0000:07:00.0", "0000:0b:00.0", "0000:48:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    assert find({}, machine).names == ("0", "1", "2")
    # A container was given two of them.
    for name in ("nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (tmp_path / "dev" / name).touch()
    assert find({}, machine).names == ("0", "1")


def test_amds_gpus_are_the_nodes_that_are_no_cpus(tmp_path: Path) -> None:
    amd(tmp_path, "0", "49705", "0", "13421")
    (tmp_path / "nodes" / "4").mkdir()
    # Another container's: reading it fails.
    (tmp_path / "nodes" / "4" / "gpu_id").mkdir()
    found = find({}, bare(tmp_path))
    assert (found.variable, found.names) == ("HIP_VISIBLE_DEVICES", ("0", "1"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("2,3", ("2", "3")),
        (" 1 , GPU-5d5ba0d6 ", ("1", "GPU-5d5ba0d6")),
        (f"{PARTS[0]},{PARTS[1]}", PARTS),
        ("MIG-GPU-5d5ba0d6-d33d/1/0", ("MIG-GPU-5d5ba0d6-d33d/1/0",)),
        # As CUDA has it: what stands behind one that is none does not count.
        ("0,-1,1", ("0",)),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
    ],
)
def test_what_the_environment_leaves_is_what_there_is(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    smi(tmp_path, LISTED)
    outer = {"CUDA_VISIBLE_DEVICES": text}
    assert find(outer, bare(tmp_path)) == Devices("CUDA_VISIBLE_DEVICES", names, "CUDA_VISIBLE_DEVICES")


def test_on_amds_machines_its_own_variables_count_before_cudas(tmp_path: Path) -> None:
    amd(tmp_path, "49705", "13421", "2222")
    machine = bare(tmp_path)
    cuda, rocr, hip = {"CUDA_VISIBLE_DEVICES": "0"}, {"ROCR_VISIBLE_DEVICES": "1,2"}, {"HIP_VISIBLE_DEVICES": "1"}
    assert find(cuda, machine)[:2] == ("CUDA_VISIBLE_DEVICES", ("0",))
    assert find({**cuda, **rocr}, machine)[:2] == ("ROCR_VISIBLE_DEVICES", ("1", "2"))
    assert find({**cuda, **rocr, **hip}, machine)[:2] == ("HIP_VISIBLE_DEVICES", ("1",))
    # On NVIDIA's they mean nothing.
    (tmp_path / "dev" / "nvidiactl").touch()
    assert find({**rocr, **hip}, machine).variable == "CUDA_VISIBLE_DEVICES"


def test_numbers_that_the_user_names_count_within_the_outer_variable(tmp_path: Path) -> None:
    machine = bare(tmp_path)
    assert named(("1", "0"), {}, machine)[:2] == ("CUDA_VISIBLE_DEVICES", ("1", "0"))
    outer = {"CUDA_VISIBLE_DEVICES": "4,GPU-5d5ba0d6"}
    assert named(("1", PARTS[0]), outer, machine)[:2] == ("CUDA_VISIBLE_DEVICES", ("GPU-5d5ba0d6", PARTS[0]))
    with pytest.raises(DefinitionError, match=r"devices has '2', and CUDA_VISIBLE_DEVICES=4,GPU-5d5ba0d6 leaves 2"):
        named(("0", "2"), outer, machine)
    amd(tmp_path, "49705")
    assert named(("0",), {}, machine).variable == "HIP_VISIBLE_DEVICES"
