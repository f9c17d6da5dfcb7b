"""The Makefile: `make help` lists each target, and each is phony."""

from __future__ import annotations

import re
import subprocess

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
