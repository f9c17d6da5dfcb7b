"""The plot of a recommendation as a file, by matplotlib where that is installed."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence

from mosec_asgi.offline.faults import WrongUse
from mosec_asgi.tuning.simulation import Played


def check(path: str) -> None:
    """Refuse a plot that cannot be drawn, before anything is measured.

    Raises:
        WrongUse: matplotlib is not there.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise WrongUse(f"--plot {path} needs matplotlib: pip install matplotlib")


def draw(path: str, curves: Mapping[str, Sequence[Played]], target: float) -> None:
    """Write a plot of p99 against throughput.

    Args:
        path: the file; its ending says the format.
        curves: by their names.
        target: seconds; infinite for none.

    Raises:
        WrongUse: it cannot be written.
    """
    # Not by `import`: matplotlib is optional, and this way the type checker does not need it either.
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, curve in curves.items():
        axes.plot([one.per_second for one in curve], [one.p99 * 1000 for one in curve], marker=".", label=name)
    if target < math.inf:
        axes.axhline(target * 1000, linestyle="--", color="grey", label="target")
    axes.set(xlabel="calls a second", ylabel="p99 latency, ms", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise WrongUse(f"--plot {path} cannot be written: {error}") from error
    finally:
        pyplot.close(figure)
