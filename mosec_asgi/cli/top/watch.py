"""What is known of a service, from one answer of its to the next. Pure: time comes in."""

from __future__ import annotations

from dataclasses import dataclass, field

from mosec_asgi.observing.changes import Change
from mosec_asgi.observing.history import History
from mosec_asgi.observing.statistics import ServiceReport

# Points of the throughput that are kept to be drawn.
MOST_POINTS = 120


@dataclass
class Watch:
    """What is known of a service.

    Attributes:
        report: its last answer; None before the first.
        fault: why it does not answer; empty while it does.
        lost_at: since when it does not, in seconds since 1970.
    """

    report: ServiceReport | None = None
    fault: str = ""
    lost_at: float = 0.0
    _history: History = field(default_factory=lambda: History(0))
    _names: tuple[str, ...] = ()

    @property
    def change(self) -> Change | None:
        """What happened in the last interval; None before the second answer."""
        return self._history.latest

    def answered(self, report: ServiceReport, now: float, time: float) -> None:
        """Take an answer.

        Args:
            report: how the service stands.
            now: when it was asked, in seconds of a clock that only grows.
            time: the same as a date, in seconds since 1970.
        """
        names = tuple(stage.name for stage in report.stages)
        if self.fault or names != self._names:
            # What lies between is no interval: the service may have been started anew meanwhile.
            self._history = History(len(names))
        self.fault, self._names, self.report = "", names, report
        self._history.add(report, now, time)

    def lost(self, why: str, time: float) -> None:
        """Note that the service does not answer."""
        if not self.fault:
            self.lost_at = time
        self.fault = why

    def throughput(self) -> list[float]:
        """Return the last answers per second, the oldest first."""
        columns = self._history.columns(self._history.added - MOST_POINTS)["service"]
        names = ("ok", "client_error", "late", "refused", "server_error")
        return [sum(rates) for rates in zip(*(columns[name] for name in names), strict=True)]
