"""Another version of this repository, in a git worktree of its own for a while."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from problems import BenchmarkError
from servers import Checkout


@contextlib.contextmanager
def checked_out(repository: Path, reference: str) -> Iterator[Checkout]:
    """Check a commit out into a temporary worktree for the time of a block, and remove that however the block ends.

    Args:
        repository: a checkout of the repository.
        reference: what names the commit.

    Raises:
        BenchmarkError: there is no such commit, or git cannot check it out.
    """
    try:
        commit = _git(repository, "rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}")
    except BenchmarkError as error:
        message = f"no commit of {repository} is called {reference!r}: give its hash, tag or branch"
        raise BenchmarkError(message) from error
    with tempfile.TemporaryDirectory(prefix="versus") as folder:
        path = Path(folder).resolve() / "checkout"
        try:
            _git(repository, "worktree", "add", "--quiet", "--detach", str(path), commit)
            yield Checkout(commit[:9], path)
        finally:
            _remove(repository, path)


def _remove(repository: Path, worktree: Path) -> None:
    try:
        _git(repository, "worktree", "remove", "--force", str(worktree))
    except BenchmarkError as error:
        # Nothing to raise: it would hide what has ended the block, as where the worktree could not be made at all.
        print(f"warning: {error}", file=sys.stderr)


def _git(repository: Path, *arguments: str) -> str:
    try:
        finished = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True)
    except OSError as error:
        raise BenchmarkError(f"git, which checks the other version out, cannot be run: {error}") from error
    if finished.returncode:
        raise BenchmarkError(f"git {' '.join(arguments)} failed: {finished.stderr.strip()}")
    return finished.stdout.strip()
