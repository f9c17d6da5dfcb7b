"""What tracing and Server-Timing cost a small request: `make tracing`, or `python benchmarks/tracing.py --rounds 4`.

An echo is run with each of them and without, in turn. Processor time counts, of the server and of the worker: it does
not depend on what else the machine does. The bar is for tracing that nobody is told of, with OpenTelemetry installed.
"""

from __future__ import annotations

import argparse
import http.server
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import machine
import options
import servers
from problems import BenchmarkError
from results import Result
from scenarios import Scenario
from versus import compare

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 6
BAR = 0.97
ROW = Scenario("echo", "JSON echo, 64 connections", "echo", 64)
TRACED = ("MOSEC_TRACING", "1")
# Each with what is set for it.
WAYS = {
    "no-exporter": (TRACED, ("OTEL_TRACES_EXPORTER", "none")),
    "not-sampled": (TRACED, ("OTEL_TRACES_SAMPLER", "parentbased_always_off")),
    "one-percent": (TRACED, ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.01")),
    "all": (TRACED,),
    "server-timing": (("MOSEC_SERVER_TIMING", "1"),),
}
HEADER = f"{'with':14}  {'req/s without':>13}  {'with':>9}  {'ratio':>6}  {'µs without':>10}  {'with':>7}  {'ratio':>6}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure what tracing and Server-Timing cost a small request.")
    parser.add_argument("--only", action="append", choices=list(WAYS), help="measure this one; may be given again")
    options.add_measuring(parser, ROUNDS)
    parsed = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results: dict[str, Result] = {}
    try:
        where = machine.describe()
        print(machine.brief(where))
        ROW.load.check()
        with _collector() as endpoint:
            for way in parsed.only or WAYS:
                variables = (*WAYS[way], ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint))
                with_it = servers.Checkout(f"with {way}", ROOT, variables=variables)
                without = servers.Checkout("without", ROOT)
                results[way] = compare(ROW, without, with_it, parsed.rounds, parsed.seconds)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print("\n".join(["", HEADER, "-" * len(HEADER), *(_line(way, result) for way, result in results.items())]))
    missed = "no-exporter" in results and _ratio(results["no-exporter"]) < BAR
    if missed:
        print(f"below the bar: tracing that nobody is told of is at less than {BAR}")
    return 1 if missed else 0


def _ratio(result: Result) -> float:
    """Return what is left of an echo without: by processor time, where it is known."""
    costs = (result.theirs_cost, result.ours_cost)
    if costs[0] is None or costs[1] is None:
        return result.ratio
    return (costs[0].server + costs[0].workers) / (costs[1].server + costs[1].workers)


def _line(way: str, result: Result) -> str:
    costs = [result.theirs_cost, result.ours_cost]
    shown = ["not known" if cost is None else f"{cost.server + cost.workers:.1f}" for cost in costs]
    without, present = (format(number, ",.0f") for number in (result.theirs("per_second"), result.ours("per_second")))
    return (
        f"{way:14}  {without:>13}  {present:>9}  {result.ratio:6.3f}  {shown[0]:>10}  {shown[1]:>7}"
        f"  {_ratio(result):6.3f}"
    )


class _Swallows(http.server.BaseHTTPRequestHandler):
    """Takes spans, and looks at none."""

    def do_POST(self) -> None:
        """Take one request."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _collector() -> Iterator[str]:
    """Run a collector for the time of a block; yield its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Swallows) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    sys.exit(main())
