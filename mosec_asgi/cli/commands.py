"""The names of the commands. The module of each is imported when it is called, so that `--help` stays quick."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import click

from mosec_asgi.version import __version__


class Entry(NamedTuple):
    """A command.

    Attributes:
        module: of this package, whose `command` it is.
        summary: what it does, in a few words, for the list of commands.
    """

    module: str
    summary: str


COMMANDS = {
    "serve": Entry("serve", "serve models over HTTP; --reload for development"),
    "engine": Entry("engine", "run the models for several web processes, which others start"),
    "check": Entry("check", "show what a service would be, and warn of what may be wrong; starts nothing"),
    "dry-run": Entry("dry_run", "start one worker a stage, and send each pipeline its example once"),
    "top": Entry("top.command", "watch a service that runs: throughput, latency, queues, batches, workers"),
    "new": Entry("new", "make a folder with a small service and its test, to start from"),
    "openapi": Entry("openapi", "print a service's OpenAPI document, or check a file that holds it"),
    "ctl": Entry("ctl", "see a running service, and change it: status, scale, configure, restart"),
    "tune": Entry("tune", "find workers, batch sizes and waits for a latency, or for throughput"),
    "map": Entry("map", "run a model over a file"),
}


class Commands(click.Group):
    """The commands of `COMMANDS`, in that order."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"mosec_asgi.cli.{COMMANDS[cmd_name].module}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.group("mosec-asgi", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mosec-asgi", message="%(prog)s %(version)s")
def commands() -> None:
    """Serve models, and look after the services that do.

    MODULE:SERVER says where a service is: `app:server` is the `server` in app.py.
    """
