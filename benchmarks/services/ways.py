"""The shorter ways of the package, each of which can be switched off to measure what it brings."""

from collections.abc import Callable


def _busy_poll() -> None:
    from mosec_asgi.batching import busy_poll

    assert busy_poll.QUICK_SECONDS > 0
    busy_poll.QUICK_SECONDS = 0.0


def _gathering() -> None:
    from mosec_asgi.web.uvicorn.gathering import GatheringTransport, TurnEnd

    def flush(self: TurnEnd, transport: GatheringTransport) -> None:
        """Write at once, not at the end of the turn."""
        transport.flush()

    assert callable(TurnEnd.flush)
    TurnEnd.flush = flush  # type: ignore[method-assign]


def _known_heads() -> None:
    from mosec_asgi.web.known_heads import KnownHeads

    def learn(self: KnownHeads[object], *head: object) -> None:
        """Keep nothing."""

    assert callable(KnownHeads.learn)
    KnownHeads.learn = learn  # type: ignore[method-assign,assignment]


WAYS: dict[str, Callable[[], None]] = {
    "busy-poll": _busy_poll,
    "gathering": _gathering,
    "known-heads": _known_heads,
}


def switch_off(way: str) -> None:
    """Do without one of `WAYS` in this process."""
    WAYS[way]()
