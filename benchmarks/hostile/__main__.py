"""The command: `make hostile`, or `PYTHONPATH=benchmarks python -m hostile --only half-bodies`.

A service is started as users start one, and attacked in every way of the table, one after the other. While an attack
runs, an honest client asks a quick model at a steady rate. Its 99th percentile must be at most twice what it is before
and after; each of its requests must be answered 200; what the service holds must stay below a bound and come back
(memory, descriptors); no worker may be replaced; nothing of a fault may be in the log; the service must answer right
afterwards; and what the attackers themselves must see (an answer that arrives, an end in time) they must have seen.
The exit status is 1 where a promise is broken.

What makes the comparison fair on two processors: the attackers run in a process of their own, at the lowest priority
(`nice`), so that they take from nobody what he could use; they are paced, see `attacks`; the honest client's usual
latency is measured on the same server right before and right after each attack; a second server, which nobody attacks,
is asked in the same way at the same time, and what that one shows is the machine's (the attackers' processor time,
other programs); and as a 99th percentile is that of a few requests, an attack after which only the latency was wrong is
run again, up to twice, and must then keep all promises. The attacks that are the app's to bound are run against
`uvicorn attacked:server` as well.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import servers
from faults import positive, verdict
from problems import BenchmarkError
from soak import MALLOC

from hostile import watch
from hostile.attacks import ATTACKS, Attack
from hostile.honest import BODY, Honest, asking
from hostile.judge import Held, Latencies, Measured, broken, is_slow

SECONDS = 2.5
# Before and after each attack.
USUAL_SECONDS = 1.25
# For connections to be closed and memory to be given back.
REST_SECONDS = 12.0
NICENESS = 19
# Times that an attack is run again after which only the latency was wrong.
AGAIN = 2
ROOT = Path(__file__).parents[1]


class Trial:
    """One server, attacked in one way after the other."""

    def __init__(self, server: servers.RunningServer, honest: Honest, beside: Honest) -> None:
        self._server = server
        self._honest = honest
        self._beside = beside
        self._before: Latencies | None = None
        self._log_read = 0

    async def suffer(self, attack: Attack, seconds: float) -> Measured:
        """Run an attack, and again where only the honest client's latency was wrong."""
        measured = await self._suffer(attack, seconds)
        for _ in range(AGAIN):
            if not is_slow(measured) or len(broken(measured)) > 1:
                break
            measured = await self._suffer(attack, seconds)
        return measured

    async def _suffer(self, attack: Attack, seconds: float) -> Measured:
        leader = self._server.process.pid
        usual = self._before or await self._honest.over(USUAL_SECONDS)
        before = watch.held(leader)
        attacker = await _attacker(attack, self._server.port, seconds)
        over = asyncio.Event()
        peak = asyncio.ensure_future(watch.peak(leader, over))
        self._honest.take()
        self._beside.take()
        seen = await _attacked(attacker)
        during, beside = self._honest.take(), self._beside.take()
        over.set()
        answers = await asyncio.to_thread(self._answers)
        after = await self._at_rest(before)
        self._before = await self._honest.over(USUAL_SECONDS)
        return Measured(
            usual + self._before,
            during,
            beside,
            before,
            await peak,
            after,
            answers,
            self._faults_in_log(),
            seen["done"],
            seen["problems"],
        )

    def _answers(self) -> bool:
        """Whether the server answers."""
        with contextlib.suppress(OSError):
            asked = [("GET", "/readyz", None), ("POST", "/inference", BODY.decode()), ("POST", "/plain", "[1]")]
            return all(self._server.ask(*each)[0] == 200 for each in asked)
        return False

    async def _at_rest(self, before: Held) -> Held:
        """Return what the service holds, once that is no more than before, or when its time for that is over."""
        deadline = time.monotonic() + REST_SECONDS
        while True:
            with contextlib.suppress(OSError):
                now = watch.held(self._server.process.pid)
                rests = now.descriptors <= before.descriptors and now.memory - before.memory < 8_000_000
                if rests or time.monotonic() > deadline:
                    return now
            if self._server.process.poll() is not None:
                raise self._server.failure(f"it has ended with {self._server.process.returncode}")
            await asyncio.sleep(0.1)

    def _faults_in_log(self) -> list[str]:
        """Return the new lines of the log that tell of a fault of the service."""
        with self._server.log.open("rb") as log:
            log.seek(self._log_read)
            new = log.read()
        self._log_read += len(new)
        return [line[:300] for line in new.decode(errors="replace").splitlines() if _is_fault(line)][:3]


