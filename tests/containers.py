"""Containers without an engine: namespaces from `unshare`, and images built on this machine's own files.

`build` runs the steps of a Dockerfile, each as it stands, in a root that is an overlay: this machine's own files stand
in for the base image, and all that is written lands in a folder of the test's. What that cannot show is that the real
base image has what the steps take from it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser
from harness import ROOT, Program, child_processes, processes, running, wait_until

# What a build by an engine on this machine would be told in its configuration: where packages come from.
_OF_THE_BUILDER = re.compile(r"PIP_|UV_|.*_proxy$|SSL_CERT", re.IGNORECASE)


# -- a container that runs ---------------------------------------------------------------------------------------------


@dataclass
class Container:
    """A program that is process 1 of its namespace.

    Attributes:
        program: what runs it, whose exit code is its own.
        pid: its number outside.
    """

    program: Program
    pid: int

    def workers(self) -> set[int]:
        """Return the numbers, outside, of its children that run."""
        return {pid for pid, parent, _, state in processes() if parent == self.pid and state not in "ZX"}

    def zombies(self) -> set[int]:
        """Return the numbers, outside, of its children that have ended and are not buried."""
        return {pid for pid, parent, _, state in processes() if parent == self.pid and state == "Z"}

    def send(self, number: signal.Signals) -> None:
        """Send a signal to process 1."""
        os.kill(self.pid, number)

    def stop(self) -> int:
        """Send it SIGTERM; return its exit code."""
        self.send(signal.SIGTERM)
        return self.program.wait(10.0)


@functools.cache
def unshare() -> tuple[list[str], str]:
    """Return the command that runs another as process 1 of a namespace, or none and why it cannot be done here."""
    path = shutil.which("unshare")
    if path is None:
        return [], "unshare, of util-linux, is not here"
    reason = ""
    # With rights of its own, or those that it may give itself.
    for rights in ([], ["--user", "--map-root-user"]):
        command = [path, *rights, "--pid", "--fork", "--mount-proc", "--kill-child"]
        done = subprocess.run([*command, "true"], capture_output=True, text=True)
        if done.returncode == 0:
            return command, ""
        reason = done.stderr.strip()
    return [], f"this kernel or container forbids namespaces: {reason}"


@contextlib.contextmanager
def contained(command: Sequence[str], log: Path, *, port: int | None = None) -> Iterator[Container]:
    """Run a command that begins with `unshare`, without waiting until the service in it is ready."""
    with running(command, log, port=port) as program:
        wait_until(lambda: child_processes(program.process.pid), "the namespace does not come to be")
        [pid] = child_processes(program.process.pid)
        yield Container(program, pid)


# -- an image ----------------------------------------------------------------------------------------------------------


@dataclass
class Image:
    """What a Dockerfile makes.

    Attributes:
        folder: for its files.
        environment: of its programs.
        workdir: where they start.
        user: by number, and group.
        entrypoint, command: what a container runs.
        healthcheck: what asks it how it is.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": base_path()})
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)

    @property
    def files(self) -> Path:
        """The folder with all files that the image adds to its base."""
        return self.folder / "files"

    def run_command(self, environment: Mapping[str, str], volumes: Mapping[Path, str]) -> list[str]:
        """Return the command that runs a container, as strictly as Kubernetes can: no rights, a root to be read only.

        Args:
            environment: variables beside the image's own.
            volumes: folders to show inside, and where.
        """
        mounts = [
            "mount -t proc proc root/proc",
            "mount -t tmpfs tmpfs root/dev/shm",
            *(f"mount --bind {shlex.quote(str(folder))} root{place}" for folder, place in volumes.items()),
            "mount -o remount,ro root",
        ]
        program = self._as_user({**self.environment, **environment}, [*self.entrypoint, *self.command])
        return _in_root(self.folder, mounts, program, ["--pid", "--kill-child"])

    def check_health(self, container: Container, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run the healthcheck in a container, as the engine does."""
        inside = ["nsenter", f"--target={container.pid}", "--mount", "--pid", "--root"]
        program = self._as_user({**self.environment, **environment}, self.healthcheck)
        return subprocess.run([*inside, *program], capture_output=True, text=True, timeout=30)

    def _as_user(self, environment: Mapping[str, str], program: Sequence[str]) -> list[str]:
        user, _, group = self.user.partition(":")
        rights = [f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
        variables = [f"{name}={value}" for name, value in environment.items()]
        return ["setpriv", *rights, "env", "-i", "-C", self.workdir, *variables, *program]


def base_path() -> str:
    """Return PATH of the base image: `python` is the one that the tests' own environment is made of."""
    interpreter = Path(os.path.realpath(sys._base_executable))  # type: ignore[attr-defined]
    return f"{interpreter.parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile and what stands behind each, without comments."""
    parser = DockerfileParser(fileobj=io.BytesIO(dockerfile.read_bytes()))
    return [(step["instruction"], step["value"]) for step in parser.structure if step["instruction"] != "COMMENT"]


def skip_unless_images_can_be_built(folder: Path) -> None:
    """Skip the test where this machine does not let it mount an overlay."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount what an image is built on")
    for program in ("unshare", "nsenter", "setpriv", "apt-get"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here, which the steps of an image need")
    image = Image(folder / "try")
    _begin(image)
    done = subprocess.run(_in_root(image.folder, [], ["true"], []), capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this kernel or container forbids the mounts that an image needs: {done.stderr.strip()}")


def build(dockerfile: Path, context: Path, folder: Path) -> Image:
    """Run the steps of a Dockerfile.

    Args:
        dockerfile: all that this project's Dockerfiles use is understood, and nothing else.
        context: the folder to copy from; its `.dockerignore` is heeded.
        folder: for what comes of it.
    """
    arguments: dict[str, str] = {}
    stages: dict[str, Image] = {}
    image = Image(folder)
    for instruction, value in instructions(dockerfile):
        if instruction == "ARG":
            name, _, default = value.partition("=")
            arguments[name] = default
        elif instruction == "FROM":
            name = value.partition(" AS ")[2] or "last"
            image = stages[name] = Image(folder / name)
            _begin(image)
        elif instruction == "RUN":
            _run_step(image, re.sub(r"^(--\S+\s+)+", "", value), arguments)
        elif instruction == "COPY":
            _copy_step(image, value, context, stages)
        else:
            _configure(image, instruction, value)
    return image


def _begin(image: Image) -> None:
    for name in ("files", "work", "root"):
        (image.folder / name).mkdir(parents=True)
    # The base image's Python can be read by everybody; this machine's may lie in its owner's folder.
    for folder in reversed(Path(base_path().partition(":")[0]).parents):
        inside = image.files / folder.relative_to("/")
        inside.mkdir(exist_ok=True)
        inside.chmod(0o755)


def _configure(image: Image, instruction: str, value: str) -> None:
    if instruction == "WORKDIR":
        image.workdir = value
        (image.files / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif instruction == "ENV":
        for name, text in (word.split("=", 1) for word in shlex.split(value)):
            image.environment[name] = text.replace("$PATH", image.environment["PATH"])
    elif instruction == "USER":
        image.user = value
    elif instruction == "ENTRYPOINT":
        image.entrypoint = json.loads(value)
    elif instruction == "CMD":
        image.command = json.loads(value)
    elif instruction == "HEALTHCHECK":
        image.healthcheck = json.loads(value.partition("CMD")[2])
    else:
        assert instruction == "EXPOSE", f"{instruction} is not understood here"


def _run_step(image: Image, step: str, arguments: Mapping[str, str]) -> None:
    builder = {name: text for name, text in os.environ.items() if _OF_THE_BUILDER.match(name)}
    variables = {**builder, "HOME": "/root", **image.environment, **arguments}
    words = [f"{name}={text}" for name, text in variables.items()]
    program = ["env", "-i", "-C", image.workdir, *words, "/bin/sh", "-c", step]
    mounts = ["mount --rbind /proc root/proc"]
    done = subprocess.run(_in_root(image.folder, mounts, program, []), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"RUN {step}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


def _copy_step(image: Image, value: str, context: Path, stages: Mapping[str, Image]) -> None:
    *sources, target = shlex.split(value)
    stage = None
    if sources[0].startswith("--from="):
        stage = stages[sources.pop(0).removeprefix("--from=")]
    # As Docker has it: a folder by the slash at its end, and of a source that is a folder, what is in it.
    place = image.files / os.path.join(image.workdir, target).lstrip("/")
    for source in sources:
        origin = stage.files / source.lstrip("/") if stage else context / source
        if origin.is_dir() and stage:
            # Linked: the other stage has come to its end, and an environment is hundreds of megabytes.
            shutil.copytree(origin, place, symlinks=True, copy_function=os.link, dirs_exist_ok=True)
        elif origin.is_dir():
            ignore = functools.partial(_ignored_in, context)
            shutil.copytree(origin, place, symlinks=True, ignore=ignore, dirs_exist_ok=True)
        else:
            assert stage or not ignored(context, source), f"{source} is kept out by .dockerignore"
            into = place / origin.name if target.endswith("/") else place
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, into)


def ignored(context: Path, path: str) -> bool:
    """Whether `.dockerignore` keeps a path out of the context: the last pattern that fits it or its folder decides."""
    verdict = False
    parents = ["/".join(path.split("/")[: depth + 1]) for depth in range(path.count("/") + 1)]
    for line in (context / ".dockerignore").read_text().splitlines():
        pattern = line.lstrip("!")
        if line and not line.startswith("#") and any(_fits(parent, pattern) for parent in parents):
            verdict = not line.startswith("!")
    return verdict


def _fits(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatchcase(path.rpartition("/")[2], pattern[3:])
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)


def _ignored_in(context: Path, folder: str, names: list[str]) -> set[str]:
    inside = Path(folder).relative_to(context).as_posix()
    return {name for name in names if ignored(context, f"{inside}/{name}")}


def _in_root(folder: Path, mounts: Sequence[str], program: Sequence[str], namespaces: Sequence[str]) -> list[str]:
    """Return the command that runs a program with a root of its own: this machine's files, below those of `folder`."""
    script = [
        "set -e",
        f"cd {shlex.quote(str(folder))}",
        "mount -t overlay overlay -o lowerdir=/,upperdir=files,workdir=work root",
        "mount --rbind /dev root/dev",
        # Neither the repository, from which something might be loaded, nor what other programs have there.
        f"mount -t tmpfs tmpfs root{shlex.quote(str(ROOT))}",
        "mount -t tmpfs -o mode=1777 tmpfs root/tmp",
        *mounts,
        f"exec chroot root {shlex.join(program)}",
    ]
    return ["unshare", "--mount", "--fork", *namespaces, "/bin/sh", "-c", "\n".join(script)]
