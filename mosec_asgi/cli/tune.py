"""`mosec-asgi tune`: its arguments, and what it shows. What it does is in `tuning`."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import signal
import threading
from collections.abc import Iterator
from typing import Any

import click

from mosec_asgi.cli.ctl import Client
from mosec_asgi.cli.faults import CommandError, UsageError
from mosec_asgi.cli.loading import load_server, server_arguments
from mosec_asgi.cli.output import GOOD, STRONG, WARN, Output, output
from mosec_asgi.defined import DEFAULT_ROUTE
from mosec_asgi.offline.faults import Halted
from mosec_asgi.route_checks import check_importable
from mosec_asgi.tuning import items as sample
from mosec_asgi.tuning import picture, text
from mosec_asgi.tuning.model import Choice
from mosec_asgi.tuning.run import Recommendation, Wanted, pipeline_of, recommend

# Exit code where no settings meet the target, or not all could be applied.
FAILED = 1
NOW, BEST = "o", "*"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s)")
_EPILOG = """\b
examples:
  mosec-asgi tune app:server --input sample.jsonl --p99 100ms
  mosec-asgi tune app:server --input sample.jsonl --throughput --plot tune.svg
  mosec-asgi tune app:server --input sample.jsonl --p99 1s --apply /run/app.sock
