"""One line, or one JSON object, for each interval: for files, pipes, and terminals without rich."""

from __future__ import annotations

import json
import time

from mosec_asgi.cli.faults import CommandError
from mosec_asgi.cli.output import output
from mosec_asgi.cli.top import view
from mosec_asgi.cli.top.source import Source, SourceError
from mosec_asgi.cli.top.watch import Watch
from mosec_asgi.host import standard_streams


def run(source: Source, interval: float, *, once: bool, as_json: bool) -> int:
    """Write until nobody reads any more, or once.

    Raises:
        CommandError: it is to be once, and the service does not answer.
    """
    watch = Watch()
    try:
        look(source, watch)
        while True:
            if once and watch.fault:
                raise CommandError(f"{source.name}: {watch.fault}")
            time.sleep(interval)
            look(source, watch)
            if as_json:
                print(json.dumps(view.as_dict(watch, time.time())), flush=True)
            elif not once:
                print(view.line(watch, time.time()), flush=True)
            elif not watch.fault:
                _write_tables(source, watch)
            if once and not watch.fault:
                return 0
    except BrokenPipeError:
        # Whoever has read has had enough, as `head` has.
        standard_streams.drop_output()
        return 0


def look(source: Source, watch: Watch) -> None:
    """Ask the service, and take what it answers, or that it does not."""
    try:
        watch.answered(source.report(), time.monotonic(), time.time())
    except SourceError as error:
        watch.lost(str(error), time.time())


def _write_tables(source: Source, watch: Watch) -> None:
    out = output()
    out.line(source.name)
    for each in view.summary(watch):
        out.line("  ".join(f"{name} {value}" for name, value, _ in each))
    out.line()
    heads = [column.head for column in view.COLUMNS]
    out.table(heads, [[column.text(row) for column in view.COLUMNS] for row in view.rows(watch)])
    out.table(["ROUTE", "ANSWERS/S"], view.routes(watch, 50))
