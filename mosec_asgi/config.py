"""The settings of a service: keyword < `MOSEC_*` environment < command line, read and checked in one place.

One table, the fields of `Settings`, drives the three sources, the checks and `--help`. Only this module reads the
environment (the settings, and where prometheus_client is to count) and looks at arguments; nothing else does.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mosec_asgi import log
from mosec_asgi.errors import DefinitionError

if TYPE_CHECKING:
    import argparse

ENV_PREFIX = "MOSEC_"
# Seconds that stand for no limit: timers and deadlines need a number.
NO_LIMIT = 365 * 24 * 3600.0
# Seconds that a service without a timeout gives to its requests when it stops.
GRACE_SECONDS = 30.0
LOG_LEVELS = ("debug", "info", "warning", "error")
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}
# What Kubernetes sets MOSEC_PORT to in the pods beside a Service of that name.
_KUBERNETES = re.compile(r"(tcp|udp|sctp)://")
# How other servers call a flag of ours.
_SYNONYMS = {
    "host": "address", "hostname": "address", "bind": "address", "listen": "address", "loglevel": "log-level",
}  # fmt: skip
# Letters from which on a flag with one wrong letter is no other word.
_LONG_FLAG = 6

logger = log.internal_logger(__name__)


def _setting(
    default: Any,
    text: str,
    *,
    least: int | None = None,
    most: int | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    return field(default=default, metadata={"help": text, "least": least, "most": most, "choices": choices})


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a service. Each is also an environment variable and a command line flag."""

    capacity: int = _setting(1024, "requests admitted and not yet answered; beyond it the answer is 429", least=1)
    timeout: int = _setting(
        3000,
        "milliseconds that a request may take from its arrival, then the answer is 408; 0 sets no limit",
        least=0,
    )
    wait: int = _setting(
        10,
        "milliseconds that a batch may wait to fill where a stage sets no max_wait_time of its own",
        least=0,
    )
    start_timeout: int = _setting(
        1_800_000, "milliseconds that a worker may take to load and warm up; then it is killed and tried again", least=1
    )
    event_timeout: int = _setting(
        0, "milliseconds that may pass between two events of a stream; 0 for as many as `timeout`", least=0
    )
    stall_timeout: int = _setting(
        30_000,
        "milliseconds that a client may leave its answer, or a stream's full buffer, unread; then it is ended",
        least=1,
    )
    stream_buffer: int = _setting(
        256 * 1024, "bytes of a stream that may wait for its client; beyond it the stream is paused", least=1024
    )
    load_shedding: bool = _setting(
        True,
        "answer 429 at once to requests that cannot be finished in time at the measured speed of the workers, and "
        "begin none that cannot any more",
    )
    address: str = _setting("0.0.0.0", "address to listen on")
    port: int = _setting(8000, "port to listen on; 0 for any that is free", least=0, most=65535)
    http: str = _setting(
        "auto",
        "how HTTP is spoken: auto for the short ways of this package where the versions of uvicorn and its parsers are "
        "known to work with them, plain for uvicorn's own way, which is slower",
        choices=("auto", "plain"),
    )
    namespace: str = _setting("mosec_service", "prefix of the metrics' names")
    log_level: str = _setting("info", "least level to log", choices=LOG_LEVELS)
    debug: bool = _setting(False, "log at level debug, as text instead of JSON lines; coloured on a terminal")
    access_log: bool = _setting(
        False, "log a line for each request: its method, path, status, duration and id; never what it holds"
    )
    dry_run: bool = _setting(
        False, "start one worker a stage, send each pipeline its first worker's example once, report and exit"
    )
    compression: bool = _setting(False, "read gzip and zstd requests, compress responses where the client accepts it")
    max_request_size: int = _setting(
        10 * 1024 * 1024, "bytes of a request's body; beyond it the answer is 413", least=1
    )
    body_memory: int = _setting(
        0,
        "bytes of requests' bodies that may be held at one time, those of requests that wait for a worker included; "
        "what finds no room is answered 503; 0 for a quarter of the memory that the process may use",
        least=0,
    )
    keep_alive: int = _setting(
        75_000, "milliseconds that a connection may be silent between two requests; then it is closed", least=1
    )
    read_timeout: int = _setting(
        20_000,
        "milliseconds for a request's head to arrive, and as many for the beginning of its body, or for a pause in it; "
        "then the answer is 408",
        least=1,
    )
    least_rate: int = _setting(
        1000,
        "bytes a second at which a body has to arrive after `read_timeout`, and an answer to be taken after "
        "`stall_timeout`",
        least=1,
    )
    max_head_size: int = _setting(
        64 * 1024, "bytes of a request line and its headers; beyond it the answer is 431", least=4096
    )
    max_url_size: int = _setting(16 * 1024, "bytes of a path with its query; beyond it the answer is 414", least=16)
    pipelined: int = _setting(
        32,
        "requests of one connection that may wait for their turn, and that are begun before other connections have "
        "theirs",
        least=1,
    )
    shared_memory: int = _setting(
        256 * 1024 * 1024,
        "bytes of shared memory that the server, and each worker, may fill with payloads of 64 KiB and more; what "
        "finds no room goes through the pipe; 0 turns it off",
        least=0,
        most=1 << 40,
    )
    strict_json: bool = _setting(
        False,
        "refuse bodies that are no strict JSON (RFC 8259): NaN, Infinity, a byte order mark, UTF-16, lone surrogates, "
        "which are otherwise read as Python's json reads them",
    )
    title: str = _setting("mosec-asgi service", "title of the OpenAPI document")
    version: str = _setting("", "version of the service in the OpenAPI document; that of mosec-asgi where it is empty")
    path: str = _setting("", "accepted for mosec's sake and not used: workers are reached over unnamed socket pairs")

    @property
    def timeout_seconds(self) -> float:
        """The service timeout in seconds; `NO_LIMIT` where there is none."""
        return self.timeout / 1000 or NO_LIMIT

    @property
    def event_timeout_seconds(self) -> float:
        """The longest gap between two events of a stream, in seconds."""
        return (self.event_timeout or self.timeout) / 1000 or NO_LIMIT

    @property
    def grace_seconds(self) -> float:
        """The seconds that admitted requests get when the service stops: the timeout, and a bound where it is none."""
        return self.timeout / 1000 or GRACE_SECONDS

    @property
    def effective_log_level(self) -> str:
        """`log_level`, or debug where `debug` is set."""
        return "debug" if self.debug else self.log_level


