"""The Makefile: `make help` lists each target, and each is phony."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from harness import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = sorted(set(re.findall(r"^([a-z][a-z-]*):(?! export)", MAKEFILE, re.M)))


def make(*arguments: str) -> str:
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout


def test_help_lists_every_target_with_what_it_does() -> None:
    listed = re.findall(r"^make (\S+) +\S.*$", make("help"), re.M)
    assert sorted(listed) == TARGETS
    assert make() == make("help"), "it is what `make` alone shows"


def test_one_line_says_which_targets_are_no_files() -> None:
    [phony] = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", MAKEFILE, re.M)
    assert sorted(set(phony.replace("\\", "").split()) - {"FORCE"}) == TARGETS


def test_serve_installs_no_more_than_the_service_needs() -> None:
    [extras] = re.findall(r"-e '\.\[([\w,]+)\]'", MAKEFILE.partition("serve.stamp:")[2].partition("\n\n")[0])
    assert extras == "filetype,http2"


def test_an_interpreter_that_is_too_old_for_the_tests_is_told_before_anything_is_installed(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    # Older than 3.11, as it says of itself, and cannot install anything.
    python.write_text('#!/bin/sh\ncase "$*" in *version_info*) exit 1;; *) echo "ran $*"; exit 0;; esac\n')
    python.chmod(0o755)
    command = ["make", "--no-print-directory", "test", f"VENV={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode
    assert "need Python 3.11 or later" in done.stderr
    assert "ran" not in done.stdout
