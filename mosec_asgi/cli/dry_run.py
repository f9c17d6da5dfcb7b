"""`mosec-asgi dry-run`: each pipeline once, with its first worker's example."""

from __future__ import annotations

from typing import Any

import click

from mosec_asgi.cli import settings as service_settings
from mosec_asgi.cli.loading import load_server, server_arguments


@click.command("dry-run")
@server_arguments
@service_settings.settings_options(without=frozenset({"dry_run"}))
def command(server: str, app_dir: str, **options: Any) -> int:
    """Start one worker a stage, send each pipeline its first worker's example once, report, and stop.

    Exits with 1 where a worker does not start, or an example is not answered.
    """
    served = load_server(server, app_dir)
    return served.serve(served.settings_with({**service_settings.given(options), "dry_run": True}))
