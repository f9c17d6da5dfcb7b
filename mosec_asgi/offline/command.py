"""`mosec-asgi map`: a run from its options to its exit code."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosec_asgi import config
from mosec_asgi.defined import DEFAULT_ROUTE
from mosec_asgi.errors import CallError, StartupError
from mosec_asgi.offline import conversion, display, libraries, readers
from mosec_asgi.offline.done import Done
from mosec_asgi.offline.faults import Halted, WrongUse
from mosec_asgi.offline.outputs import STDOUT, Places, RecordFile, Sink, StandardOutput
from mosec_asgi.offline.progress import Progress, counted, duration
from mosec_asgi.offline.readers import STDIN
from mosec_asgi.offline.records import Form, OpenAIBatch, Plain, is_openai_batch
from mosec_asgi.offline.resume import Run, locked
from mosec_asgi.offline.run import Flow, Mapping, tell_of_stop
from mosec_asgi.offline.stopping import Stopping
from mosec_asgi.server import Server
from mosec_asgi.streaming import streams

# Exit codes, beside 0 for a run without any failure, and 2 for wrong use.
NOT_FINISHED = 1
SOME_FAILED = 3
FORMATS = ("jsonl", "csv", "parquet", OpenAIBatch.name)
TABLES = ("csv", "parquet")
_ENDINGS = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}


@dataclass(frozen=True)
class Options:
    """What the command line asks for; `cli.map` says what each is.

    Attributes:
        timeout: milliseconds; None for the service's own.
        in_flight: items.
    """

    input: str
    output: str
    errors: str | None
    route: str | None
    format: str | None
    output_format: str | None
    column: str | None
    unordered: bool
    timeout: int | None
    in_flight: int | None
    resume: bool
    overwrite: bool
    quiet: bool


def run(options: Options, server: Server) -> int:
    """Do what the command line asks for; return the exit code.

    Raises:
        WrongUse: it cannot be followed.
        DefinitionError: the service is not one that can be started.
    """
    stopping = Stopping(tell_of_stop)
    with stopping.heard():
        try:
            code = _Command(options, server, stopping).run()
        except (Halted, StartupError, CallError) as error:
            _say(f"mosec-asgi map: {error}{_remedy(options)}")
            code = NOT_FINISHED
        except KeyboardInterrupt:
            _say(f"stopped, and dropped what was in hand{_remedy(options)}")
            code = _stopped_by(stopping)
    return code


class _Command:
    """One run."""

    def __init__(self, options: Options, server: Server, stopping: Stopping) -> None:
        self._options = options
        self._server = server
        self._stopping = stopping
        self._output_kind = options.output_format or _kind_of(options.output)

    def run(self) -> int:
        """Do it; return the exit code."""
        options = self._options
        self._server._defined.check()
        _check_places(options)
        if self._output_kind == "parquet":
            # Not only once all is done.
            libraries.pyarrow("pyarrow.parquet")
        self._check_route(options.route)
        kind = options.format or _kind_of(options.input)
        self._server._overrides = self._overrides()
        with readers.open_input(options.input, "jsonl" if kind == OpenAIBatch.name else kind) as reader:
            form = self._form(kind, reader)
            if options.output == STDOUT:
                return self._map_to_stdout(reader, form)
            return self._map_to_file(reader, form)

    def _overrides(self) -> dict[str, Any]:
        """Return the settings that a run has for itself."""
        overrides: dict[str, Any] = {}
        if self._options.timeout is not None:
            overrides["timeout"] = self._options.timeout
        if config.resolve(self._server._keywords).log_level == "info":
            # What is said of a start and an end is for the logs of a service.
            overrides["log_level"] = "warning"
        return overrides

    def _form(self, kind: str, reader: readers.Reader) -> Form:
        route, column = self._options.route, self._options.column
        if isinstance(reader, readers.JsonLines):
            first = reader.peek()
            if kind == OpenAIBatch.name or (self._options.format is None and is_openai_batch(first)):
                if column is not None or self._output_kind != "jsonl":
                    raise WrongUse("the form of OpenAI's batches has its own records: leave out --column, and name a "
                                   "jsonl file for --output")  # fmt: skip
                return OpenAIBatch(route)
        return Plain(kind, route or self._only_route(), column)

    def _only_route(self) -> str:
        routes = list(self._server._defined.routes)
        route = routes[0] if len(routes) == 1 else DEFAULT_ROUTE
        self._check_route(route)
        return route

    def _check_route(self, route: str | None) -> None:
        """Refuse a route that cannot be called, before any model loads."""
        routes = self._server._defined.routes
        if route is None:
            return
        if route not in routes:
            raise WrongUse(f"there is no route {route!r}; --route takes one of {', '.join(sorted(routes))}")
        if streams(routes[route][-1].worker):
            raise WrongUse(
                f"the route {route} streams, and a line has one result: write a worker that returns it whole"
            )

    def _map_to_stdout(self, reader: readers.Reader, form: Form) -> int:
        # Standard output goes with --errors: `_check_places` has seen to it.
        errors = Path(self._options.errors or "")
        if errors.exists() and not self._options.overwrite:
            raise WrongUse(f"{errors} exists: --overwrite begins anew")
        errors.unlink(missing_ok=True)
        return self._map(reader, form, StandardOutput(), RecordFile(errors), Done(), 0)

    def _map_to_file(self, reader: readers.Reader, form: Form) -> int:
        options = self._options
        converted = self._output_kind in TABLES
        places = Places.of(options.output, options.errors, converted=converted)
        with locked(places) as state:
            self._find(state, form, reader)
            if state.finished:
                _say(f"{options.output} is finished: nothing is left to do{_failures(state.failed, places)}")
                return SOME_FAILED if state.failed else 0
            output, errors = RecordFile(places.records), RecordFile(places.errors)
            code = self._map(reader, form, output, errors, state.done, state.failed)
            if code in (0, SOME_FAILED):
                if converted:
                    conversion.convert(places.records, places.output, self._output_kind)
                elif not places.output.exists():
                    # An input without any line that has a result has an output as well.
                    places.output.touch()
                state.end(self._failed)
                if converted:
                    places.records.unlink(missing_ok=True)
            if self._failed:
                _say(_failures(self._failed, places).removeprefix("; "))
        return code

    def _find(self, state: Run, form: Form, reader: readers.Reader) -> None:
        """Find what has been done, or begin."""
        options = self._options
        same = {
            "input": readers.fingerprint(options.input),
            "format": form.name,
            "route": options.route,
            "column": options.column,
            "ordered": not options.unordered,
            "errors": options.errors,
        }
        if options.resume:
            state.go_on(same, form.number, reader.total or 0)
        else:
            state.begin(same, overwrite=options.overwrite)

    def _map(self, reader: readers.Reader, form: Form, output: Sink, errors: Sink, done: Done, failed: int) -> int:
        options = self._options
        began = time.monotonic()
        progress = Progress(reader.total)
        shown = display.chosen(quiet=options.quiet)
        mapping = Mapping(reader, form, output, errors, done, progress, shown, self._stopping)
        try:
            mapping.run(self._server.engine, Flow(not options.unordered, options.in_flight))
        finally:
            shown.close(progress, time.monotonic())
            output.close()
            errors.close()
        self._failed = failed + progress.failed
        if self._stopping.number is not None:
            _say(f"stopped after {counted(progress.lines)}{_remedy(options)}")
            return _stopped_by(self._stopping)
        if not options.quiet:
            _say(f"{counted(progress.lines)} in {duration(time.monotonic() - began)}")
        return SOME_FAILED if self._failed else 0


def _check_places(options: Options) -> None:
    """Refuse places that do not go together."""
    if options.resume and options.output == STDOUT:
        raise WrongUse("--resume needs a file for --output: what went to standard output cannot be looked at")
    if options.resume and not readers.can_be_read_twice(options.input):
        raise WrongUse(f"--resume needs an input that can be read twice, which {options.input} is not")
    if options.output == STDOUT and options.errors is None:
        raise WrongUse("with --output - say where lines that fail are written: --errors FILE")
    if options.output == STDOUT and options.output_format in TABLES:
        raise WrongUse("CSV and Parquet are written to a file: name one with --output")
    for name, path in (("--output", options.output), ("--errors", options.errors)):
        if path not in (None, STDOUT) and os.path.exists(path):
            if not os.path.isfile(path):
                raise WrongUse(f"{name} {path} is no regular file; for standard output write `--output -`")
            if os.path.exists(options.input) and os.path.samefile(path, options.input):
                raise WrongUse(f"{name} is the input itself: name another file")
    if options.errors is not None and os.path.realpath(options.errors) == os.path.realpath(options.output):
        raise WrongUse("--errors is the output itself: name another file")
    for name, least in (("timeout", 0), ("in_flight", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise WrongUse(f"--{name.replace('_', '-')} is a whole number, at least {least}, not {value}")


def _kind_of(path: str) -> str:
    return _ENDINGS.get(Path(path).suffix.lower(), "jsonl")


def _failures(failed: int, places: Places) -> str:
    return f"; {counted(failed)} failed: see {places.errors}" if failed else ""


def _stopped_by(stopping: Stopping) -> int:
    """Return the exit code of a shell for a program that a signal has ended."""
    return 128 + (stopping.number or 0)


def _remedy(options: Options) -> str:
    """Return how to go on, as the end of a message."""
    if STDIN in (options.input, options.output):
        return ""
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--overwrite")]
    return f"; to go on: {shlex.join(['mosec-asgi', *arguments, '--resume'])}"


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
