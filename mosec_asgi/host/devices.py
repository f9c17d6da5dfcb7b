"""Which GPUs there are, found without the libraries that compute on them: these would start using them in the server.

A process is told its GPU by a variable before it starts: `CUDA_VISIBLE_DEVICES`, or AMD's `HIP_VISIBLE_DEVICES` or
`ROCR_VISIBLE_DEVICES`. Where the server's own environment has such a variable, its entries are the GPUs.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mosec_asgi.errors import DefinitionError

CUDA = "CUDA_VISIBLE_DEVICES"
# The first that is set counts. HIP's entries count within ROCR's, and it takes CUDA's for its own.
ROCM = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", CUDA)
VARIABLES = (CUDA, *ROCM[:2])
# Seconds; without its daemon a driver of many GPUs takes some to answer.
SMI_SECONDS = 30.0
MOST_UUID = 96
_ENTRY = re.compile(r"\d+|(?:GPU|MIG)-\S+")
_GPU = re.compile(r"GPU (\d+): ")
_MIG = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")


class Devices(NamedTuple):
    """The GPUs of a machine.

    Attributes:
        variable: that tells a process its own.
        names: what stands in it, for each: a number, or a UUID, such as that of a part of a GPU (MIG).
        source: where they were found.
    """

    variable: str
    names: tuple[str, ...]
    source: str


def _load_nvml() -> Any:
    return ctypes.CDLL("libnvidia-ml.so.1")


@dataclass(frozen=True)
class Machine:
    """Where to look.

    Attributes:
        smi: the command that lists NVIDIA's GPUs.
        nvml: loads NVIDIA's library, or raises `OSError`.
        dev: the folder of devices.
        proc: has a folder for each of NVIDIA's GPUs.
        topology: has a folder for each of AMD's GPUs, and for each CPU.
    """

    smi: Sequence[str] = ("nvidia-smi", "-L")
    nvml: Callable[[], Any] = _load_nvml
    dev: Path = Path("/dev")
    proc: Path = Path("/proc/driver/nvidia/gpus")
    topology: Path = Path("/sys/class/kfd/kfd/topology/nodes")

    @property
    def is_rocm(self) -> bool:
        """Whether the GPUs are AMD's."""
        return (self.dev / "kfd").exists() and not ((self.dev / "nvidiactl").exists() or self.proc.exists())


def find(environment: Mapping[str, str], machine: Machine) -> Devices:
    """Return the GPUs that this process, and so its workers, may use.

    Args:
        environment: has those of `VARIABLES` that are set.
        machine: where to look.
    """
    outer = _outer(environment, machine)
    if outer is not None:
        return outer
    if machine.is_rocm:
        return Devices(ROCM[0], tuple(rocm_nodes(machine.topology)), str(machine.topology))
    tries: list[tuple[str, Callable[[], list[str]]]] = [
        ("nvidia-smi", lambda: by_smi(machine.smi)),
        ("NVML", lambda: by_nvml(machine.nvml)),
        (str(machine.dev), lambda: by_files(machine.dev, machine.proc)),
    ]
    for source, look in tries:
        if names := look():
            return Devices(CUDA, tuple(names), source)
    return Devices(CUDA, (), "")


def named(wanted: Sequence[str], environment: Mapping[str, str], machine: Machine) -> Devices:
    """Return GPUs that the user has named: by UUIDs, or by numbers, which count within an outer variable.

    Raises:
        DefinitionError: the outer variable has no such number.
    """
    outer = _outer(environment, machine)
    if outer is None:
        return Devices(ROCM[0] if machine.is_rocm else CUDA, tuple(wanted), "devices")
    names = []
    for name in wanted:
        if not name.isdigit():
            names.append(name)
        elif int(name) < len(outer.names):
            names.append(outer.names[int(name)])
        else:
            there = environment[outer.variable]
            raise DefinitionError(
                f"devices has {name!r}, and {outer.variable}={there} leaves {len(outer.names)} of them, from 0; name "
                "others, or change that variable"
            )
    return Devices(outer.variable, tuple(names), "devices")


def _outer(environment: Mapping[str, str], machine: Machine) -> Devices | None:
    """Return what the environment says; None where it says nothing."""
    for variable in ROCM if machine.is_rocm else (CUDA,):
        if variable in environment:
            return Devices(variable, _entries(environment[variable]), variable)
    return None


def _entries(text: str) -> tuple[str, ...]:
    """Return the GPUs that a variable names: those before the first entry that is none, such as -1."""
    names: list[str] = []
    for entry in map(str.strip, text.split(",")):
        if not _ENTRY.fullmatch(entry):
            break
        names.append(entry)
    return tuple(dict.fromkeys(names))


def by_smi(command: Sequence[str]) -> list[str]:
    """Return NVIDIA's GPUs as its command lists them; of one that is divided (MIG), its parts. Empty where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found: list[tuple[str, list[str]]] = []
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        if gpu := _GPU.match(line):
            found.append((gpu[1], []))
        elif found and (part := _MIG.match(line)):
            found[-1][1].append(part[1])
    return [name for number, parts in found for name in (parts or [number])]


def by_nvml(load: Callable[[], Any]) -> list[str]:
    """Return the same by NVIDIA's library. Empty where it is not there, or fails."""
    try:
        library = load()
        if library.nvmlInit_v2():
            return []
    except (OSError, AttributeError):
        return []
    try:
        count = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return []
        names = []
        for number in range(count.value):
            device = ctypes.c_void_p()
            if not library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), ctypes.byref(device)):
                names += _parts(library, device) or [str(number)]
        return names
    finally:
        library.nvmlShutdown()


def _parts(library: Any, device: ctypes.c_void_p) -> list[str]:
    """Return the parts of a GPU that is divided; none of one that is not."""
    now, later, most = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
    try:
        if library.nvmlDeviceGetMigMode(device, ctypes.byref(now), ctypes.byref(later)) or now.value != 1:
            return []
        library.nvmlDeviceGetMaxMigDeviceCount(device, ctypes.byref(most))
        parts = []
        for place in range(most.value):
            part, uuid = ctypes.c_void_p(), ctypes.create_string_buffer(MOST_UUID)
            if library.nvmlDeviceGetMigDeviceHandleByIndex(device, ctypes.c_uint(place), ctypes.byref(part)):
                continue
            if not library.nvmlDeviceGetUUID(part, uuid, ctypes.c_uint(MOST_UUID)):
                parts.append(uuid.value.decode())
    except AttributeError:
        # A library from before GPUs could be divided.
        return []
    return parts


def by_files(dev: Path, proc: Path) -> list[str]:
    """Return NVIDIA's GPUs by their files: those that a container was given, else those that the driver has.

    Their numbers are not those in the names: CUDA counts what it can open from 0.
    """
    there = [file for file in dev.glob("nvidia*") if file.name.removeprefix("nvidia").isdigit()]
    try:
        count = len(there) or len(list(proc.iterdir()))
    except OSError:
        count = 0
    return [str(number) for number in range(count)]


def rocm_nodes(topology: Path) -> list[str]:
    """Return AMD's GPUs: the nodes that are no CPUs, and that a container may look at; HIP counts them from 0."""
    count = 0
    for file in topology.glob("*/gpu_id"):
        try:
            count += file.read_text().strip() not in ("", "0")
        except OSError:
            # Another container's.
            continue
    return [str(number) for number in range(count)]
