"""The life of a worker as a table, and when a dead one is replaced. No clock, no processes: time comes in as `now`.

             ┌──────────┐  READY   ┌───────┐  DRAIN   ┌──────────┐
   launch ──►│ STARTING ├─────────►│ READY ├─────────►│ DRAINING │   it gets no more tasks, and answers what it has
             └─┬───┬────┘          └─┬───┬─┘          └─┬─────┬──┘
          STOP │   │ LOST       STOP │   │ LOST    STOP │     │ LOST
               ▼   │                 │   │              │     │
           ┌──────────┐◄─────────────┘   │              │     │
           │ STOPPING │◄─────────────────┼──────────────┘     │
           └─┬────┬───┘                  │                    │
             │    │ LOST                 ▼                    │
             │    └───────►┌───────┐◄─────────────────────────┘
             │             │ LOST  │   its pipe is closed: it gets no more tasks, and is being killed
        EXIT │             └──┬────┘
             ▼                │ EXIT
          ┌──────┐◄───────────┘
          │ DEAD │   its process has been reaped; only now may another take the place of one that has died (a GPU's
          └──────┘   memory is free again)

A worker may EXIT from any state. The end of its pipe and the end of its process may be noticed in either order. It has
tasks while it is READY or DRAINING; what it has then is given back once, when it leaves these states.

A worker that is replaced by choice (`supervisor`) drains once the other is READY, so that both live for a while.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    LOST = "lost"
    DEAD = "dead"


class Event(enum.Enum):
    """What happens to a worker."""

    READY = "ready"
    DRAIN = "drain"
    STOP = "stop"
    LOST = "lost"
    EXIT = "exit"


class LifecycleError(Exception):
    """An event that cannot happen in the worker's state."""


# In these a worker has tasks, and what it says of them counts.
AT_WORK = frozenset({State.READY, State.DRAINING})

TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STARTING, Event.READY): State.READY,
    (State.STARTING, Event.STOP): State.STOPPING,
    (State.STARTING, Event.LOST): State.LOST,
    (State.STARTING, Event.EXIT): State.DEAD,
    (State.READY, Event.DRAIN): State.DRAINING,
    (State.READY, Event.STOP): State.STOPPING,
    (State.READY, Event.LOST): State.LOST,
    (State.READY, Event.EXIT): State.DEAD,
    (State.DRAINING, Event.STOP): State.STOPPING,
    (State.DRAINING, Event.LOST): State.LOST,
    (State.DRAINING, Event.EXIT): State.DEAD,
    # A worker that was told to stop while it was starting may still say that it is ready.
    (State.STOPPING, Event.READY): State.STOPPING,
    (State.STOPPING, Event.STOP): State.STOPPING,
    (State.STOPPING, Event.LOST): State.LOST,
    (State.STOPPING, Event.EXIT): State.DEAD,
    (State.LOST, Event.STOP): State.LOST,
    (State.LOST, Event.EXIT): State.DEAD,
}


def transition(state: State, event: Event) -> State:
    """Return the state after `event`; raise `LifecycleError` where the table has no such step."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise LifecycleError(f"a worker that is {state.value} cannot see the event {event.value}") from None


class Backoff:
    """How long to wait before a dead worker is replaced: exponential, forgotten after a healthy spell.

    A worker that has answered a task, or lived for `healthy` seconds, was healthy, and is replaced at once: it was most
    likely killed by a request or from outside, and meanwhile the stage lacks a worker. The first worker that dies
    sooner is replaced at once, too. The next in a row waits `first` seconds, and each one after it twice as long, up to
    `most` if it never became ready, and up to `most_ready` if it did: such a worker may serve other requests until it
    dies again.
    """

    def __init__(self, first: float = 0.1, most: float = 30.0, most_ready: float = 1.0, healthy: float = 10.0) -> None:
        self._first = first
        self._most = most
        self._most_ready = most_ready
        self._healthy = healthy
        self._early_deaths = 0
        self._forgiven = False

    def delay(self, ready_at: float | None, now: float, *, answered: bool = False) -> float:
        """Note a death and return the seconds to wait.

        Args:
            ready_at: when the worker became ready; None if it never did.
            now: the time of its death.
            answered: it has answered a task.
        """
        if answered or (ready_at is not None and now - ready_at >= self._healthy):
            self._early_deaths = 0
            self._forgiven = False
            return 0.0
        if ready_at is not None and not self._forgiven and not self._early_deaths:
            self._forgiven = True
            return 0.0
        self._early_deaths += 1
        exponent = min(self._early_deaths - 1, 32)
        most = self._most if ready_at is None else self._most_ready
        return min(most, self._first * 2.0**exponent)
