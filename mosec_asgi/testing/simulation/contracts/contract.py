"""The contracts by name, and the exception that says which one is broken."""

from __future__ import annotations

import enum

# Events that a violation shows.
SHOWN = 40


class Contract(enum.Enum):
    """The contracts, with the numbers of the design, and below them what goes without saying."""

    ONE_ANSWER = "1 one answer"
    RIGHT_ANSWER = "2 right answer"
    BOUNDED = "3 bounded"
    CRASH = "5 crash"
    RESPAWN = "6 respawn"
    TIME = "7 time"
    CANCELLATION = "8 cancellation"
    SHUTDOWN = "9 shutdown"
    ORDER = "10 order"
    CHANGE = "12 change without loss"
    COMPANY = "what shares a batch is of one key and within its budget"
    ONCE = "equal inputs that are at a stage at one time are computed once"
    TARGET = "no batch is too large for its stage's latency target"
    PROGRESS = "no task waits beside a worker that could run it"
    PROTOCOL = "workers are spoken to as they can understand"
    MESSAGES = "messages are the same after any way"
    MEMORY = "what lies in memory is dropped once"
    NO_ERRORS = "no exception escapes"


class Violation(AssertionError):
    """A contract does not hold.

    Attributes:
        contract: which.
        seed: of the history in which it was broken.
        replay: how to see it again.
    """

    def __init__(self, contract: Contract, text: str) -> None:
        super().__init__(f"{contract.value}: {text}")
        self.contract = contract
        self.seed: int | None = None
        self.replay = ""

    def tell(self, seed: int, history: list[str], replay: str) -> None:
        """Say where it comes from, and what happened before."""
        self.seed, self.replay = seed, replay
        lines = [f"seed {seed} breaks a contract: {self}", *history[-SHOWN:], f"to see it again: {replay}"]
        self.args = ("\n".join(lines),)
