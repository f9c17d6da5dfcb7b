"""The pictures: how far each policy is from the best one, over all patterns; and curves for one model."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from policies.patterns import Closed, Open, Pattern
from policies.simulation import Outcome
from policies.targets import TARGET, Row
from policies.verdict import Outcomes, is_ours

Results = Mapping[Pattern, Outcomes]
MODEL = "model 5 ms + 0.1"
LAYOUTS = ((1, 64), (4, 32))
COLOURS = ("#c03028", "#e08878", "#4878a8", "#68a060", "#202020", "#989898")


def draw(folder: Path, results: Results, loads: Sequence[Row], best: Mapping[int, float]) -> bool:
    """Write `policies.png`, and those of one model and of a target, if matplotlib is there; return whether it is."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    # Not by `import`: matplotlib is optional, and this way the type checker does not need it either.
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    for name, picture in (("policies", _profiles), ("policies-model", _model)):
        figure = picture(pyplot, results)
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=100)
        pyplot.close(figure)
    return draw_targets(folder, loads, best)


def draw_targets(folder: Path, loads: Sequence[Row], best: Mapping[int, float]) -> bool:
    """Write `policies-target.png`, if matplotlib is there; return whether it is."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure = _targets(pyplot, loads, best)
    figure.tight_layout()
    figure.savefig(folder / "policies-target.png", dpi=100)
    pyplot.close(figure)
    return True


def _targets(pyplot: Any, loads: Sequence[Row], best: Mapping[int, float]) -> Any:
    """Draw p99 by load where there is a latency target, for each number of workers."""
    figure, all_axes = pyplot.subplots(1, len(best), figsize=(15, 5), sharey=True)
    for axes, (workers, possible) in zip(all_axes, best.items(), strict=True):
        points = {each.rate: each.outcomes for each in loads if each.workers == workers}
        _curves(axes, points, _p99, "tasks a second for each worker", "p99 latency, ms")
        axes.axhline(TARGET * 1000, color="#808080", linestyle="--", linewidth=1)
        axes.axvline(possible, color="#808080", linestyle=":", linewidth=1)
        axes.set(ylim=(0, 4 * TARGET * 1000), title=f"{workers} worker{'s' if workers > 1 else ''}")
    all_axes[0].legend()
    return figure


def _profiles(pyplot: Any, results: Results) -> Any:
    """For each policy: in what share of the patterns it is within how much of the best."""
    figure, all_axes = pyplot.subplots(1, 3, figsize=(15, 5), sharey=True)
    kinds: Sequence[tuple[str, Callable[[Outcomes, str], float]]] = (
        ("best throughput / its own", lambda each, name: _best(each) / each[name].per_second),
        ("its p50 latency / the best", lambda each, name: each[name].p50 / min(one.p50 for one in each.values())),
        ("its p99 latency / the best", lambda each, name: each[name].p99 / min(one.p99 for one in each.values())),
    )
    for axes, (title, ratio) in zip(all_axes, kinds, strict=True):
        for name, style in _styles(results).items():
            ratios = sorted(ratio(each, name) for each in results.values())
            shares = [100 * (place + 1) / len(ratios) for place in range(len(ratios))]
            axes.step(ratios, shares, where="post", label=name, **style)
        axes.set(xscale="log", xlim=(1, 8), xlabel=f"{title} (less is better)")
        axes.set_xticks([1, 1.1, 1.25, 1.5, 2, 3, 5, 8], ["1", "1.1", "1.25", "1.5", "2", "3", "5", "8"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel(f"% of {len(results)} patterns within that")
    all_axes[0].legend(loc="lower right")
    return figure


def _model(pyplot: Any, results: Results) -> Any:
    """Draw p99 by load and by clients, and throughput by clients, for one model."""
    figure, rows = pyplot.subplots(len(LAYOUTS), 3, figsize=(15, 4.5 * len(LAYOUTS)))
    for row, (workers, batch) in zip(rows, LAYOUTS, strict=True):
        part = {
            pattern: each
            for pattern, each in results.items()
            if (pattern.service.name, pattern.workers, pattern.batch) == (MODEL, workers, batch)
        }
        title = f"{MODEL} ms an item, {workers} worker{'s' if workers > 1 else ''}, batches of up to {batch}"
        loads, clients = _open(part), _closed(part)
        _curves(row[0], loads, _p99, "load (Poisson, of the capacity)", "p99 latency, ms")
        _curves(row[1], clients, _p99, "clients that ask again at once", "p99 latency, ms")
        _curves(row[2], clients, lambda one: one.per_second, "clients that ask again at once", "tasks a second")
        for axes in row[1:]:
            axes.set(xscale="log", yscale="log")
        row[1].set_title(title)
    rows[0][0].legend()
    return figure


def _curves(
    axes: Any, points: Mapping[float, Outcomes], value: Callable[[Outcome], float], across: str, up: str
) -> None:
    for name, style in _styles(points).items():
        axes.plot(list(points), [value(each[name]) for each in points.values()], marker=".", label=name, **style)
    axes.set(xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)


def _open(part: Results) -> dict[float, Outcomes]:
    return {
        pattern.arrivals.load: each
        for pattern, each in part.items()
        if isinstance(pattern.arrivals, Open) and not pattern.arrivals.burst and pattern.arrivals.duty == 1
    }


def _closed(part: Results) -> dict[float, Outcomes]:
    return {
        pattern.arrivals.clients: each
        for pattern, each in part.items()
        if isinstance(pattern.arrivals, Closed) and not pattern.arrivals.think
    }


def _styles(results: Mapping[Any, Outcomes]) -> dict[str, dict[str, Any]]:
    names = next(iter(results.values()))
    return {
        name: {"color": colour, "linewidth": 2.2 if is_ours(name) else 1.3, "zorder": 3 if is_ours(name) else 2}
        for name, colour in zip(names, COLOURS, strict=False)
    }


def _best(outcomes: Outcomes) -> float:
    return max(one.per_second for one in outcomes.values())


def _p99(outcome: Outcome) -> float:
    return outcome.p99 * 1000
