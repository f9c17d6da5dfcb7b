"""The arguments of `mosec-asgi top`, and which of its forms is shown."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import click

from mosec_asgi.cli.top import lines
from mosec_asgi.cli.top.source import Source

DEFAULT_URL = "http://127.0.0.1:8000"


@click.command("top")
@click.argument("url", default=DEFAULT_URL, metavar="[URL]")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Show one interval, and exit; 1 where there is no service.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line; all times in seconds.")
@click.option("--uds", type=click.Path(path_type=Path), metavar="FILE", help="The unix socket of the service.")
@click.option("--api-key", default="", envvar="MOSEC_API_KEY", metavar="KEY", help="Also by MOSEC_API_KEY.")
@click.option("--namespace", default="", metavar="NAME", help="Prefix of the metrics, if there are several services.")
@click.option("--insecure", is_flag=True, help="Take any certificate.")
def command(
    url: str, interval: float, once: bool, as_json: bool, uds: Path | None, api_key: str, namespace: str, insecure: bool
) -> int:
    """Watch a service: throughput, latency, queues, batches, workers, refusals.

    URL is where the service is, such as http://127.0.0.1:8000 or https://host/ml; its /metrics are read. On a terminal
    this is a live view (with rich, of the extra `cli`): s and S sort by another column, r turns the order round, space
    holds it, q ends it. Elsewhere it is a line each time.
    """
    source = Source(url, uds=uds, key=api_key, namespace=namespace, insecure=insecure)
    if once or as_json or not _is_terminal() or importlib.util.find_spec("rich") is None:
        return lines.run(source, interval, once=once, as_json=as_json)
    from mosec_asgi.cli.top import screen

    return screen.run(source, interval)


def _is_terminal() -> bool:
    return sys.stdout.isatty() and sys.stdin.isatty()
