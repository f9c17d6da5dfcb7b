"""The header Server-Timing: what a request's time went into, for a browser's network panel and its Performance API.

    Server-Timing: Preprocess_1.queue;dur=0.212, Preprocess_1.compute;dur=3.480, Inference_2.queue;dur=...

Times are milliseconds (W3C Server Timing). A request of several calls shows the longest of them at each stage, as they
run beside each other.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from mosec_asgi.messages import Outcome, StageTime
from mosec_asgi.web.responses import Header, Response

# What is no character of a token (RFC 9110, section 5.6.2).
_NO_TOKEN = re.compile(r"[^A-Za-z0-9!#$%&'*+.^_`|~-]")


def added(response: Response, outcomes: Sequence[Outcome], traceparent: str = "") -> Response:
    """Return an answer with the header; as it is where no times were noted. See `header`."""
    times = [outcome.times for outcome in outcomes if outcome.times]
    if not times:
        return response
    return response._replace(headers=(*response.headers, header(times, traceparent)))


def header(calls: Sequence[Sequence[StageTime]], traceparent: str = "") -> Header:
    """Return the header that says the times of a request's calls.

    Args:
        calls: the times of each.
        traceparent: of the request's span, where it is traced: a page's own tracing reads it there.
    """
    times = calls[0] if len(calls) == 1 else _longest(calls)
    entries = [_entry(stage) % (queue * 1000, compute * 1000) for stage, queue, compute in times]
    if traceparent:
        entries.append(f'traceparent;desc="{traceparent}"')
    return b"server-timing", ", ".join(entries).encode()


def _longest(calls: Sequence[Sequence[StageTime]]) -> list[StageTime]:
    longest: dict[str, StageTime] = {}
    for times in calls:
        for stage, queue, compute in times:
            other = longest.get(stage, StageTime(stage, 0.0, 0.0))
            longest[stage] = StageTime(stage, max(queue, other.queue), max(compute, other.compute))
    return list(longest.values())


@functools.lru_cache(maxsize=256)
def _entry(stage: str) -> str:
    """Return what stands there for a stage, with places for its times."""
    # The name of a class may have letters that are not ASCII.
    token = _NO_TOKEN.sub("_", stage).replace("%", "%%")
    return f"{token}.queue;dur=%.3f, {token}.compute;dur=%.3f"
