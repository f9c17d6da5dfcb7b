"""A deterministic simulation of a whole service: whatever happens, its contracts must hold.

The real coordinator, scheduler and supervisors run on virtual time, with simulated workers and clients around them:
workers that crash, freeze, talk nonsense, answer twice or not at all, start slowly or never; clients that come in
bursts, leave, stall, ask for more than there is room for. A seed decides all of it, so a history can be run again, and
again, until it is understood. An oracle watches every word that passes between the service and the world, and says at
once when a contract is broken.

    scenario   what a history consists of, drawn from its seed
    worker     simulated workers; link: what carries their messages; client: simulated callers
    messages   how messages cross; agenda: the simulation's timers; surroundings: what all of these share
    model      the simulation's own picture of the service
    contracts  what must hold of it, a checker for each group of contracts; oracle: all checkers together
    history    one history, run; campaign: many

This way of testing is FoundationDB's (Zhou et al., SIGMOD 2021, section 4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mosec_asgi.testing.simulation.contracts.contract import Contract, Violation
from mosec_asgi.testing.simulation.history import History, silenced

if TYPE_CHECKING:
    from mosec_asgi.server import Server
    from mosec_asgi.testing.simulation.scenario import World

__all__ = ["Contract", "Summary", "Violation", "simulate"]


@dataclass(slots=True)
class Summary:
    """What happened in some histories.

    Attributes:
        histories: that were run.
        seconds: of virtual time that passed in them.
        counts: how often what happened, by name.
    """

    histories: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Summary) -> Summary:
        return Summary(self.histories + other.histories, self.seconds + other.seconds, self.counts + other.counts)

    def __str__(self) -> str:
        lines = [f"{self.histories:,} histories, {self.seconds / 3600:,.1f} hours of virtual time"]
        lines += [f"{number:>12,}  {what}" for what, number in sorted(self.counts.items())]
        return "\n".join(lines)


def simulate(server: Server | None = None, *, seed: int = 0, histories: int = 1, verbose: bool = False) -> Summary:
    """Run histories, and raise at the first that breaks a contract.

    Args:
        server: whose stages and settings to simulate: numbers of workers, batch sizes, timeouts, capacity. Its workers'
            classes are not run. None for another service, drawn at random, in each history.
        seed: of the first history; those that follow have the next numbers.
        histories: how many to run.
        verbose: print all that happens, and let the service log.

    Returns:
        what happened, so that one sees what was tried.

    Raises:
        Violation: a contract does not hold; its text tells what happened before, and how to see it again.
    """
    world = None if server is None else _world_of(server)
    how = "" if server is None else "mosec_asgi.testing.simulate(server, seed={seed}, verbose=True)"
    return run(range(seed, seed + histories), world, replay=how, verbose=verbose)


REPLAY = "python -m mosec_asgi.testing simulate --seed {seed} --verbose"


def run(seeds: Iterable[int], world: World | None = None, *, replay: str = "", verbose: bool = False) -> Summary:
    """Run the histories of some seeds; see `simulate`."""
    summary = Summary()
    with silenced(not verbose):
        for seed in seeds:
            history = History(seed, world, verbose=verbose)
            try:
                history.run()
            except Violation as violation:
                violation.tell(seed, history.oracle.journal.history, (replay or REPLAY).format(seed=seed))
                raise
            summary.histories += 1
            summary.seconds += history.seconds
            summary.counts.update(history.oracle.journal.counts)
    return summary


def _world_of(server: Server) -> World:
    """Return the service that a server defines."""
    from mosec_asgi import config
    from mosec_asgi.definition import plan_service
    from mosec_asgi.testing.simulation.scenario import World

    return World(*plan_service(server._defined.routes, config.resolve(server._keywords)))
