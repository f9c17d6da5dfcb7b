"""A run over an input, from its lines to their records."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mosec_asgi.calls.mapping import REFUSALS, Ask
from mosec_asgi.errors import MosecError
from mosec_asgi.offline.cpu_policy import batch_work
from mosec_asgi.offline.done import Done
from mosec_asgi.offline.faults import Halted
from mosec_asgi.offline.records import Failed, failure, opened

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from mosec_asgi.calls.blocking import BlockingEngine
    from mosec_asgi.offline.display import Display
    from mosec_asgi.offline.outputs import Sink
    from mosec_asgi.offline.progress import Progress
    from mosec_asgi.offline.readers import Reader
    from mosec_asgi.offline.records import Form, Line
    from mosec_asgi.offline.stopping import Stopping


@dataclass(frozen=True, slots=True)
class Flow:
    """How items are called.

    Attributes:
        ordered: records come in the order of their lines.
        in_flight: the most that are called at a time; None for what fills whole batches.
    """

    ordered: bool
    in_flight: int | None


class Mapping:
    """Takes the lines that are not done, has them run, and writes what has become of each."""

    def __init__(
        self,
        reader: Reader,
        form: Form,
        output: Sink,
        errors: Sink,
        done: Done,
        progress: Progress,
        display: Display,
        stopping: Stopping,
    ) -> None:
        """Bind the parts together; nothing is read.

        Args:
            reader: of the input.
            form: of its lines, and of their records.
            output: for results.
            errors: for lines that fail.
            done: lines that have their record.
            progress: counts.
            display: shows it.
            stopping: says when no more lines are to be taken.
        """
        self._reader = reader
        self._form = form
        self._output = output
        self._errors = errors
        self._done = done
        self._progress = progress
        self._display = display
        self._stopping = stopping
        # By the number of their call.
        self._in_hand: dict[int, Line] = {}

    def run(self, engine: Callable[[], AbstractContextManager[BlockingEngine]], flow: Flow) -> None:
        """Do all that is left. The engine is not started where that is nothing.

        Args:
            engine: runs the models for the time of its block.
            flow: how.

        Raises:
            Halted: it cannot go on.
        """
        asks = self._asks()
        first = next(asks, None)
        if first is None:
            return
        with engine() as running, batch_work():
            self._progress.start(time.monotonic())
            self._stopping.lines_are_in_hand()
            asks = itertools.chain([first], asks)
            with contextlib.closing(running.map_asks(asks, ordered=flow.ordered, in_flight=flow.in_flight)) as results:
                for index, result in results:
                    self._settle(self._in_hand.pop(index), result)

    def _asks(self) -> Iterator[Ask]:
        """Yield the calls for lines that are not done; those that cannot be called fail here."""
        index = 0
        for line in self._stopping.until_asked(self._reader.lines()):
            if line.number in self._done:
                self._progress.skip(line.size)
                continue
            try:
                ask = self._form.ask(line)
            except MosecError as error:
                self._fail(line, failure(error)._replace(asked=False))
                continue
            self._in_hand[index] = line
            index += 1
            yield ask

    def _settle(self, line: Line, result: Any) -> None:
        if isinstance(result, MosecError) and result.code in REFUSALS and result.retry_after is not None:
            # Offered again and again, in vain: no fault of the line's, nor would the next one fare better.
            raise Halted(f"the models took no more items, though they were offered again and again: {result}")
        try:
            record = self._form.output(line, *opened(result))
        except MosecError as error:
            self._fail(line, failure(error))
            return
        self._output.append(record)
        self._count(line, failed=False)

    def _fail(self, line: Line, failed: Failed) -> None:
        self._errors.append(self._form.error(line, failed))
        self._count(line, failed=True)

    def _count(self, line: Line, *, failed: bool) -> None:
        now = time.monotonic()
        self._progress.advance(line.size, now, failed=failed)
        self._display.show(self._progress, now)


def tell_of_stop() -> None:
    """Say that the run ends; for a handler of signals, which must not use a stream that it may have interrupted."""
    with contextlib.suppress(OSError):
        os.write(2, b"\nstopping: no more lines are taken, those in hand are finished; again to drop them\n")
