"""Detects edits of the user's code since the service started: a worker that is spawned later runs the edited code."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterator

from mosec_asgi import log
from mosec_asgi.inside.spec import WorkerSpec

# Files that a log line names.
MOST_NAMED = 5
# Time of the last change in nanoseconds, and size in bytes; None where the file does not exist any more.
_Version = tuple[int, int] | None

logger = log.internal_logger(__name__)


class SourceFiles:
    """The files of the program's own modules, as they were when this was made."""

    def __init__(self) -> None:
        """Note the files of all loaded modules, except those of Python, of installed packages, and of this package."""
        self._files = {file: _version(file) for file in _own_files()}

    def changed(self) -> list[str]:
        """Return the files that have changed."""
        return [file for file, version in self._files.items() if _version(file) != version]

    def warn_of_edits(self, spec: WorkerSpec) -> None:
        """Log a warning if a worker that is started now will run other code than earlier workers."""
        if changed := self.changed():
            logger.warning(
                "this worker is started from edited code: %s changed since the service started, and workers that were "
                "started before still run what was there then. Restart the service, so that all run the same",
                ", ".join(changed[:MOST_NAMED]) + (", ..." if len(changed) > MOST_NAMED else ""),
                extra={"stage": spec.stage, "worker": spec.worker_id},
            )


def _own_files() -> Iterator[str]:
    others = tuple(os.path.join(os.path.realpath(folder), "") for folder in _folders_of_others())
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(".py"):
            # The path as it is given, which may be a symbolic link that is changed later, and the path that it leads to
            # now.
            file = os.path.abspath(file)
            if not os.path.realpath(file).startswith(others):
                yield file


def _folders_of_others() -> set[str]:
    paths = sysconfig.get_paths()
    return {
        os.path.dirname(sys.modules["mosec_asgi"].__file__ or ""),
        paths["stdlib"],
        paths["platstdlib"],
        paths["purelib"],
        paths["platlib"],
        site.getusersitepackages(),
    }


def _version(file: str) -> _Version:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
