"""`mosec-asgi ctl`: a running service is seen and changed, over its admin socket."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Mapping
from typing import Any

import click

from mosec_asgi.cli.faults import CommandError, UsageError
from mosec_asgi.cli.output import Output, output
from mosec_asgi.config import ENV_PREFIX

# Seconds to connect, and for the status; a change takes as long as models load.
SECONDS = 10.0
# Values that `configure` takes, and how each is read.
VALUES = {"max_batch_size": int, "max_wait_time": int, "timeout": float, "latency_target": float}


class Client:
    """Asks a service at its admin socket."""

    def __init__(self, path: str) -> None:
        """Prepare to ask at a path."""
        self._path = path

    def ask(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what the service answers.

        Raises:
            CommandError: it cannot be asked, or has refused; the text says why.
        """
        connection = _Connection(self._path, SECONDS if fields is None else None)
        try:
            connection.request(method, path, None if fields is None else json.dumps(fields))
            response = connection.getresponse()
            status, answer = response.status, json.loads(response.read())
        except FileNotFoundError:
            raise CommandError(
                f"there is no socket at {self._path}: does the service run, with --admin-socket {self._path}?"
            ) from None
        except PermissionError:
            raise CommandError(
                f"the socket at {self._path} is another user's; use it as that user, or as root"
            ) from None
        except ConnectionRefusedError:
            raise CommandError(f"nobody listens at {self._path}: the service has ended") from None
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            raise CommandError(
                f"the service at {self._path} has closed the connection: it has stopped, is another user's, or has "
                "too much to answer at this socket"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = " ".join(str(error).split())
            raise CommandError(f"what listens at {self._path} is no admin socket that answers: {why}") from error
        finally:
            connection.close()
        if status >= http.client.BAD_REQUEST:
            raise CommandError(str(answer.get("error", answer)) if isinstance(answer, dict) else str(answer))
        return dict(answer)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, seconds: float | None) -> None:
        super().__init__("localhost")
        self._path = path
        self._seconds = seconds

    def connect(self) -> None:
        """Connect to the socket; what takes its time is only what is asked then."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)
        self.sock.settimeout(self._seconds)


@click.group("ctl")
@click.option(
    "--socket",
    "path",
    metavar="PATH",
    help=f"The service's setting admin_socket; {ENV_PREFIX}ADMIN_SOCKET where it is left out.",
    envvar=f"{ENV_PREFIX}ADMIN_SOCKET",
)
@click.pass_context
def command(context: click.Context, path: str | None) -> None:
    """See a running service, and change it without losing a call.

    STAGE is the name of a stage, as in /metrics (Inference_2), or its number there (2).
    """
    if not path:
        raise UsageError("name the admin socket of the service: --socket PATH, as in its setting admin_socket")
    context.obj = Client(os.path.abspath(path))


@command.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print all that the service tells, as JSON.")
@click.pass_obj
def status(client: Client, as_json: bool) -> None:
    """Show the stages, their workers, and what they have to do."""
    told = client.ask("GET", "/status")
    if as_json:
        click.echo(json.dumps(told, indent=2))
    else:
        _show(told, output())


@command.command("scale")
@click.argument("stage")
@click.argument("num", type=int)
@click.pass_obj
def scale(client: Client, stage: str, num: int) -> None:
    """Have NUM workers of a stage; returns when they are ready, or those that were too many have ended."""
    client.ask("POST", "/scale", {"stage": stage, "num": num})
    click.echo(f"{stage} has {num} workers")


@command.command("configure")
@click.argument("stage")
@click.argument("values", metavar="KEY=VALUE...", nargs=-1, required=True)
@click.pass_obj
def configure(client: Client, stage: str, values: tuple[str, ...]) -> None:
    """Give a stage other values: max_batch_size, max_wait_time (ms), timeout (s), latency_target (ms).

    For another max_batch_size or timeout the workers are replaced, one after the other.
    """
    client.ask("POST", "/configure", {"stage": stage, **dict(map(_value, values))})
    click.echo(f"{stage} has {' '.join(values)}")


@command.command("restart")
@click.argument("stage", required=False)
@click.pass_obj
def restart(client: Client, stage: str | None) -> None:
    """Replace the workers of a stage, or of all, one after the other, and return when all have been replaced.

    Each is ready before the one that it replaces is given no more calls.
    """
    client.ask("POST", "/restart", {} if stage is None else {"stage": stage})
    click.echo(f"the workers of {stage or 'all stages'} have been replaced")


def _value(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    if not equals or name not in VALUES:
        raise UsageError(f"{text!r} must be KEY=VALUE, with KEY one of {', '.join(VALUES)}")
    try:
        return name, VALUES[name](value)
    except ValueError:
        kind = "a whole number" if VALUES[name] is int else "a number"
        raise UsageError(f"{name} must be {kind}, not {value!r}") from None


def _show(told: Mapping[str, Any], out: Output) -> None:
    out.line(f"process {told['pid']}: {told['state']}, {told['uptime']:.0f} s, {told['admitted']} calls admitted")
    out.line()
    columns = ("stage", "workers", "ready", "draining", "restarts", "queued", "in flight", "values")
    out.table(columns, [_row(stage, told["values"]) for stage in told["stages"]])


def _row(stage: Mapping[str, Any], values: Mapping[str, Mapping[str, float]]) -> list[str]:
    counts = [str(stage[name]) for name in ("wanted", "ready", "draining", "restarts", "queued", "in_flight")]
    goes_by = " ".join(f"{name}={value:g}" for name, value in values[stage["name"]].items())
    return [stage["name"], *counts, goes_by]