"""


class Seconds(click.FloatRange):
    """A number of seconds within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            # It is neither below nor above any bound.
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic in click's stubs alone
    """A time with its unit, such as 100ms or 1.5s; seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        if isinstance(value, float):
            return value
        found = _DURATION.fullmatch(str(value).strip())
        seconds = 0.0 if found is None else float(found[1]) / (1000 if found[2] == "ms" else 1)
        if not 0.0001 <= seconds <= 3600:
            self.fail(f"{value!r} is no time with its unit, such as 100ms or 1.5s (0.1ms to 3600s)", param, ctx)
        return seconds


@click.command("tune", epilog=_EPILOG)
@server_arguments
@click.option(
    "--input",
    "path",
    required=True,
    metavar="FILE",
    help=f"A sample of items, a JSON value on each line (or .csv, .parquet); the first {sample.MOST_ITEMS} are taken. "
    "- for standard input.",
)
@click.option("--column", metavar="NAME", help="What of a line is the item (default: all of it).")
@click.option("--route", metavar="PATH", help="The pipeline to tune (default: the only one).")
@click.option("--p99", type=Duration(), metavar="TIME", help="The target: 99 calls in 100 take no longer (100ms, 1s).")
@click.option("--throughput", is_flag=True, help="The target: as many calls a second as can be, whatever they take.")
@click.option(
    "--seconds",
    type=Seconds(5, 3600),
    default=90.0,
    show_default=True,
    help="For measurements and search together, beside the start of the workers.",
)
@click.option("--max-batch-size", type=click.IntRange(1, 4096), default=64, show_default=True, help="The largest.")
@click.option(
    "--max-workers",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Of a stage (default: the processors there are, or as many as are defined where those are more).",
)
@click.option("--plot", metavar="FILE", help="Also draw the plot as a file (.svg, .png); needs matplotlib.")
@click.option("--apply", "socket", metavar="SOCKET", help="Give a running service, at its admin socket, the settings.")
def command(
    server: str, app_dir: str, path: str, column: str | None, route: str | None, p99: float | None, throughput: bool,
    seconds: float, max_batch_size: int, max_workers: int | None, plot: str | None, socket: str | None,
) -> int:  # fmt: skip
    """Find num, max_batch_size, max_wait_time and max_batch_cost of a pipeline's stages.

    One worker of each stage is started and run on batches of growing size; what they take, as a + b * n, goes into a
    simulation with the service's own scheduler, and settings for the target are searched for there. Run it on the
    machine that will serve, with nothing else at work.
    """
    if (p99 is None) != throughput:
        raise UsageError("name the target: either --p99 TIME, or --throughput")
    target = math.inf if p99 is None else p99
    if plot is not None:
        picture.check(plot)
    served = load_server(server, app_dir)
    served._defined.check()
    route, pipeline = pipeline_of(served, route)
    check_importable(served._defined.routes)
    if sample.is_pipe(path):
        click.echo(f"reading {path}, a pipe, until whoever writes it has ended ...", err=True)
    items = sample.read(path, column)
    client = None if socket is None else Client(socket)
    if client is not None:
        client.ask("GET", "/status")
    wanted = Wanted(target, seconds, max_batch_size, max_workers)
    try:
        with _interrupted_by_sigterm():
            found = recommend(served, route, pipeline, items, wanted, lambda told: click.echo(f"{told} ...", err=True))
    except Halted as error:
        raise CommandError(str(error)) from error
    out = output()
    _show(found, target, out)
    if plot is not None:
        picture.draw(plot, {"as defined": found.now_curve, "recommended": found.curve}, target)
        out.line(f"plot written to {plot}")
    if not found.found.rate:
        return FAILED
    _show_remedy(server, path, found, socket, out)
    return 0 if client is None else _apply(client, found, out)


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end a block as ctrl-c does: workers are stopped, and their files removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(found: Recommendation, target: float, out: Output) -> None:
    learned = ("stage", "a batch takes", "fit", "measured up to", "CPU", "memory")
    out.table(learned, [_learned(found, place) for place in range(len(found.models))], "What was measured")
    _warn(found, out)
    out.table(("stage", "setting", "as defined", "recommended"), _changes(found), "Settings")
    wanted = "without a bound on latency" if math.isinf(target) else f"with p99 <= {target * 1000:g} ms"
    _show_rate(found, wanted, out)
    out.line()
    for line in text.plotted({NOW: found.now_curve, BEST: found.curve}, target):
        out.line(line)
    out.line(f"{BEST} recommended, {NOW} as defined{'' if math.isinf(target) else ', - the target'}; simulated")
    out.line()


def _learned(found: Recommendation, place: int) -> tuple[str, ...]:
    model, measured = found.models[place], found.measured[place]
    line = model.line
    unit = "unit of cost" if model.by_cost else "item"
    takes = f"{line.fixed * 1000:.3g} ms + {line.slope * 1000:.3g} ms an {unit}".replace("an unit", "a unit")
    if not model.batched:
        takes = f"{line.at(1) * 1000:.3g} ms, one item at a time"
    fit = f"within {line.error:.1%}, at most {line.worst:.0%} off at {line.worst_at:g}"
    return (
        model.name, takes, fit, f"batches of {measured.most}", f"{model.cpu:.2f}", f"{model.memory / 1e6:.0f} MB",
    )  # fmt: skip


def _warn(found: Recommendation, out: Output) -> None:
    machine = found.machine
    out.line(
        f"Assumed: {machine.cores:g} processors, {machine.memory / 1e9:.1f} GB and at most {machine.most} workers a "
        "stage (--max-workers). Workers share processors as CPU says, and nothing else: where they share a GPU, a disk "
        "or a service, set --max-workers to what that takes."
    )
    if found.factor > 1:
        out.line(
            f"warning: the workers take {found.factor:.1f} times the processors there are; all times are reckoned as "
            "that much longer",
            WARN,
        )
    for model, measured in zip(found.models, found.measured, strict=True):
        if measured.refused:
            out.line(f"warning: {model.name} refused {measured.refused} items: {measured.why_refused}", WARN)
        if measured.ended:
            out.line(f"{model.name}: no larger batch was measured: {measured.ended}")
        if model.line.scatters:
            out.line(
                f"warning: the times of {model.name} scatter: half of its batches are off by more than "
                f"{model.line.error:.0%}. What was calculated takes each as the usual one: the slow ones, and with "
                "them p99, will be worse; verify under load",
                WARN,
            )
        if model.line.is_poor:
            out.line(
                f"warning: the time of {model.name} does not fit a line: at {model.line.worst_at:g} it is off by "
                f"{model.line.worst:.0%}; take the figures as rough ones, or measure longer (--seconds)",
                WARN,
            )
        if model.budgeted and not hasattr(found.runtimes[0].worker, "cost_of_body") and model is found.models[0]:
            out.line(
                f"{model.name} counts an item's cost over HTTP by the bytes of its body; define cost_of_body, so that "
                "max_batch_cost means the same there"
            )
    if not found.found.whole:
        out.line("warning: the search ended before it was through; --seconds gives it longer", WARN)
    out.line()


def _changes(found: Recommendation) -> list[tuple[str, ...]]:
    rows = []
    for model, now, best in zip(found.models, found.now, found.found.choices, strict=True):
        names = ["num", *(["max_batch_size", "max_wait_time"] if model.batched else [])]
        values = {"num": (now.num, best.num), "max_batch_size": (now.size, best.size)}
        values |= {"max_wait_time": (now.wait, best.wait), "max_batch_cost": (now.budget, best.budget)}
        for name in [*names, *(["max_batch_cost"] if model.budgeted else [])]:
            rows.append((model.name, name, *map(str, values[name])))
    return rows


def _show_rate(found: Recommendation, wanted: str, out: Output) -> None:
    best = found.found
    if not best.rate:
        out.line(
            f"No settings meet the target: with next to no load, the p99 is {best.played.p99 * 1000:.3g} ms at best. "
            f"Ask for more than that, as --p99 {math.ceil(best.played.p99 * 1500)}ms, or make the model quicker.",
            WARN,
        )
        return
    now = _rate(found.now_rate) if found.now_rate else "none"
    out.line(f"{_rate(best.rate)} calls a second {wanted}; as defined: {now}", STRONG)
    out.line(
        f"at {_rate(best.played.rate)} a second: p50 {best.played.p50 * 1000:.3g} ms, p99 {best.played.p99 * 1000:.3g} "
        f"ms; mean batches {', '.join(f'{size:.1f}' for size in best.played.batches)} ({best.tried} settings tried)"
    )


def _rate(calls: float) -> str:
    """Return calls a second as text; a few of them with their fractions."""
    return f"{calls:,.0f}" if calls >= 10 else f"{calls:.2g}"


def _show_remedy(server: str, path: str, found: Recommendation, socket: str | None, out: Output) -> None:
    out.line("Write (what else you define stays as it is):", STRONG)
    for runtime, choice in zip(found.runtimes, found.found.choices, strict=True):
        line = text.append_worker(runtime, choice)
        if found.route != DEFAULT_ROUTE:
            line = f"{line[:-1]}, route={found.route!r})"
        out.line(f"  {line}")
    out.line("Verify (oha sends the load: https://github.com/hatoo/oha):", STRONG)
    out.line(f"  mosec-asgi serve {shlex.quote(server)} --port 8000 &")
    out.line(
        f"  oha --no-tui -z 30s -q {max(1, int(found.found.played.rate * 0.9))} -c 500 --latency-correction -m POST "
        f"-Z {shlex.quote(path)} http://127.0.0.1:8000{found.route}"
    )
    out.line("  mosec-asgi top http://127.0.0.1:8000")
    out.line(f"  mosec-asgi map {shlex.quote(server)} --input {shlex.quote(path)} --output out.jsonl  # throughput")
    if socket is None:
        out.line("Or change a service that runs, by the same command with --apply SOCKET")
    out.line()


def _apply(client: Client, found: Recommendation, out: Output) -> int:
    """Ask a running service for what can be changed while it serves; return the exit code."""
    failed = False
    try:
        there = client.ask("GET", "/status")
    except CommandError as error:
        raise CommandError(f"nothing was changed, and what to write is said above: {error}") from error
    for model, now, best in zip(found.models, found.now, found.found.choices, strict=True):
        stage = next((stage for stage in there["stages"] if stage["name"] == model.name), None)
        if stage is None:
            raise CommandError(f"the service at the socket has no stage {model.name}; is it this one?")
        for path, fields in _asked(model.name, stage, there["values"][model.name], best, batched=model.batched):
            told = " ".join(f"{name}={value}" for name, value in fields.items() if name != "stage")
            try:
                client.ask("POST", path, fields)
            except CommandError as error:
                failed = True
                out.line(f"{model.name}: {told} was refused: {error}", WARN)
            else:
                out.line(f"{model.name}: {told}", GOOD)
        if best.budget != now.budget:
            failed = True
            out.line(
                f"{model.name}: max_batch_cost={best.budget} cannot be changed while it serves; write it, and restart",
                WARN,
            )
    return FAILED if failed else 0


def _asked(
    name: str, stage: dict[str, Any], values: dict[str, Any], best: Choice, *, batched: bool
) -> list[tuple[str, dict[str, Any]]]:
    """Return what is to be asked for, as far as it differs from what there is."""
    asked: list[tuple[str, dict[str, Any]]] = []
    wanted = {"max_batch_size": best.size, "max_wait_time": best.wait} if batched else {}
    if differ := {key: value for key, value in wanted.items() if values[key] != value}:
        asked.append(("/configure", {"stage": name, **differ}))
    if stage["wanted"] != best.num:
        asked.append(("/scale", {"stage": name, "num": best.num}))
    return asked
