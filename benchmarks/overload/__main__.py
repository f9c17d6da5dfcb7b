"""The command: `make overload`, or `PYTHONPATH=benchmarks python -m overload --model constant --load 3`.

It puts an open loop of requests on the same service under mosec and under this package, each started anew for each
load, and prints what came of it, in relation to what the model was measured to do right before and after. With
`--server` one of them is measured, and the other's results stay as they are: five minutes for each.
With `--simulate` no process is started: the services of `cases` run on virtual time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import machine
import servers
from load import Posts
from problems import BenchmarkError

from mosec_asgi.batching import stage_admission
from overload import picture
from overload.cases import SERVICES, steady
from overload.generator import Generator, Request

RESULTS = Path(__file__).parents[1] / "results"
LOADS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
# Requests per second that a model can answer at most.
CAPACITY = {"constant": 20.0, "heavy-tailed": 20.0, "batches": 8 / 0.06, "two-stages": 20.0}
# Clients that keep a model at work all the time, by which it is measured what it can do at this moment on this machine,
# right before and after a load: a sleep takes a little longer than it is asked to. Where times scatter it is not known
# better than by the model.
SATURATING = {"constant": 3, "batches": 32, "two-stages": 4}
SATURATING_SECONDS = 2.0
PICTURED = ("constant", "batches")
SECONDS = 12.0
# Before anything is judged: the first measurements, and the queue that there is at first.
WARM_UP = 3.0
TIMEOUT = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """What a server made of a load.

    Attributes:
        model: what it served.
        server: whose it is.
        load: requests per second in relation to the capacity.
        capacity: requests per second that the model was measured to do, before the load or after it.
        goodput: answered in time, in relation to the capacity.
        median_ms: until the answer of those that were answered.
        refused, timed_out, lost: shares of the requests: answered 429 or 503, 408, or not at all.
        wasted: the share of the items that the model ran whose requests were not answered in time.
    """

    model: str
    server: str
    load: float
    capacity: float
    goodput: float
    median_ms: float
    refused: float
    timed_out: float
    lost: float
    wasted: float

    def __str__(self) -> str:
        return (
            f"{self.model:12}  {self.server:10}  {self.load:>5g}  {self.capacity:>6.2f}/s  {self.goodput:>7.3f}"
            f"  {self.median_ms:>6.0f} ms  {self.refused:>7.1%}  {self.timed_out:>7.1%}  {self.lost:>6.1%}"
            f"  {self.wasted:>7.1%}"
        )


HEADER = (
    f"{'model':12}  {'server':10}  {'load':>5}  {'capacity':>8}  {'goodput':>7}  {'median':>9}  {'429':>7}"
    f"  {'408':>7}  {'lost':>6}  {'wasted':>7}"
)


def measure(model: str, package: servers.Package, load: float, seconds: float) -> Row:
    """Put a load on a model under one of the servers."""
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        items = Path(folder) / "items"
        os.environ.update(BENCH_MODEL=model, BENCH_ITEMS=str(items))
        with servers.running("overloaded", [package], Posts("1", 1)) as (server,):
            capacities: list[float] = []

            async def run() -> tuple[list[Request], int]:
                generator = Generator(server.port, servers.ROUTE, b"1")
                await _measure_capacity(generator, model, capacities)
                before = items.stat().st_size
                requests = await generator.run(CAPACITY[model] * load, seconds, 1)
                begun = items.stat().st_size - before
                await _measure_capacity(generator, model, capacities)
                generator.close()
                return requests, begun

            requests, begun = asyncio.run(run())
    capacity = max(capacities, default=CAPACITY[model])
    judged = [request for request in requests if request.due >= WARM_UP]
    in_time = [request for request in requests if request.status == 200 and request.latency <= TIMEOUT + 0.1]
    good = [request for request in in_time if WARM_UP <= request.due + request.latency < seconds]
    latencies = sorted(request.latency for request in judged if request.status == 200)

    def share(*statuses: int) -> float:
        return sum(request.status in statuses for request in judged) / max(1, len(judged))

    return Row(
        model,
        package,
        load,
        round(capacity, 2),
        round(len(good) / (capacity * (seconds - WARM_UP)), 3),
        round(1000 * latencies[len(latencies) // 2], 1) if latencies else float("nan"),
        round(share(429, 503), 4),
        round(share(408), 4),
        round(share(0), 4),
        round(1 - len(in_time) / max(1, begun), 4),
    )


async def _measure_capacity(generator: Generator, model: str, capacities: list[float]) -> None:
    if model in SATURATING:
        capacities.append(await generator.saturate(SATURATING[model], SATURATING_SECONDS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.thresholds:
            return _thresholds(options)
        return _simulate(options) if options.simulate else _measure(options)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _simulate(options: argparse.Namespace) -> int:
    for name in options.model or SERVICES:
        for load in options.load or LOADS:
            print(
                f"{name:26}  {load:>5g}  {steady(name, load, seconds=options.seconds, seed=options.seed)}", flush=True
            )
    return 0


# Thresholds from which on a queue is kept short; 99 stands for never.
THRESHOLDS = (1.1, 1.25, 1.5, 1.75, 2.0, 99.0)


def _thresholds(options: argparse.Namespace) -> int:
    """Print what each threshold costs, as the share of time at work on what was not in vain, and the median latency."""
    print("| load | times | " + " | ".join(f"{threshold:g}" for threshold in THRESHOLDS) + " |")
    print("|---|---" * 1 + "|---" * len(THRESHOLDS) + "|")
    for load in options.load or (0.9, 1.0, 1.2, 1.5, 3.0):
        for name in options.model or ("constant", "exponential", "heavy-tailed"):
            cells = []
            for stage_admission.OVERLOAD in THRESHOLDS:
                stage_admission.LEAST_OVERLOAD = 0.75 * stage_admission.OVERLOAD
                results = [steady(name, load, seconds=60.0, seed=options.seed + place) for place in range(4)]
                useful = sum(result.at_work * (1.0 - result.wasted) for result in results) / len(results)
                median = sum(result.median for result in results) / len(results)
                cells.append(f"{useful:.3f}, {median:.0f} ms")
            print(f"| {load:g} | {name} | " + " | ".join(cells) + " |", flush=True)
    return 0


def _measure(options: argparse.Namespace) -> int:
    packages: list[servers.Package] = options.server or ["mosec_asgi", "mosec"]
    if "mosec" in packages:
        servers.check_mosec()
    rows: list[Row] = []
    print(f"{HEADER}\n{'-' * len(HEADER)}", flush=True)
    for model in options.model or PICTURED:
        if model not in CAPACITY:
            raise BenchmarkError(f"there is no model {model!r}; there are {', '.join(CAPACITY)}")
        for load in options.load or LOADS:
            for package in packages:
                rows.append(measure(model, package, load, options.seconds))
                print(rows[-1], flush=True)
    if not (options.model or options.load):
        _write(rows, options.seconds)
    return 0


def _write(rows: Sequence[Row], seconds: float) -> None:
    """Write the results; those of a server that was not measured this time stay as they are."""
    file = RESULTS / "overload.json"
    measured = {row.server for row in rows}
    before = json.loads(file.read_text())["rows"] if file.exists() else []
    # JSON has no number for the median of nothing.
    new = [{name: None if value != value else value for name, value in asdict(row).items()} for row in rows]
    shown = [*new, *(row for row in before if row["server"] not in measured)]
    data = {"machine": machine.describe(), "seconds": seconds, "rows": shown}
    file.write_text(json.dumps(data, indent=1) + "\n")
    names = {"constant": "50 ms", "batches": "batches of 8"}
    series = {
        (package, names[model]): [
            (row["load"], row["goodput"]) for row in shown if (row["server"], row["model"]) == (package, model)
        ]
        for model in PICTURED
        for package in ("mosec_asgi", "mosec")
    }
    (RESULTS / "overload.svg").write_text(picture.draw("Goodput under load, timeout 1 s", series))
    print(f"written to {file} and overload.svg")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Offer more than a model can do, and see what is answered in time.")
    parser.add_argument("--model", action="append", help="this model only; may be given again")
    parser.add_argument(
        "--load", action="append", type=float, help="this multiple of the capacity only; may be repeated"
    )
    parser.add_argument("--server", action="append", choices=["mosec_asgi", "mosec"], help="this server only")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each load (default: %(default)s)")
    parser.add_argument("--simulate", action="store_true", help="on virtual time, without processes; ours only")
    parser.add_argument("--thresholds", action="store_true", help="on virtual time: what keeping the queue short costs")
    parser.add_argument("--seed", type=int, default=0, help="of a simulation (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
