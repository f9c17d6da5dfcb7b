"""What TLS between the server and its actors costs: `make ray-tls`, or `python benchmarks/ray_tls.py --rounds 2`.

The same model with it and without runs on two nodes of Ray, both on this machine, and is asked in turn. Processor time
counts, that of the server and of its actors: it does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import servers
from on_ray import ways
from on_ray.__main__ import run
from on_ray.rows import ROWS
from problems import BenchmarkError

ROOT = Path(__file__).resolve().parents[1]


def _way(setting: str, suffix: str) -> ways.Way:
    package = servers.Checkout(f"TLS {setting}", ROOT, variables=(("MOSEC_RAY_TLS", setting),))
    return ways.Way(f"executor='ray', TLS {setting}", partial(ways.on_actors, suffix=suffix, package=package))


def _certified(folder: Path) -> dict[str, str]:
    """Make a certificate that is its own authority; return the variables of a node."""
    certificate, key = str(folder / "tls.crt"), str(folder / "tls.key")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=node", "-days", "2"]
    try:
        command = ["openssl", "req", "-x509", *kind, "-out", certificate, "-keyout", key]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchmarkError(f"openssl has made no certificate: {error}") from error
    return {"RAY_TLS_SERVER_CERT": certificate, "RAY_TLS_SERVER_KEY": key, "RAY_TLS_CA_CERT": certificate}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="make ray-tls", description="Measure what TLS to actors of Ray costs.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=2, help="how long, each time (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ.update(_certified(Path(folder)))
            with ways.cluster(serves=False) as ray:
                for row in ROWS:
                    # Arrays go through the server here, and not by Ray's store, whose connections are Ray's.
                    suffix = "_ray_frames" if ways.FRAMES in row.ways else "_ray"
                    compared = dataclasses.replace(row, ways=(_way("off", suffix), _way("on", suffix)), bars=())
                    run(compared, ray, options.rounds, options.seconds)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
