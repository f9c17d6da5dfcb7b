"""Many histories on all cores: `python -m mosec_asgi.testing simulate`, `make simulate`."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator

from mosec_asgi.testing.simulation import Summary, Violation, run

# Seeds that a process is given at a time.
PART = 100
MOST_VIOLATIONS = 10


def main(first: int, histories: int, processes: int | None = None) -> int:
    """Run histories, and tell how it goes and what came of it.

    Returns:
        the exit code: 1 if a contract was broken.
    """
    processes = processes or os.cpu_count() or 1
    began = time.monotonic()
    total, violations, done = Summary(), [], 0
    with concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
    ) as pool:
        parts = {pool.submit(_run_part, seeds): len(seeds) for seeds in _parts(first, histories)}
        for part in concurrent.futures.as_completed(parts):
            summary, found = part.result()
            total += summary
            violations += found
            done += parts[part]
            # At once: a long run may be ended before it is through.
            for text in found:
                print(f"\n{text}\n", flush=True)
            _tell_progress(done, histories, time.monotonic() - began, len(violations))
            if len(violations) >= MOST_VIOLATIONS:
                pool.shutdown(cancel_futures=True)
                break
    print(file=sys.stderr)
    print(total)
    print(f"{len(violations)} contracts broken" if violations else "all contracts held")
    return 1 if violations else 0


def _parts(first: int, histories: int) -> Iterator[range]:
    for start in range(first, first + histories, PART):
        yield range(start, min(start + PART, first + histories))


def _begin() -> None:
    """Prepare a process: it ends with the one that has started it, however that ends."""
    gc.freeze()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    # At once: nobody hears what comes of it.
    os._exit(1)


def _run_part(seeds: range) -> tuple[Summary, list[str]]:
    """Run some histories to their ends, whatever becomes of them."""
    total, violations = Summary(), []
    for seed in seeds:
        try:
            total += run([seed])
        except Violation as violation:
            violations.append(str(violation))
    # What is left of a history hangs together in circles.
    gc.collect()
    return total, violations


def _tell_progress(done: int, histories: int, seconds: float, violations: int) -> None:
    left = seconds / done * (histories - done)
    print(
        f"\r{done:,} of {histories:,} histories, {done / seconds:,.0f} a second, {left:,.0f} s left, "
        f"{violations} contracts broken  ",
        end="",
        file=sys.stderr,
        flush=True,
    )