def _is_fault(line: str) -> bool:
    return "Traceback" in line or '"level": "ERROR"' in line or '"level":"ERROR"' in line or line.startswith("ERROR")


async def _attacker(attack: Attack, port: int, seconds: float) -> asyncio.subprocess.Process:
    """Start an attacker and wait until it is ready."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hostile.attacker", attack.name, str(port), str(attack.seconds or seconds),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=_humble,
    )  # fmt: skip
    assert process.stdout is not None
    if await process.stdout.readline() != b"ready\n":
        raise BenchmarkError(f"the attacker {attack.name} does not start")
    return process


def _humble() -> None:
    os.nice(NICENESS)


async def _attacked(process: asyncio.subprocess.Process) -> Any:
    """Let an attacker go, and return what it did and saw."""
    out, _ = await process.communicate(b"go\n")
    if process.returncode:
        raise BenchmarkError(f"an attacker has failed, with {process.returncode}")
    return json.loads(out)


HEADER = (
    f"{'attack':28}  {'p99 ms':^23}  {'memory MB':^20}  {'descriptors':^11}\n"
    f"{'':28}  {'usual':>7} {'beside':>7} {'during':>7}  {'rest':>6} {'peak':>6} {'after':>6}  {'rest':>5} {'after':>5}"
    f"  {'verdict':8}  what the attackers did"
)


def row(name: str, measured: Measured) -> str:
    """Return a line of the table."""
    verdict = "BROKEN" if broken(measured) else "kept"
    done = ", ".join(f"{count} x {what}" for what, count in sorted(measured.done.items()))
    before, after = measured.before, measured.after
    usual, beside, during = (each.p99 * 1000 for each in (measured.usual, measured.beside, measured.during))
    return (
        f"{name:28}  {usual:>7.1f} {beside:>7.1f} {during:>7.1f}"
        f"  {before.memory / 1e6:>6.0f} {measured.peak / 1e6:>6.0f} {after.memory / 1e6:>6.0f}"
        f"  {before.descriptors:>5} {after.descriptors:>5}  {verdict:8}  {done}"
    )


async def attacked(
    server: servers.RunningServer,
    spared: servers.RunningServer,
    attacks: Sequence[Attack],
    seconds: float,
    suffix: str = "",
) -> dict[str, Measured]:
    """Attack a server in some ways, print what is seen, and return it by the attacks' names.

    Args:
        server: is attacked.
        spared: the same service, which is not.
        attacks: in what ways.
        seconds: the usual time of an attack.
        suffix: is put behind the names.
    """
    measured = {}
    async with asking(server.port) as honest, asking(spared.port) as beside:
        # All connections and modules that stay are there.
        await honest.over(USUAL_SECONDS)
        trial = Trial(server, honest, beside)
        for attack in attacks:
            name = attack.name + suffix
            measured[name] = await trial.suffer(attack, seconds)
            print("\n  ".join([row(name, measured[name]), *broken(measured[name])]), flush=True)
    return measured


def _run(chosen: Sequence[Attack], seconds: float) -> dict[str, Measured]:
    results: dict[str, Measured] = {}
    with servers.alone("attacked") as spared:
        with servers.alone("attacked") as server:
            results |= asyncio.run(attacked(server, spared, chosen, seconds))
        if under_uvicorn := [attack for attack in chosen if attack.under_uvicorn]:
            with servers.alone("attacked", under_uvicorn=True) as server:
                results |= asyncio.run(attacked(server, spared, under_uvicorn, seconds, suffix=" (uvicorn)"))
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault(*MALLOC)
    chosen = [attack for attack in ATTACKS if attack.name in (options.only or [attack.name])]
    if importlib.util.find_spec("zttp") is None:
        print("HTTP/2 is not spoken here, and not attacked: pip install 'mosec-asgi[http2]'")
        chosen = [attack for attack in chosen if not attack.name.startswith("h2-")]
    print(f"{HEADER}\n{'-' * len(HEADER.splitlines()[-1])}", flush=True)
    began = time.monotonic()
    try:
        results = _run(chosen, options.seconds)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(f"\n{time.monotonic() - began:.0f} s\n" + "\n".join(f"{attack.name}: {attack.text}" for attack in chosen))
    faults = [f"{name}: {fault}" for name, measured in results.items() for fault in broken(measured)]
    return verdict(faults)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Attack a service, and see what an honest client feels of it.")
    names = [attack.name for attack in ATTACKS]
    parser.add_argument("--only", action="append", choices=names, help="this attack; may be given again")
    parser.add_argument("--seconds", type=positive, default=SECONDS, help="an attack's time (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
