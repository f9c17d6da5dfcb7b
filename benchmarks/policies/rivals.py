"""The policies of four other servers, after their documentation. Whole milliseconds are those of their event loops.

*mosec* (https://mosecorg.github.io/mosec, "Concept and FAQs"; `max_wait_time` of `append_worker`, `--wait`, 10 ms): a
stage's requests wait in one queue; a controller takes from it for each worker that is ready, until the batch is full or
the wait time is over. That time runs from when the first request is taken, not from when it came, and all controllers
that are ready take from the queue in turn, so that a burst is shared by idle workers (both seen in a run of mosec
0.9.8 with four workers).

*BentoML* (https://github.com/bentoml/BentoML, "Understanding BentoML adaptive micro batching"; its CORK dispatcher): a
batch's time is estimated from recent ones, as linear in its size. Requests are held back until it is not worth waiting
for another, or until the wait so far and the estimated time would exceed `max_latency_ms` (60,000 by default); and a
worker must be free. It looks once a millisecond. "Not worth": holding n requests back for one look more costs each of
them that time and the time of the one more item, and it stops where this exceeds what batches of late have waited. The
documentation's dispatcher is used, one for all workers; newer versions have one in each worker process.
It learns anew every 5 s there and after every few batches here, where time is short; the requests by which a server
that has just started learns, one by one, are left out.

*Triton* (https://docs.nvidia.com/deeplearning/triton-inference-server, "Batchers"): when a model instance is available,
the largest preferred size that can be formed is sent, or else, after `max_queue_delay_microseconds` (0 by default), all
that is there. Its timers are the system's, not an event loop's.

*Clipper* (Crankshaw et al., "Clipper: A Low-Latency Online Prediction Serving System", NSDI 2017, section 4.3): each
worker has a bound on the size of its batches, which grows by a fixed amount as long as batches take no longer than the
latency objective, and is reduced by a tenth where one does (additive increase, multiplicative decrease).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from policies.simulation import Job, Orders


def whole_milliseconds(when: float, now: float) -> float:
    """Return when an event loop's timer fires that is set now for `when`."""
    # Not one more for an error of rounding.
    return max(when, now + math.ceil((when - now) * 1000 - 1e-6) / 1000)


class Mosec:
    """A batch for each worker that is ready; the timer starts with the first task that is taken."""

    def __init__(self, workers: int, batch: int, wait: float) -> None:
        """Begin with all workers ready; `wait` is in seconds."""
        self._batch = batch
        self._wait = wait
        self._queue: deque[Job] = deque()
        # Those who listen to the queue, in the order in which they are served.
        self._listening: deque[int] = deque(range(workers))
        self._taken: dict[int, list[Job]] = {worker: [] for worker in range(workers)}
        self._until: dict[int, float] = {}

    def arrived(self, job: Job, now: float) -> None:
        """Give the job to the worker that has listened for longest."""
        self._queue.append(job)
        if self._listening:
            self._take(self._listening.popleft(), 1, now)

    def answered(self, worker: int, jobs: Sequence[Job], seconds: float, now: float) -> None:
        """Let the worker take what is there."""
        self._taken[worker] = []
        self._take(worker, self._batch, now)

    def decide(self, now: float) -> tuple[Orders, float | None]:
        """Send the batches that are full or have waited."""
        orders: Orders = []
        for worker, until in list(self._until.items()):
            if until <= now or len(self._taken[worker]) == self._batch:
                del self._until[worker]
                if worker in self._listening:
                    self._listening.remove(worker)
                orders.append((worker, self._taken[worker]))
        return orders, min(self._until.values(), default=None)

    def timer(self, when: float, now: float) -> float:
        """Return when the timer fires."""
        return whole_milliseconds(when, now)

    def _take(self, worker: int, most: int, now: float) -> None:
        taken = self._taken[worker]
        for _ in range(min(most, len(self._queue))):
            taken.append(self._queue.popleft())
        if taken and worker not in self._until:
            self._until[worker] = now + self._wait
        if len(taken) < self._batch:
            self._listening.append(worker)


class _Free:
    """Workers without a batch, the one that was used longest ago first, and the queue before them."""

    def __init__(self, workers: int, batch: int) -> None:
        self._batch = batch
        self._queue: deque[Job] = deque()
        self._free: deque[int] = deque(range(workers))

    def arrived(self, job: Job, now: float) -> None:
        """Take in a job."""
        self._queue.append(job)

    def answered(self, worker: int, jobs: Sequence[Job], seconds: float, now: float) -> None:
        """Hear that a worker is free."""
        self._free.append(worker)

    def _order(self, size: int) -> tuple[int, list[Job]]:
        return self._free.popleft(), [self._queue.popleft() for _ in range(size)]


