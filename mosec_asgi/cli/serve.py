"""`mosec-asgi serve`: runs a service, and in development runs it anew after each edit."""

from __future__ import annotations

import socket
from threading import Thread
from typing import Any

import click

from mosec_asgi import log
from mosec_asgi.cli import settings as service_settings
from mosec_asgi.cli.banner import show
from mosec_asgi.cli.loading import load_server, server_arguments
from mosec_asgi.cli.output import output
from mosec_asgi.config import Settings
from mosec_asgi.host import standard_streams
from mosec_asgi.host.handover import Handover
from mosec_asgi.host.listening import Listener
from mosec_asgi.host.run import Hosting
from mosec_asgi.server import Server

logger = log.internal_logger(__name__)


@click.command("serve")
@server_arguments
@click.option(
    "--reload",
    is_flag=True,
    help="For development: after an edit of a file start the service anew. The new one takes over when it is ready; "
    "the old one answers until then, and for longer if the new one does not start.",
)
@click.option(
    "--reload-include",
    multiple=True,
    metavar="PATTERN",
    help="With --reload: names of files that are watched as well, such as '*.json' (default: *.py, below --app-dir).",
)
@click.option("--quiet", is_flag=True, help="Show no banner; the log says what happens.")
@click.option("--control-fd", type=int, hidden=True)
@click.option("--listening-fd", type=int, hidden=True)
@service_settings.settings_options()
def command(
    server: str,
    app_dir: str,
    reload: bool,
    reload_include: tuple[str, ...],
    quiet: bool,
    control_fd: int | None,
    listening_fd: int | None,
    **options: Any,
) -> int:
    """Serve models over HTTP.

    Each setting is also an environment variable: MOSEC_PORT=8080 mosec-asgi serve app:server. The command line wins
    over the environment, and the environment over the program.
    """
    given = service_settings.given(options)
    if reload:
        from mosec_asgi.cli.reload import run

        return run(server, app_dir, given, patterns=("*.py", *reload_include), quiet=quiet)
    served = load_server(server, app_dir)
    settings = served.settings_with(given)

    def ready(listener: Listener) -> None:
        if not quiet:
            # The document of the routes may take a while to make, and requests come already.
            Thread(target=_show, args=(listener, settings, served), daemon=True).start()

    return served.serve(settings, Hosting(ready, _handover(control_fd, listening_fd)))


def _show(listener: Listener, settings: Settings, served: Server) -> None:
    """Write the banner, if somebody reads it."""
    try:
        show(output(), listener, settings, served.openapi())
    except OSError as error:
        standard_streams.drop_output()
        logger.debug("the banner could not be written: %s", error)


def _handover(control_fd: int | None, listening_fd: int | None) -> Handover | None:
    """Return what leads this process, where `cli.reload` has started it."""
    if control_fd is None:
        return None
    listening = None if listening_fd is None else socket.socket(fileno=listening_fd)
    return Handover(socket.socket(fileno=control_fd), listening)
