"""`ScriptedWorker`: a worker of an inline service, whose faults a test scripts."""

from __future__ import annotations

from typing import Any, Protocol

from mosec_asgi.worker import Worker


class Life(Protocol):
    """One life of a worker, as its script knows it."""

    def crash(self) -> None:
        """End it now, as a signal does."""

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does."""

    def thaw(self) -> None:
        """Let it go on."""

    def garble(self) -> None:
        """Let it say what has no meaning."""


class ScriptedWorker:
    """A worker whose faults a test scripts.

    It is one of the `num` workers of a stage. When it dies and is started again, it is the same object.

    Attributes:
        stage: the stage's name.
        number: of the worker in its stage, from 1.
        calls: what `forward` was called with so far, warm-up not included; of a `ContinuousWorker`, `admit`.
        starts: how often it was started.
        instance: the user's worker of the present life; None while there is none.
    """

    def __init__(self, stage: str, number: int) -> None:
        self.stage = stage
        self.number = number
        self.calls: list[Any] = []
        self.starts = 0
        self.instance: Worker | None = None
        # Of the present life, where there is one.
        self._life: Life | None = None
        self._seconds = 0.0
        self._failing_starts = 0
        self._repeats = 0
        # Tasks that it still begins before it crashes, for one life after the other, and before it hangs.
        self._crashes: list[int] = []
        self._freeze_in: int | None = None

    def __repr__(self) -> str:
        return f"<ScriptedWorker {self.stage} {self.number}>"

    # -- for tests ---------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._life is not None

    def crash(self, after: int | None = None, *, times: int = 1) -> None:
        """Let the worker die, as by a segmentation fault; the service starts it again.

        Args:
            after: the number of tasks that it still begins; it dies when it begins the next one. None to die now.
            times: how often it dies so, after each start anew. `crash(after=0, times=2)` is a request that kills each
                worker that runs it.
        """
        if after is None:
            self._living().crash()
        else:
            self._crashes = [after] * times

    def hang(self, after: int | None = None) -> None:
        """Let the worker stop making progress, as by SIGSTOP, until `resume`; the service's watchdog notices it.

        Args:
            after: the number of tasks that it still begins; it hangs when it begins the next one. None to hang now.
        """
        if after is None:
            self._living().freeze()
        else:
            self._freeze_in = after

    def resume(self) -> None:
        """Let a worker that hangs go on."""
        self._freeze_in = None
        self._living().thaw()

    def garble(self) -> None:
        """Let the worker send invalid data now; the service replaces it."""
        self._living().garble()

    def answer_twice(self) -> None:
        """Let it send its next answer twice."""
        self._repeats += 1

    def slow(self, seconds: float) -> None:
        """Let each further call of `forward` (of a `ContinuousWorker`, `step`) take `seconds` longer; 0 for none."""
        self._seconds = seconds

    def fail_to_start(self, times: int = 1) -> None:
        """Let the next `times` starts fail; call this before the service starts to let the first ones fail."""
        self._failing_starts += times

    def _living(self) -> Life:
        if self._life is None:
            raise RuntimeError(f"{self!r} is not alive at this moment; wait until it has been started again")
        return self._life

    # -- for its lives -----------------------------------------------------------------------------------------------

    def born(self, life: Life) -> bool:
        """Note a start; return whether it is to fail."""
        self._life = life
        self.starts += 1
        fails = self._failing_starts > 0
        self._failing_starts -= fails
        return fails

    def died(self) -> None:
        """Note the end of the present life."""
        self._life = self.instance = None

    def begins(self, tasks: int) -> str:
        """Note that it begins tasks; return "crash" or "freeze" where it is to do so now."""
        if self._crashes:
            self._crashes[0] -= tasks
            if self._crashes[0] < 0:
                del self._crashes[0]
                return "crash"
        if self._freeze_in is not None:
            self._freeze_in -= tasks
            if self._freeze_in < 0:
                self._freeze_in = None
                return "freeze"
        return ""

    @property
    def seconds(self) -> float:
        """How long each call takes."""
        return self._seconds

    def repeats(self) -> bool:
        """Whether the answer that it sends now is to be sent twice."""
        twice = self._repeats > 0
        self._repeats -= twice
        return twice
