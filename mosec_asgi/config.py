"""The settings of a service: keyword < `MOSEC_*` environment < command line, read and checked in one place.

One table, the fields of `Settings`, drives the three sources, the checks and `--help`. In the server, only
this module reads the command line and the environment: these settings, and variables of prometheus_client,
OpenTelemetry and Ray.
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
# Settings that only the program makes: as flags and variables these names belong to too many programs.
KEYWORD_ONLY = frozenset({"title", "version"})
# Settings that are no flags: all users of a machine see the command lines of its programs.
NO_FLAG = frozenset({"api_keys"})
# Settings whose values are never shown.
SECRETS = frozenset({"api_keys"})
# Settings of which an empty variable is refused: it would let everybody in, where keys were meant.
NEVER_EMPTY = frozenset({"api_keys", "api_key_file"})
# The key that a client of ours sends, by a name that is easily taken for that of `api_keys`.
_CLIENT_KEY = ENV_PREFIX + "API_KEY"
# mosec's own flags, which its parser lets be abbreviated.
_MOSECS = (
    "path", "capacity", "timeout", "wait", "address", "port", "namespace", "debug", "log-level", "dry-run",
    "compression", "max-request-size",
)  # fmt: skip
# Letters of a flag from which on it is taken for an abbreviation.
_SHORTEST = 3
# Milliseconds below which a writer has probably meant seconds.
_FEW = 50
# What people write for a number of milliseconds or bytes, and how many of those it is.
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE)
_SUFFIXES = {
    "milliseconds": {"ms": 1, "s": 1000, "sec": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000},
    "bytes": {"b": 1} | {f"{letter}{end}": 1 << 10 * power for power, letter in enumerate("kmg", 1)
                         for end in ("", "b", "ib")},
}  # fmt: skip
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}
# What a member of some lists looks like, and how that is said. Anything else would match no request, and say nothing.
_ORIGIN = (
    re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@*A-Z]+"),
    "of origins as browsers send them, such as https://app.example.com or http://localhost:3000, in small letters and "
    "without a path, or * for all",
)
_HOST = (
    re.compile(r"\*|(\*\.)?[^\s/?#@*:\[\]]+|\[?[0-9a-fA-F.]*:[0-9a-fA-F.]*:[0-9a-fA-F:.]*\]?"),
    "of host names, such as api.example.com or *.example.com, without a scheme, a port or a path, or * for all",
)
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
    is_list: bool = False,
    members: tuple[str, ...] | None = None,
    form: tuple[re.Pattern[str], str] | None = None,
    secret: bool = False,
) -> Any:
    metadata = {
        "help": text, "least": least, "most": most, "choices": choices, "is_list": is_list, "members": members,
        "form": form,
    }  # fmt: skip
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a service. Each is also an environment variable and a command line flag, but `KEYWORD_ONLY`."""

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
        "milliseconds that a client may leave its answer, or a stream's full buffer, unread; then that is broken off",
        least=1,
    )
    stream_buffer: int = _setting(
        256 * 1024, "bytes of a stream that may wait for its client; beyond it the stream is paused", least=1024
    )
    drain_timeout: int = _setting(
        0,
        "milliseconds that a worker which is replaced may take to answer what it has, streams included; 0 for as many "
        "as `timeout`, or 30 s where that is none",
        least=0,
    )
    max_workers: int = _setting(
        64, "workers that a stage may be scaled to while it serves; a stage may be defined with more", least=1
    )
    admin_socket: str = _setting(
        "",
        "path of a Unix socket by which the service is seen and changed while it serves (`mosec-asgi ctl`); only for "
        "the user that it runs as, and root; empty for none",
    )
    ray_port: int = _setting(
        0,
        "TCP port to which actors of Ray (executor='ray') connect, at the address by which Ray knows this machine; 0 "
        "for any that is free",
        least=0,
        most=65535,
    )
    ray_tls: str = _setting(
        "auto",
        "whether actors of Ray connect by TLS, with the files of RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and "
        "RAY_TLS_CA_CERT of each node: auto where RAY_USE_TLS is set, as Ray's own connections; on, off",
        choices=("auto", "on", "off"),
    )
    http_processes: int = _setting(
        1,
        "web processes of `run()` and `mosec-asgi serve`; above 1 they share the models, which the main process has, "
        "and each needs about as much memory as the program without its models",
        least=1,
        most=256,
    )
    engine: str = _setting(
        "",
        "path of the Unix socket of an engine (`mosec-asgi engine`), whose models answer the requests; empty to load "
        "the models in this program",
    )
    load_shedding: bool = _setting(
        True,
        "answer 429 at once to requests that cannot be finished in time at the measured speed of the workers, and "
        "begin none that can no longer be finished in time",
    )
    priority_header: bool = _setting(
        False, "read the header x-priority, from -10 to 10: of what waits, the higher comes first"
    )
    tenant_header: str = _setting(
        "",
        "header that names the tenant of a request, such as x-fairness-key: tenants have their turns, so that a burst "
        "of one does not delay the others; empty for none",
    )
    tenant_weights: str = _setting(
        "", "shares of tenants in the work, in relation to each other, as `gold=3, free=0.5`; others have 1"
    )
    address: str = _setting("0.0.0.0", "address to listen on")
    port: int = _setting(8000, "port to listen on; 0 for any that is free", least=0, most=65535)
    uds: str = _setting("", "path of a Unix socket to listen on, in the place of an address and a port")
    ssl_certfile: str = _setting(
        "", "file of a certificate (PEM), with those above it, to speak HTTPS with; empty for HTTP"
    )
    ssl_keyfile: str = _setting("", "file of the certificate's key (PEM), where it is not in `ssl_certfile`")
    http: str = _setting(
        "auto",
        "implementation of HTTP: auto for that of this package, where the installed versions of uvicorn and its "
        "parsers are known to work with it; plain for uvicorn's own, which is slower",
        choices=("auto", "plain"),
    )
    namespace: str = _setting("mosec_service", "prefix of the metrics' names")
    log_level: str = _setting("info", "lowest level to log", choices=LOG_LEVELS)
    debug: bool = _setting(
        False, "log at level debug, as text instead of JSON lines, coloured on a terminal; show the dashboard"
    )
    dashboard: bool = _setting(
        False, "show how the service does at /dashboard/, to everybody who can reach it; `debug` shows it as well"
    )
    access_log: bool = _setting(
        False, "log a line for each request: its method, path, status, duration and id; never what it holds"
    )
    tracing: bool = _setting(
        False,
        "make spans of OpenTelemetry of requests, stages and `forward`; where they go, and how many, say the OTEL_* "
        "variables, or the program's own tracer provider; needs the extra otel",
    )
    server_timing: bool = _setting(
        False,
        "answer with the header Server-Timing: how long a request has waited at each stage, and how long that has "
        "worked on it, for a browser's network panel to show",
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
    answer_memory: int = _setting(
        0,
        "bytes of answers that clients may leave unread at one time; beyond it the connections that have read least "
        "are closed; 0 for a quarter of the memory that the process may use",
        least=0,
    )
    keep_alive: int = _setting(
        75_000, "milliseconds that a connection may be silent between two requests; then it is closed", least=1
    )
    stop_delay: int = _setting(
        500,
        "milliseconds after SIGTERM in which open connections may still bring a request, whose answer says that it is "
        "the last; after that, or at once for 0, requests are answered 503",
        least=0,
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
        "requests of one connection that may wait for their answers, and that are begun before those of other "
        "connections",
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
    api_keys: str = _setting(
        "",
        "keys of which each request must bring one, as `authorization: Bearer <key>` or `x-api-key`, with commas "
        "between them; a key may be followed by the paths that it is for: `key /inference /v1/*`",
        is_list=True,
        secret=True,
    )
    api_key_file: str = _setting(
        "", "file of API keys, one a line, of which each request must bring one; it is read again when it changes"
    )
    public: str = _setting(
        "",
        "what is answered without a key where there are keys, beside /livez and /readyz: root, metrics, docs, "
        "dashboard, with commas between them",
        is_list=True,
        members=("root", "metrics", "docs", "dashboard"),
    )
    cors_origins: str = _setting(
        "",
        "origins of the pages whose scripts may ask this service (CORS), such as https://app.example.com, with commas "
        "between them; * for all. Requests then go through ASGI, which takes longer",
        is_list=True,
        form=_ORIGIN,
    )
    allowed_hosts: str = _setting(
        "",
        "host names by which requests may ask, such as api.example.com or *.example.com, with commas between them; "
        "others are answered 400, but for health. Requests then go through ASGI, which takes longer",
        is_list=True,
        form=_HOST,
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
    def drain_seconds(self) -> float:
        """The seconds that a worker which is replaced has to answer what it has."""
        return self.drain_timeout / 1000 or self.grace_seconds

    @property
    def grace_seconds(self) -> float:
        """The seconds that admitted requests get when the service stops: the timeout, and a bound where it is none."""
        return self.timeout / 1000 or GRACE_SECONDS

    @property
    def shows_dashboard(self) -> bool:
        """Whether there is a dashboard: `dashboard`, or `debug`."""
        return self.dashboard or self.debug

    @property
    def keyed(self) -> bool:
        """Whether requests must bring a key."""
        return bool(self.api_keys or self.api_key_file)

    @property
    def effective_log_level(self) -> str:
        """`log_level`, or debug where `debug` is set."""
        return "debug" if self.debug else self.log_level


FIELDS = {f.name: f for f in dataclasses.fields(Settings)}
FLAGS = {name: "--" + name.replace("_", "-") for name in FIELDS if name not in KEYWORD_ONLY | NO_FLAG}
VARIABLES = {name: ENV_PREFIX + name.upper() for name in FIELDS if name not in KEYWORD_ONLY}
# The unit stands first in each setting's text.
_UNITS = {name: f.metadata["help"].partition(" ")[0] for name, f in FIELDS.items()}
# Said once here rather than guessed from annotations, which are text under `from __future__ import annotations`.
_TYPES: dict[str, type] = {name: type(f.default) for name, f in FIELDS.items()}


def _checked(name: str, value: Any, source: str) -> Any:
    """Return `value` as the type of setting `name`; raise `DefinitionError` naming `source` and the remedy."""
    wanted = _TYPES[name]
    meta = FIELDS[name].metadata
    if meta["is_list"]:
        return _checked_list(name, value, source)
    if isinstance(value, str) and wanted is not str:
        value = _parsed(name, value, wanted, source)
    if isinstance(value, bool) != (wanted is bool) or not isinstance(value, wanted):
        raise DefinitionError(f"{source} must be {_kind(name)}, not {value!r} ({type(value).__name__})")
    if meta["least"] is not None and value < meta["least"]:
        raise DefinitionError(f"{source} must be at least {meta['least']}, not {value}")
    if meta["most"] is not None and value > meta["most"]:
        raise DefinitionError(f"{source} must be at most {meta['most']}, not {value}")
    if meta["choices"] is not None and value not in meta["choices"]:
        raise DefinitionError(f"{source} must be one of {', '.join(meta['choices'])}, not {value!r}")
    return value


def listed(text: str) -> tuple[str, ...]:
    """Return the members of a setting that is a list."""
    return tuple(each for part in text.split(",") if (each := part.strip()))


def _checked_list(name: str, value: Any, source: str) -> str:
    """Return a list as text with commas. No message holds a member: it may be a secret."""
    if not isinstance(value, str):
        try:
            members = list(value)
        except TypeError:
            members = [None]
        if not all(isinstance(each, str) and each.strip() and "," not in each for each in members):
            raise DefinitionError(f"{source} must be a list of texts, none of them empty or with a comma in it")
        value = ",".join(members)
    text = str(value)
    if not listed(text):
        raise DefinitionError(f"{source} must have a member; leave it out for none")
    known, form = FIELDS[name].metadata["members"], FIELDS[name].metadata["form"]
    for each in listed(text):
        if known is not None and each not in known:
            raise DefinitionError(f"{source} must be of {', '.join(known)}, with commas between them, not {each!r}")
        if form is not None and not form[0].fullmatch(each):
            raise DefinitionError(f"{source} must be {form[1]}; not {each!r}")
    return text


def _parsed(name: str, text: str, wanted: type, source: str) -> Any:
    if wanted is bool:
        if text.lower() not in _TRUE | _FALSE:
            raise DefinitionError(f"{source} must be true or false, not {text!r}")
        return text.lower() in _TRUE
    try:
        return wanted(text)
    except ValueError:
        raise DefinitionError(f"{source} must be {_kind(name)}, not {text!r}{_instead(name, text)}") from None


def _kind(name: str) -> str:
    """Return what a setting must be, with its unit."""
    unit = _UNITS[name]
    number = f"a whole number of {unit}" if unit in _SUFFIXES else "a whole number"
    return {bool: "True or False", int: number, str: "text"}[_TYPES[name]]


def _instead(name: str, text: str) -> str:
    """Return what to write for a number with a unit behind it; empty where nobody can tell."""
    found = _QUANTITY.fullmatch(text.strip())
    factor = _SUFFIXES.get(_UNITS[name], {}).get(found[2].lower()) if found else None
    return f"; write {round(float(found[1]) * factor)}" if found and factor else ""


def advise(settings: Settings, environment: Mapping[str, str] | None = None) -> None:
    """Warn of settings that are valid, and probably not meant.

    Args:
        settings: of the service.
        environment: variables by name; None reads the process's own.
    """
    if (os.environ if environment is None else environment).get(_CLIENT_KEY) and not settings.keyed:
        logger.warning(
            "this service asks for no API key, though %s is set: that is what `mosec-asgi top` sends; a service "
            "takes its keys from %s or %s",
            _CLIENT_KEY,
            VARIABLES["api_keys"],
            VARIABLES["api_key_file"],
        )
    for name in ("timeout", "start_timeout", "event_timeout"):
        value = getattr(settings, name)
        if 0 < value < _FEW:
            logger.warning(
                "%s=%d is in milliseconds (%s, %s); for %d seconds write %d",
                name,
                value,
                FLAGS[name],
                ENV_PREFIX + name.upper(),
                value,
                value * 1000,
            )


def check_keywords(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Check the settings that were passed as keywords.

    Raises:
        DefinitionError: a name is no setting, or a value does not fit.
    """
    unknown = sorted(set(keywords) - set(FIELDS))
    if unknown:
        by_flag = {flag[2:]: name for name, flag in FLAGS.items()}
        near = [by_flag[meant] for name in unknown if (meant := meant_by(f"--{name}")) in by_flag]
        which = f"did you mean {', '.join(near)}? The" if near else "the"
        raise DefinitionError(f"unknown setting {', '.join(unknown)}; {which} settings are {', '.join(FIELDS)}")
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
    for name, variable in VARIABLES.items():
        text = environment.get(variable)
        if text is not None and not text.strip() and name in NEVER_EMPTY:
            raise DefinitionError(f"the environment variable {variable} is empty; unset it to let everybody in")
        # An empty variable counts as none, as in mosec.
        if text:
            if name == "port" and _KUBERNETES.match(text):
                _warn_of_kubernetes(variable, text)
            elif name == "http" and text not in FIELDS[name].metadata["choices"]:
                # mosec has no such setting, and others' ports and addresses are called so.
                _warn_of_http(variable, text)
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


@functools.cache
def _warn_of_http(variable: str, text: str) -> None:
    """Say, once, that a variable is not taken for a setting."""
    log.prepare()
    logger.warning(
        "the environment variable %s=%s is ignored: it says how HTTP is spoken, %s; the port is MOSEC_PORT",
        variable,
        text,
        " or ".join(FIELDS["http"].metadata["choices"]),
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


def telemetry_variables() -> Mapping[str, str]:
    """Return the variables that OpenTelemetry is set up by."""
    return {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}


def prometheus_directory() -> str | None:
    """Return the directory that the user has set up for prometheus_client's multiprocess mode, or None."""
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR") or None


def variables_of(names: Sequence[str]) -> dict[str, str]:
    """Return those of some variables of the environment that are set: others' than ours, such as those of a library."""
    return {name: os.environ[name] for name in names if name in os.environ}


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
    for name, flag in FLAGS.items():
        f = FIELDS[name]
        text = f"{f.metadata['help']} (default: {getattr(settings, name)!r})".replace("%", "%%")
        if _TYPES[name] is bool:
            # What is on by default can be turned off: --no-load-shedding.
            action = argparse.BooleanOptionalAction if f.default else "store_true"
            parser.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
        else:
            parser.add_argument(
                flag,
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
    written = _as_written(sys.argv[1:] if arguments is None else list(arguments))
    known, others = build_parser(settings).parse_known_args(written)
    for argument in others:
        if meant := meant_by(argument):
            raise DefinitionError(f"unknown argument {argument.partition('=')[0]}; did you mean --{meant}?")
    return {name: _checked(name, value, f"the argument {FLAGS[name]}") for name, value in vars(known).items()}


def _as_written(arguments: Sequence[str]) -> list[str]:
    """Return a command line without abbreviations, without `--flag=true`, and without a flag of another's name."""
    written: list[str] = []
    for place, argument in enumerate(arguments):
        if argument == "--":
            # The rest is the program's.
            break
        flag, equals, value = argument.partition("=")
        following = value if equals else "".join(arguments[place + 1 : place + 2])
        full = _expanded(flag, following)
        name = next((name for name, ours in FLAGS.items() if ours == full), "")
        if name == "http" and following not in FIELDS[name].metadata["choices"]:
            # The program's own.
            continue
        if equals and name and _TYPES[name] is bool:
            on = _checked(name, value, f"the argument {full} (alone it turns {name} on)")
            if on:
                written.append(full)
            elif FIELDS[name].default is True:
                written.append("--no-" + full[2:])
        else:
            written.append(full + equals + value)
    return written


def _expanded(flag: str, value: str) -> str:
    """Return the flag of mosec's that another one abbreviates; the flag itself where it does not."""
    candidates = [ours for ours in FLAGS.values() if ours.startswith(flag)]
    if len(flag) < 2 + _SHORTEST or len(candidates) != 1 or candidates[0] == flag or candidates[0][2:] not in _MOSECS:
        return flag
    name = candidates[0][2:].replace("-", "_")
    if _TYPES[name] is not bool:
        try:
            _checked(name, value, flag)
        except DefinitionError:
            # A flag of the program's, which takes something else.
            return flag
    log.prepare()
    logger.warning("the argument %s is taken for %s, as in mosec; write that in full", flag, candidates[0])
    return candidates[0]


def meant_by(argument: str) -> str | None:
    """Return the flag of ours, without its dashes, that an argument is a slip of; None for one of the user's own."""
    if not argument.startswith("--"):
        return None
    name = argument[2:].partition("=")[0].replace("_", "-").lower()
    flags = [flag[2:] for flag in FLAGS.values()]
    flags += ["no-" + FLAGS[name][2:] for name, f in FIELDS.items() if f.default is True]
    begun = [flag for flag in flags if "-" in name and flag.startswith(name)]
    return _SYNONYMS.get(name) or next((flag for flag in flags if _is_slip(name, flag)), " or --".join(begun) or None)


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
