"""`mosec-asgi engine`: runs the models of a service, for web processes that others start."""

from __future__ import annotations

from typing import Any

import click

from mosec_asgi.cli import settings as service_settings
from mosec_asgi.cli.loading import load_server, server_arguments

# What is a matter of the web processes.
_OF_THE_WEB = frozenset(
    {"engine", "http_processes", "address", "port", "uds", "ssl_certfile", "ssl_keyfile", "http", "dry_run", "path"}
)


@click.command("engine")
@server_arguments
@click.option(
    "--socket",
    "path",
    required=True,
    type=click.Path(),
    metavar="PATH",
    help="Unix socket at which web processes of this user find it: MOSEC_ENGINE=PATH uvicorn app:server --workers 4.",
)
@service_settings.settings_options(without=_OF_THE_WEB)
def command(server: str, app_dir: str, path: str, **options: Any) -> int:
    """Run the models of a service for several web processes.

    It loads the models once, and speaks no HTTP. The web processes are any ASGI server with the same program and
    MOSEC_ENGINE set to PATH: they can be started anew, or be more or fewer, while the models stay loaded.
    """
    served = load_server(server, app_dir)
    return served.run_engine(served.settings_with({**service_settings.given(options), "engine": ""}), path)