class Triton(_Free):
    """What is there goes to an instance that is available, after a delay if one is set."""

    def __init__(self, workers: int, batch: int, delay: float = 0.0, preferred: Sequence[int] = ()) -> None:
        """Begin with all instances available.

        Args:
            workers: how many.
            batch: the most tasks in a batch.
            delay: seconds that a task may be delayed for a batch of the largest or a preferred size.
            preferred: such sizes.
        """
        super().__init__(workers, batch)
        self._delay = delay
        self._sizes = sorted({*preferred, batch}, reverse=True)

    def decide(self, now: float) -> tuple[Orders, float | None]:
        """Send to every available instance what may go."""
        orders: Orders = []
        while self._free and self._queue:
            size = next((size for size in self._sizes if size <= len(self._queue)), None)
            until = self._queue[0].arrived + self._delay
            if size is None and now < until:
                return orders, until
            orders.append(self._order(size or min(self._batch, len(self._queue))))
        return orders, None

    def timer(self, when: float, now: float) -> float:
        """Return when the timer fires."""
        return when


class Clipper(_Free):
    """All that is there, up to a bound for each worker that grows step by step and falls back by a tenth."""

    STEP = 1
    BACK_OFF = 0.9

    def __init__(self, workers: int, batch: int, target: float) -> None:
        """Begin with all workers free and batches of one; `target` is in seconds."""
        super().__init__(workers, batch)
        self._target = target
        self._bound = [1.0] * workers

    def answered(self, worker: int, jobs: Sequence[Job], seconds: float, now: float) -> None:
        """Hear that a worker is free; adapt its bound to the time of its batch."""
        super().answered(worker, jobs, seconds, now)
        bound = self._bound[worker]
        if seconds > self._target:
            self._bound[worker] = max(1.0, bound * self.BACK_OFF)
        elif len(jobs) >= int(bound):
            # Only a batch that was as large as it may be says that a larger one may do.
            self._bound[worker] = min(float(self._batch), bound + self.STEP)

    def decide(self, now: float) -> tuple[Orders, float | None]:
        """Send to every free worker what may go."""
        orders: Orders = []
        while self._free and self._queue:
            orders.append(self._order(min(int(self._bound[self._free[0]]), len(self._queue))))
        return orders, None

    def timer(self, when: float, now: float) -> float:
        """Return when the timer fires."""
        return when


class BentoML(_Free):
    """Waits while that costs those who wait less than batches have waited of late."""

    LOOK = 0.001
    SAMPLES = 50
    # A batch is let go a little before it has waited as long as others, so that waits can become shorter.
    DECAY = 0.95
    # Batches between two times of learning.
    LEARN = 10

    def __init__(self, workers: int, batch: int, max_latency: float = 60.0) -> None:
        """Begin with all workers free and nothing known; `max_latency` is in seconds."""
        super().__init__(workers, batch)
        self._max_latency = max_latency
        self._look_at = 0.0
        # Size, seconds of work and seconds of waiting of recent batches.
        self._recent: deque[tuple[int, float, float]] = deque(maxlen=self.SAMPLES)
        self._waited: dict[int, float] = {}
        self._answered = 0
        self._per_item, self._fixed, self._wait = 0.0, 0.0, 0.0

    def answered(self, worker: int, jobs: Sequence[Job], seconds: float, now: float) -> None:
        """Hear that a worker is free; learn from its batch."""
        super().answered(worker, jobs, seconds, now)
        self._recent.append((len(jobs), seconds, self._waited.pop(worker)))
        self._answered += 1
        if self._answered % self.LEARN == 0:
            self._learn()

    def decide(self, now: float) -> tuple[Orders, float | None]:
        """Send what is not worth holding back; look again in a millisecond if anything is left."""
        orders: Orders = []
        if self._queue and now < self._look_at:
            return orders, self._look_at
        while self._queue:
            if not self._free or self._worth_waiting(now):
                self._look_at = now + self.LOOK
                return orders, self._look_at
            orders.append(self._send(now))
        return orders, None

    def timer(self, when: float, now: float) -> float:
        """Return when the timer fires."""
        return whole_milliseconds(when, now)

    def _worth_waiting(self, now: float) -> bool:
        count = len(self._queue)
        estimated = now - self._queue[0].arrived + self._per_item * count + self._fixed
        if count >= self._batch or estimated >= self._max_latency:
            return False
        cost = count * (now - self._queue[-1].arrived + self.LOOK + self._per_item)
        return cost <= self.DECAY * self._wait

    def _send(self, now: float) -> tuple[int, list[Job]]:
        worker, jobs = self._order(min(self._batch, len(self._queue)))
        self._waited[worker] = now - jobs[0].arrived
        return worker, jobs

    def _learn(self) -> None:
        """Fit the time of a batch to its size, by least squares."""
        count = len(self._recent)
        mean_size = sum(size for size, _, _ in self._recent) / count
        mean_seconds = sum(seconds for _, seconds, _ in self._recent) / count
        spread = sum((size - mean_size) ** 2 for size, _, _ in self._recent)
        together = sum((size - mean_size) * (seconds - mean_seconds) for size, seconds, _ in self._recent)
        self._per_item = max(1e-6, together / spread if spread else 0.0)
        self._fixed = max(0.0, mean_seconds - self._per_item * mean_size)
        self._wait = sum(waited for _, _, waited in self._recent) / count
