"""How a worker runs the tasks of a batch, or a single one: once for all workers, plain, asynchronous and streaming.

    decode each item ─► forward on all of them ─► (it raised: on parts, `isolation`) ─► encode each result ─► answer
                                  └─► of a stream: its events, one by one, as clients make room ─► answer

An item that fails to decode or encode fails alone. If `forward` raises on a batch, parts of it are run again, and only
the culprits get the error. Their items are decoded again, because `forward` may have changed them, or the list that it
was given, before it raised. A task whose client has left before it is begun is not run. A stream that has sent an event
is not run again.

`BatchAlgorithm.run` is a generator that never waits. It yields what is to be done next (`Forward`, `Next`, `Room`,
`Close`) and is sent the result; an exception of the user's code is sent as `Raised`, never thrown. Only its driver
differs between workers: that of a plain worker calls, that of an asynchronous one awaits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from mosec_asgi import log
from mosec_asgi.errors import Failure, MosecTimeoutError, WrongShape
from mosec_asgi.inside import isolation
from mosec_asgi.inside.codec import LEFT, Answer, Codec, Left, on_the_wire, shown
from mosec_asgi.inside.ending import Ending
from mosec_asgi.inside.isolation import Raised
from mosec_asgi.inside.outlet import ENDED, Outlet, PassingOutlet
from mosec_asgi.inside.port import Port, inputs
from mosec_asgi.inside.returned import check_sent, events_of
from mosec_asgi.inside.shape import checked
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import TRACED, Results, Tasks
from mosec_asgi.request import Request, unpacked

logger = log.internal_logger(__name__)


class Forward(NamedTuple):
    """Call `forward` with `data`; send back what it returns, awaited if it is awaitable."""

    data: Any


class Next(NamedTuple):
    """Send back the next event of what `forward` has returned, or `END`.

    Attributes:
        events: what it has returned.
        awaited: they are read asynchronously.
    """

    events: Any
    awaited: bool


class Room(NamedTuple):
    """Wait a while for news of the clients; send back None."""


class Close(NamedTuple):
    """Close what `forward` has returned; send back None."""

    events: Any
    awaited: bool


END: Any = object()


class EventsOf(Protocol):
    """Returns the events of what `forward` has returned, or None where it is no stream; see `returned.events_of`."""

    def __call__(self, result: Any, *, batched: bool) -> Iterator[Any] | AsyncIterator[Any] | None:
        """Return the events; may raise."""


Wanted: TypeAlias = Forward | Next | Room | Close
# Sent back: what the user's code returns, or `Raised`.
Steps: TypeAlias = Generator[Wanted, Any, None]
_Calls: TypeAlias = Generator[Wanted, Any, isolation.Outcome]

_ROOM = Room()


@dataclass(slots=True, eq=False)
class Unit:
    """Tasks that run together.

    Attributes:
        tasks: the message in which they came.
        places: their places in it.
        inside: the numbers of those that `forward` has now, in the order of its items.
        settled: each has been answered, or is answered by other code; for streams, the outlet knows.
        coded: the place in it of the task that is decoded or encoded just now; None while `forward` runs, and for
            workers that do not ask for requests.
    """

    tasks: Tasks
    places: Sequence[int]
    inside: Sequence[int] = field(default=())
    settled: bool = False
    coded: int | None = None

    @property
    def ids(self) -> list[int]:
        """Their numbers."""
        return [self.tasks.ids[place] for place in self.places]

    @property
    def request_ids(self) -> list[str]:
        """The ids of their requests."""
        return [self.tasks.request_ids[place] for place in self.places]

    @property
    def payloads(self) -> list[bytes]:
        """Their encoded inputs."""
        return [inputs(self.tasks)[place] for place in self.places]

    def request_ids_inside(self) -> list[str]:
        """Return the ids of the requests that `forward` has now."""
        # Read once: another thread of the worker may call this while the attributes change.
        inside, tasks = self.inside, self.tasks
        names = dict(zip(tasks.ids, tasks.request_ids, strict=True))
        return [names[task_id] for task_id in inside if task_id in names]

    def trace_ids_inside(self) -> list[str]:
        """Return the ids of the traces of those requests that `forward` has now, as far as they are traced."""
        inside, tasks = self.inside, self.tasks
        rows = zip(tasks.ids, tasks.flags, tasks.requests, strict=False)
        told = {task_id: request for task_id, flags, request in rows if flags & TRACED}
        return [unpacked(told[task_id]).trace_id for task_id in inside if task_id in told]

    def request(self, index: int) -> Request:
        """Return what is known of the request of an item: `Worker.request`.

        Raises:
            RuntimeError: no item is at hand.
            IndexError: there is no such item.
        """
        inside, tasks, place = self.inside, self.tasks, self.coded
        if place is not None:
            inside = (tasks.ids[place],)
        if not inside:
            raise RuntimeError("a request can be asked for only while `forward`, deserialize or serialize has it")
        if not 0 <= index < len(inside):
            raise IndexError(f"there is no request {index}: `forward` has {len(inside)}, from 0")
        return unpacked(tasks.requests[tasks.ids.index(inside[index])])


class BatchAlgorithm:
    """Runs units of one worker."""

    def __init__(
        self,
        spec: WorkerSpec,
        codec: Codec,
        port: Port,
        clock: Callable[[], float],
        outlet: Outlet | None = None,
        look: Callable[[], None] | None = None,
        events_of: EventsOf = events_of,
        passing: PassingOutlet | None = None,
    ) -> None:
        """Prepare.

        Args:
            spec: how the worker is to be run.
            codec: decodes, encodes, and logs faults.
            port: knows which clients have left; gets the answers.
            clock: the time in seconds.
            outlet: of a worker that streams.
            look: takes in news of the clients between two events; None where other code does.
            events_of: finds the events in what `forward` has returned, in the form that the driver can read.
            passing: of a worker that may send events and passes on its results.
        """
        self._batches = spec.max_batch_size > 1
        self._isolation_calls = spec.isolation_calls
        self._timeout = spec.timeout
        self._worker = spec.worker
        self._asks = spec.worker.takes_request
        self._codec = codec
        self._port = port
        self._clock = clock
        self._outlet = outlet
        self._passing = passing
        self._look = look
        self._events_of = events_of

    def run(self, unit: Unit) -> Steps:
        """Run a unit and answer each of its tasks exactly once."""
        began = self._clock()
        tasks = unit.tasks
        answers, items, places = self._decode(unit)
        if self._outlet is not None:
            # Tasks that cannot be run are answered now, and do not wait for the streams of the others.
            self._answer(tasks, answers, 0.0)
            answers = {}
            for place in places:
                self._outlet.open(tasks.ids[place], tasks.request_ids[place], tasks.flags[place])
        ids = tasks.ids if len(places) == len(tasks.ids) else [tasks.ids[place] for place in places]
        if self._passing is not None:
            for place in places:
                self._passing.open(tasks.ids[place], tasks.request_ids[place])
        results: Sequence[Any] = ()
        if items:
            unit.inside = ids
            outcome = yield from self._call(unit, items, whole=True)
            results = (yield from self._search(unit, places, outcome)) if isinstance(outcome, Raised) else outcome
        if self._outlet is not None:
            unit.inside = ()
            if not unit.settled:
                for task_id, result in zip(ids, results, strict=True):
                    self._outlet.end(task_id, on_the_wire(result) if isinstance(result, Failure) else ENDED)
            # This comes last, because an event that another thread is sending delays the end of its stream.
            self._outlet.forget(ids)
        elif not unit.settled:
            beat, answer, flags, names = self._port.progress.beat, self._codec.answer, tasks.flags, tasks.request_ids
            verdicts = self._passing.pass_on(ids) if self._passing is not None else {}
            for place, result in zip(places, results, strict=True):
                beat()
                if verdicts and (verdict := verdicts.get(tasks.ids[place])) is not None:
                    answers[place] = verdict
                else:
                    if self._asks:
                        unit.coded = place
                    answers[place] = answer(flags[place], result, names[place])
            unit.settled = True
            self._answer(tasks, answers, self._clock() - began)

    def _decode(self, unit: Unit) -> tuple[dict[int, Answer], list[Any], list[int]]:
        """Decode the tasks of a unit.

        Returns:
            the answers to tasks that cannot or need not be run, by place; the items of the others, and their places.
        """
        answers: dict[int, Answer] = {}
        items: list[Any] = []
        places: list[int] = []
        tasks, payloads = unit.tasks, inputs(unit.tasks)
        beat, decode, cancelled = self._port.progress.beat, self._codec.decode, self._port.cancelled
        for place in unit.places:
            if cancelled and tasks.ids[place] in cancelled:
                answers[place] = LEFT
                continue
            beat()
            if self._asks:
                unit.coded = place
            try:
                items.append(decode(tasks.flags[place], payloads[place]))
                places.append(place)
            except Ending:
                raise
            except BaseException as error:
                answers[place] = self._codec.failure(error, tasks.request_ids[place : place + 1])
        unit.coded = None
        return answers, items, places

    def _answer(self, tasks: Tasks, answers: dict[int, Answer], seconds: float) -> None:
        if not answers:
            return
        places = sorted(answers)
        codes, payloads = zip(*[answers[place] for place in places], strict=True)
        ids = tasks.ids if len(places) == len(tasks.ids) else [tasks.ids[place] for place in places]
        self._port.answer(Results(ids, codes, payloads, seconds))

    def _search(self, unit: Unit, places: list[int], outcome: isolation.Outcome) -> Generator[Wanted, Any, list[Any]]:
        """Find the culprits of a call on all items; return a result for each item, or its `Failure`."""
        ids = [unit.tasks.ids[place] for place in places]
        steps = isolation.resolve(len(places), self._isolation_calls)
        next(steps)
        # The search may take as long as one call of `forward`; after that it ends.
        until = self._clock() + self._timeout
        came: isolation.Outcome | None = outcome
        try:
            while True:
                part = steps.send(came)
                came = None
                if self._clock() < until:
                    unit.inside = ()
                    items = self._decode_again(unit, [places[place] for place in part])
                    unit.inside = [ids[place] for place in part]
                    if isinstance(items, Raised):
                        came = items
                    else:
                        came = yield from self._call(unit, items, whole=False)
        except StopIteration as done:
            results: list[Any] = done.value
        if unit.settled:
            return results
        return self._codec.told_of_all(results, [unit.tasks.request_ids[place] for place in places])

    def _decode_again(self, unit: Unit, places: Sequence[int]) -> list[Any] | Raised:
        """Return the items of tasks as they were before `forward` had them, or what their decoding raises."""
        items: list[Any] = []
        tasks, payloads = unit.tasks, inputs(unit.tasks)
        try:
            for place in places:
                self._port.progress.beat()
                if self._asks:
                    unit.coded = place
                items.append(self._codec.decode(tasks.flags[place], payloads[place], again=True))
        except Ending:
            raise
        except BaseException as error:
            return Raised(error, final=_is_final(error, whole=False))
        finally:
            unit.coded = None
        return items

    def _call(self, unit: Unit, items: list[Any], *, whole: bool) -> _Calls:
        """Return the outcome of a call of `forward` on the tasks `unit.inside`."""
        if self._outlet is not None:
            return (yield from self._stream(unit, items, self._outlet, whole=whole))
        self._port.progress.beat()
        watch = self._port.stopwatch
        if watch is not None and watch.wanted:
            watch.begin(unit.inside)
        # Before it is called, which may change the list.
        size = len(items)
        got = yield Forward(items if self._batches else items[0])
        if watch is not None and watch.wanted:
            watch.end(unit.inside)
        if not isinstance(got, Raised):
            if not self._batches:
                return [got]
            try:
                return checked(got, size)
            except Ending:
                raise
            except BaseException as error:
                got = Raised(error)
        begun = self._passing is not None and self._passing.has_begun(unit.inside)
        return Raised(got.error, final=begun or _is_final(got.error, whole=whole))

    # -- streams -----------------------------------------------------------------------------------------------------

    def _stream(self, unit: Unit, items: list[Any], outlet: Outlet, *, whole: bool) -> _Calls:
        """Do the same where `forward` streams: it pushes its events, or returns a generator of them."""
        ended: list[Any] = [None] * len(items)
        # A stream that has ended meanwhile, because its client has left, is not run again.
        live = [place for place, task_id in enumerate(unit.inside) if outlet.is_open(task_id)]
        if not live:
            return ended
        unit.inside = [unit.inside[place] for place in live]
        self._port.progress.beat()
        if self._port.stopwatch is not None:
            # Until the stream is answered.
            self._port.stopwatch.begin(unit.inside)
        got = yield Forward([items[place] for place in live] if self._batches else items[0])
        if not isinstance(got, Raised):
            got = yield from self._send(unit.inside, outlet, got)
        if not isinstance(got, Raised):
            return ended
        if not outlet.has_begun(unit.inside):
            return Raised(got.error, final=_is_final(got.error, whole=whole))
        outlet.fail(unit.inside, got.error)
        return ended

    def _send(self, inside: Sequence[int], outlet: Outlet, returned: Any) -> Generator[Wanted, Any, Raised | None]:
        """Send the events that `forward` has returned; return what it raised, or the fault in what it returned."""
        try:
            events = self._events_of(returned, batched=self._batches)
            if events is None and not outlet.has_ended_or_begun(inside):
                check_sent(returned, self._worker)
        except Ending:
            raise
        except BaseException as error:
            return Raised(error)
        if events is None:
            return None
        return (yield from self._drain(inside, outlet, Next(events, isinstance(events, AsyncIterator))))

    def _drain(self, inside: Sequence[int], outlet: Outlet, events: Next) -> Generator[Wanted, Any, Raised | None]:
        """Send what a generator yields, until it ends or all clients have left; return what it raised."""
        fault: Raised | None = None
        beat, is_open, look = self._port.progress.beat, outlet.is_open, self._look
        cancelled = self._port.cancelled
        alone = inside[0] if len(inside) == 1 else None
        while fault is None and (is_open(alone) if alone is not None else any(map(is_open, inside))):
            got = yield events
            if got is END:
                break
            if isinstance(got, Raised):
                fault = got
                break
            try:
                outlet.put_yielded(got, inside, batched=self._batches)
                outlet.flush()
            except Ending:
                raise
            except BaseException as error:
                fault = Raised(error)
                break
            beat()
            if look is not None:
                look()
            if cancelled:
                outlet.drop_left(inside)
            if alone is not None and not outlet.has_room(alone):
                fault = yield from self.room(inside, outlet)
        if hasattr(events.events, "aclose" if events.awaited else "close"):
            got = yield Close(*events)
            if isinstance(got, Raised) and type(got.error) is not Left:
                self._codec.warn("closing a stream of forward failed: %s", shown(got.error), error=got.error)
        return fault

    def room(self, inside: Sequence[int], outlet: Outlet) -> Generator[Wanted, Any, Raised | None]:
        """Wait for the client of a single stream. In a batch nothing waits, and a full stream ends with an error."""
        if len(inside) == 1:
            (task_id,) = inside
            while outlet.is_open(task_id) and not outlet.has_room(task_id) and not self._port.ended:
                got = yield _ROOM
                if isinstance(got, Raised):
                    return got
                outlet.drop_left(inside)
        return None


def _is_final(error: BaseException, *, whole: bool) -> bool:
    """Whether it is of no use to run parts of a batch again, after `error` on a part or on the whole."""
    # It would exceed the time again, meet the same fault of the worker, or have no client.
    return isinstance(error, (MosecTimeoutError, Left)) or (whole and isinstance(error, WrongShape))
