"""The command line `mosec-asgi`: one module a command.

    commands.py     the names of the commands; a command's module is imported when it is called
    loading.py      MODULE:SERVER, and the server that it names
    faults.py       what ends a command, as exceptions that tell the user what to do

`main` leads from the arguments to the exit code. What goes wrong becomes one line on standard error there, and nowhere
else.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import click

from mosec_asgi import config, log
from mosec_asgi.cli.commands import commands
from mosec_asgi.cli.faults import BrokenModule, CommandError, UsageError
from mosec_asgi.errors import DefinitionError, MosecError, StartupError
from mosec_asgi.host import standard_streams
from mosec_asgi.offline.faults import WrongUse

PROGRAM = "mosec-asgi"
FAILED = 1
WRONG_USE = 2
# What a shell gives a program that ctrl-c has ended.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes the process's own.

    Returns:
        the exit status: 0, or what the command says, as 1 where it has failed, or a check found a difference. A wrong
        command line gives 2.
    """
    standard_streams.open_missing()
    log.configure("warning", text=True)
    try:
        code = commands.main(None if arguments is None else list(arguments), PROGRAM, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return WRONG_USE
    except click.ClickException as error:
        _say(_of_click(error))
        return error.exit_code
    except (UsageError, WrongUse, DefinitionError) as error:
        _say(str(error))
        return WRONG_USE
    except BrokenModule as error:
        sys.stderr.write(error.trace)
        _say(str(error))
        return FAILED
    except (CommandError, MosecError, StartupError) as error:
        _say(str(error))
        return FAILED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _say(f"what it has to say cannot be written: {error.strerror}")
        standard_streams.drop_output()
        return FAILED
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED


def _say(text: str) -> None:
    print(f"{PROGRAM}: error: {text}", file=sys.stderr)


def _of_click(error: click.ClickException) -> str:
    """Return what is wrong as one line, and for a wrong command line where to read on."""
    text = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption):
        meant = f"--{config.meant_by(error.option_name)}"
        if meant in _options(context):
            # As other servers call it, or nearly so.
            text = f"No such option '{error.option_name}'. Did you mean '{meant}'?"
    if isinstance(error, click.UsageError) and context is not None:
        end = " See" if text.endswith("?") else "; see"
        return f"{text.rstrip('.')}{end} {context.command_path} --help"
    return text


def _options(context: click.Context | None) -> set[str]:
    """Return the options of the command that was called."""
    return set() if context is None else {name for option in context.command.params for name in option.opts}