FIELDS = {f.name: f for f in dataclasses.fields(Settings)}
# Said once here rather than guessed from annotations, which are text under `from __future__ import annotations`.
_TYPES: dict[str, type] = {name: type(f.default) for name, f in FIELDS.items()}


def _checked(name: str, value: Any, source: str) -> Any:
    """Return `value` as the type of setting `name`; raise `DefinitionError` naming `source` and the remedy."""
    wanted = _TYPES[name]
    if isinstance(value, str) and wanted is not str:
        value = _parsed(name, value, wanted, source)
    if isinstance(value, bool) != (wanted is bool) or not isinstance(value, wanted):
        raise DefinitionError(f"{source} must be {wanted.__name__}, not {value!r} ({type(value).__name__})")
    meta = FIELDS[name].metadata
    if meta["least"] is not None and value < meta["least"]:
        raise DefinitionError(f"{source} must be at least {meta['least']}, not {value}")
    if meta["most"] is not None and value > meta["most"]:
        raise DefinitionError(f"{source} must be at most {meta['most']}, not {value}")
    if meta["choices"] is not None and value not in meta["choices"]:
        raise DefinitionError(f"{source} must be one of {', '.join(meta['choices'])}, not {value!r}")
    return value


def _parsed(name: str, text: str, wanted: type, source: str) -> Any:
    if wanted is bool:
        if text.lower() not in _TRUE | _FALSE:
            raise DefinitionError(f"{source} must be true or false, not {text!r}")
        return text.lower() in _TRUE
    try:
        return wanted(text)
    except ValueError:
        raise DefinitionError(f"{source} must be a whole number, not {text!r}") from None


