"""Single flight: inputs that are equal, and wait or run at one stage at the same time, are computed once. Pure.

What waits in the queue of such a stage, and what its workers are sent, is a `Flight`: a task in the place of all the
calls whose inputs are equal, its *callers*. A call that comes while there is a flight for its input joins it, wherever
that is: in the queue, or on a worker. When the worker has answered, the flight has landed, and each caller gets the
answer as if it had been its own. A caller that leaves, or whose time is over, takes nobody with it: the flight goes on
in the place in which it stands, for the others, and ends with its last caller.

*Equal* are the bytes of the payload, and what a worker is told beside them: whether it is to decode and to encode. And
equal must be the callers' places: their priority, their tenant, and their key where the stage has keys. So the place of
the flight is that of its first caller, none of the others delays anybody or is delayed by anybody, and no tenant learns
from the time of an answer what another has asked for.

A flight counts once wherever work is counted: in the queue, in a batch and its cost, among the attempts of workers that
die, in the turns of its tenant. Its callers count as calls of the service, which bounds how many there are.

What lies in shared memory is not compared: each call with such an input runs by itself. So does a dry run, and a call
whose stream has begun at an earlier stage, which must not run again once that worker dies.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence

from mosec_asgi.batching.task import DISPATCH, REQUEUE, SENT, Task
from mosec_asgi.messages import ForwardTime, HeldPayload, Payload, Results

# Whose inputs are equal: flags, priority, tenant, key, and the payload.
Input = tuple[int, int, str, str, bytes]


class Flight(Task):
    """A task in the place of all the calls with one input.

    Its number is that of its first caller, which may have been answered meanwhile.

    Attributes:
        input: what is equal.
        callers: the tasks of the calls that wait for it, by their numbers, in order of arrival.
    """

    __slots__ = ("_deadlines", "callers", "input")

    def __init__(self, first: Task, flown: Input) -> None:
        """Take the place of a call, which is the first caller."""
        for name in Task.__slots__:
            setattr(self, name, getattr(first, name))
        # A stream begins at a later stage, and is the caller's.
        self.flow = None
        self.input = flown
        self.callers: dict[int, tuple[Task, float]] = {}
        # In order; the deadline of the flight is the last of them.
        self._deadlines: list[float] = []
        self.add(first)

    def add(self, task: Task) -> None:
        """Take in a caller."""
        self.callers[task.id] = (task, task.deadline)
        insort(self._deadlines, task.deadline)
        self.deadline = self._deadlines[-1]
        # The flight has it.
        task.payload = b""

    def remove(self, task: Task) -> None:
        """Let a caller go."""
        _, deadline = self.callers.pop(task.id)
        del self._deadlines[bisect_left(self._deadlines, deadline)]
        if self._deadlines:
            self.deadline = self._deadlines[-1]


class SingleFlight:
    """The flights of one stage."""

    def __init__(self, *, keyed: bool) -> None:
        """Begin with none.

        Args:
            keyed: the stage has keys: calls of different ones are not equal.
        """
        self._keyed = keyed
        self._flights: dict[Input, Flight] = {}
        # By the numbers of their callers.
        self._of: dict[int, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, task: Task, flags: int, now: float) -> Task | None:
        """Have a call that has come share a flight.

        Args:
            task: the call's.
            flags: what a worker would be told of it.
            now: the time.

        Returns:
            what is to be queued in its place: a new flight, or the task itself where it runs alone. None where it has
            joined one that is there.
        """
        payload = task.payload
        if not isinstance(payload, bytes) or task.example or (task.flow is not None and task.flow.events):
            return task
        flown = (flags, task.priority, task.tenant, task.key if self._keyed else "", payload)
        flight = self._flights.get(flown)
        if flight is None:
            flight = self._of[task.id] = self._flights[flown] = Flight(task, flown)
            return flight
        flight.add(task)
        self._of[task.id] = flight
        if flight.state is SENT:
            task.step(DISPATCH)
            task.began = now
        return None

    def flight(self, task: Task) -> Task:
        """Return the flight that a call has joined; the task itself where it is in none."""
        return self._of.get(task.id, task)

    def leave(self, task: Task) -> Task | None:
        """Note that a call is settled before it is answered here.

        Returns:
            what nobody waits for any more: its flight, or the task itself where it runs alone; None where others wait.
        """
        flight = self._of.pop(task.id, None)
        if flight is None:
            return task
        flight.remove(task)
        if flight.callers:
            return None
        self._end(flight)
        return flight

    def callers(self, task: Task) -> Sequence[Task]:
        """Return the tasks of the calls that wait for a task of the queue."""
        return [caller for caller, _ in task.callers.values()] if isinstance(task, Flight) else (task,)

    def sent(self, tasks: Iterable[Task], now: float) -> None:
        """Note that tasks of the queue were sent to a worker."""
        for task in tasks:
            if isinstance(task, Flight):
                for caller, _ in task.callers.values():
                    caller.step(DISPATCH)
                    caller.began = now

    def requeued(self, tasks: Iterable[Task]) -> None:
        """Note that tasks of a dead worker wait again."""
        for task in tasks:
            if isinstance(task, Flight):
                for caller, _ in task.callers.values():
                    caller.step(REQUEUE)

    def landed(
        self, tasks: Sequence[Task], results: Results, copy: Callable[[HeldPayload, Sequence[Task]], tuple[int, bytes]]
    ) -> tuple[list[Task], Results]:
        """Give each caller the answer of its flight.

        Args:
            tasks: that a worker has answered.
            results: the answers, a column for each.
            copy: returns the code and the payload of an answer for these callers, who cannot have the one that a link
                holds: the first caller has it.

        Returns:
            the tasks of the calls, and the answers to them. What nobody waits for is among them as it was.
        """
        found: list[Task] = []
        codes: list[int] = []
        payloads: list[Payload] = []
        forwards: list[ForwardTime] = []
        labels: list[tuple[int, str]] = []
        for place, task in enumerate(tasks):
            callers = self._land(task) if isinstance(task, Flight) and task.callers else (task,)
            found += callers
            code, payload = results.codes[place], results.payloads[place]
            codes.append(code)
            payloads.append(payload)
            if len(callers) > 1:
                others = (code, payload) if isinstance(payload, bytes) else copy(payload, callers[1:])
                codes += [others[0]] * (len(callers) - 1)
                payloads += [others[1]] * (len(callers) - 1)
            forwards += list(results.forwards[place : place + 1]) * len(callers)
            labels += list(results.labels[place : place + 1]) * len(callers)
        ids = [task.id for task in found]
        return found, results._replace(ids=ids, codes=codes, payloads=payloads, forwards=forwards, labels=labels)

    def _land(self, flight: Flight) -> Sequence[Task]:
        """End a flight that was answered; return its callers."""
        callers = self.callers(flight)
        for caller in callers:
            del self._of[caller.id]
            caller.began = max(flight.began, caller.queued)
        self._end(flight)
        flight.settle()
        return callers

    def _end(self, flight: Flight) -> None:
        del self._flights[flight.input]