def check_keywords(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Check the settings that were passed as keywords.

    Raises:
        DefinitionError: a name is no setting, or a value does not fit.
    """
    unknown = sorted(set(keywords) - set(FIELDS))
    if unknown:
        raise DefinitionError(f"unknown setting {', '.join(unknown)}; the settings are {', '.join(FIELDS)}")
    return {name: _checked(name, value, f"Server({name}=...)") for name, value in keywords.items()}


def resolve(
    keywords: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    command_line: Mapping[str, Any] | None = None,
) -> Settings:
    """Combine the sources into the settings of a service.

    Args:
        keywords: from the program; the weakest.
        environment: variables by name; None reads the process's own.
        command_line: what `parse_command_line` returned; the strongest.

    Raises:
        DefinitionError: a value does not fit; the text names its source.
    """
    environment = os.environ if environment is None else environment
    values = check_keywords(keywords)
    for name in FIELDS:
        variable = ENV_PREFIX + name.upper()
        # An empty variable counts as none, as in mosec.
        if text := environment.get(variable):
            if name == "port" and _KUBERNETES.match(text):
                _warn_of_kubernetes(variable, text)
            else:
                values[name] = _checked(name, text, f"the environment variable {variable}")
    for name, value in (command_line or {}).items():
        values[name] = _checked(name, value, f"the argument --{name.replace('_', '-')}")
    return Settings(**values)


@functools.cache
def _warn_of_kubernetes(variable: str, text: str) -> None:
    """Say, once, that a variable is not taken for a setting."""
    log.prepare()
    logger.warning(
        "the environment variable %s=%s is no port: Kubernetes sets it for a Service that is named `mosec`, and it is "
        "ignored here; set the port by --port or Server(port=...), or give the pod `enableServiceLinks: false`",
        variable,
        text,
    )


def logging_wishes() -> tuple[str, bool]:
    """Return the level, and whether to log as text, as far as the environment and the command line tell them.

    For what is logged before a service is started; what does not fit is refused then.
    """
    level, debug = os.environ.get(ENV_PREFIX + "LOG_LEVEL", ""), os.environ.get(ENV_PREFIX + "DEBUG", "").lower()
    arguments = sys.argv[1:] if hasattr(sys, "argv") else []
    for place, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag == "--log-level":
            level = value or (arguments[place + 1] if place + 1 < len(arguments) else "")
    text = debug in _TRUE or "--debug" in arguments
    if text:
        return "debug", True
    return (level if level in LOG_LEVELS else str(FIELDS["log_level"].default)), False


log.before_start(logging_wishes)


def prometheus_directory() -> str | None:
    """Return the directory that the user has set up for prometheus_client's multiprocess mode, or None."""
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR") or None


def build_parser(settings: Settings, program: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of a service's command line; `settings` are the defaults that `--help` shows."""
    # Only here: workers load this module, and have no command line.
    import argparse

    parser = argparse.ArgumentParser(
        prog=program,
        description="Serve the models of this program.",
        epilog="Each setting is also an environment variable: MOSEC_PORT=8080 MOSEC_TIMEOUT=5000 python server.py. "
        "The command line wins over the environment, and the environment over the program.",
        allow_abbrev=False,
    )
    for name, f in FIELDS.items():
        flag = "--" + name.replace("_", "-")
        text = f"{f.metadata['help']} (default: {getattr(settings, name)!r})".replace("%", "%%")
        if _TYPES[name] is bool:
            # What is on by default can be turned off: --no-load-shedding.
            action = argparse.BooleanOptionalAction if f.default else "store_true"
            parser.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
        else:
            parser.add_argument(
                flag,
                type=_TYPES[name],
                default=argparse.SUPPRESS,
                choices=f.metadata["choices"],
                help=text,
                metavar=None if f.metadata["choices"] else name.upper(),
            )
    return parser


def parse_command_line(settings: Settings, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Read the server's own flags and leave all others to the user's program.

    Args:
        settings: the defaults to show in `--help`.
        arguments: the command line; None reads the process's own.

    Returns:
        the settings that were given, by name.
    """
    known, others = build_parser(settings).parse_known_args(arguments)
    for argument in others:
        if meant := _meant_by(argument):
            raise DefinitionError(f"unknown argument {argument.partition('=')[0]}; did you mean --{meant}?")
    return vars(known)


def _meant_by(argument: str) -> str | None:
    """Return the flag of ours, without its dashes, that an argument is a slip of; None for one of the user's own."""
    if not argument.startswith("--"):
        return None
    name = argument[2:].partition("=")[0].replace("_", "-").lower()
    flags = [field.replace("_", "-") for field in FIELDS]
    return _SYNONYMS.get(name) or next((flag for flag in flags if _is_slip(name, flag)), None)


def _is_slip(name: str, flag: str) -> bool:
    """Whether a name is a flag with one slip: two letters swapped, one left out or doubled; in a long flag any letter.

    A plural is no slip, nor is another word that differs by a letter, as `--sort` from `--port` or `--patch` from
    `--path`: they may be flags of the user's program.
    """
    if name == flag:
        # In capitals, or with underscores.
        return True
    if name == flag + "s":
        return False
    places = range(len(flag))
    slips = {flag[:p] + flag[p + 1 : p + 2] + flag[p] + flag[p + 2 :] for p in places}
    slips |= {flag[:p] + flag[p + 1 :] for p in places}
    slips |= {flag[:p] + flag[p] + flag[p:] for p in places}
    if name in slips:
        return True
    if len(flag) < _LONG_FLAG or not -1 <= len(name) - len(flag) <= 1:
        return False
    # The same but for one letter, wherever it is.
    same = next((p for p, (a, b) in enumerate(zip(name, flag, strict=False)) if a != b), min(len(name), len(flag)))
    rest, other = name[same:], flag[same:]
    return rest[1:] == other[1:] or rest[1:] == other


def from_command_line(keywords: Mapping[str, Any]) -> Settings:
    """Return the settings of a program that is run by hand; a wrong one ends it with status 2 and the reason."""
    parser = build_parser(Settings())
    try:
        below = resolve(keywords)
        parser = build_parser(below)
        return resolve(keywords, command_line=parse_command_line(below))
    except DefinitionError as error:
        parser.error(str(error))
