"""Which tasks of a stage go to which worker, and when. Pure: time comes in as `now`, decisions come out as data.

The `Scheduler` of a stage holds its queue (`queue`), what is known of its workers (`loads`), and the policy that picks
(`policy`): windows of single tasks, or batches. Tasks that must be run alone come first (`quarantine`). The stage tells
the scheduler what has happened (`enqueue`, `answered`, `add_worker`, ...) and asks `assign(now)` what to do: a list of
picks to send, and the time at which to ask again if nothing happens before.

Tasks start in order of arrival, unless the stage has rules of cost or key, or a task has brought a priority or a
tenant: only then is there another queue and another policy (`ordered_queue`, `policy.ordered`). One central queue: a
worker is chosen when the task leaves it, not when it comes.

*Concurrent workers* (`concurrency` above 1: an event loop, or the slots of a continuous batch) run several tasks, or
several batches, at a time. They answer in any order, and are sent a quarter more tasks than they run, so that the next
task begins without a round trip when one is done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Generic

from mosec_asgi.batching.arrivals import Arrivals
from mosec_asgi.batching.full_batches import FullBatches
from mosec_asgi.batching.leeway import Leeway
from mosec_asgi.batching.loads import MAX_WINDOW, AnswerError, Loads, brief
from mosec_asgi.batching.ordered_queue import OrderedQueue
from mosec_asgi.batching.policy import Pick, Policy, WorkerKey, quarantine
from mosec_asgi.batching.policy.batch import BatchPolicy, Waiting
from mosec_asgi.batching.policy.ordered import OrderedBatchPolicy
from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.policy.steered import SteeredBatchPolicy, SteeredOrderedBatchPolicy
from mosec_asgi.batching.policy.steering import Steering
from mosec_asgi.batching.policy.window import WindowPolicy
from mosec_asgi.batching.queue import TaskQueue
from mosec_asgi.batching.task import Task
from mosec_asgi.observing.statistics import BatchLine


class Scheduler(Generic[WorkerKey]):
    """The queue of one stage, the loads of its workers, and the policy that brings them together."""

    def __init__(
        self,
        max_batch_size: int,
        max_wait: float,
        *,
        adaptive: bool = False,
        concurrency: int = 1,
        ordered: bool = True,
        rules: Rules | None = None,
        latency_target: float = 0.0,
        policy: Policy[WorkerKey] | None = None,
    ) -> None:
        """Begin with an empty queue and no workers.

        Args:
            max_batch_size: the most tasks in a batch; 1 turns batching off.
            max_wait: seconds that a task may wait for its batch to fill.
            adaptive: let an idle worker start before `max_wait` where waiting does not pay.
            concurrency: batches, or tasks where there is no batching, that a worker runs at a time.
            ordered: a worker answers in the order in which it was sent its tasks; else in any.
            rules: of cost, key, priority and tenant; None for those of a stage that has set none.
            latency_target: seconds that a task should be at the stage, which bounds batches; 0 for no such wish.
            policy: picks tasks and workers; None for windows without batching and for batches in order of arrival.
        """
        self.batched = max_batch_size > 1
        self.rules = rules or Rules()
        self._size = max_batch_size
        self._max_wait = max_wait
        self.queue = TaskQueue()
        # What waiting must leave to a task of its time: whoever measures that says so here.
        self.leeway = Leeway()
        self.loads: Loads[WorkerKey] = Loads(batched=self.batched, concurrency=concurrency, ordered=ordered)
        self._arrivals = Arrivals() if adaptive and self.batched else None
        # Bounds the batches by the latency target; None where there is none, or no batching.
        self.steering = self._steering_for(latency_target)
        # What batches are where the sum of costs bounds them; else None.
        self._full = FullBatches(max_batch_size) if self.batched and self.rules.sums_costs else None
        self._policy = policy or self._usual_policy()
        self._in_order_of_arrival = True
        if not self.rules.plain:
            self._put_in_order()

    def __repr__(self) -> str:
        return f"<Scheduler queued={self.queued} sent={self.in_flight} workers={len(self.loads)}>"

    def _usual_policy(self) -> Policy[WorkerKey]:
        if not self.batched:
            return WindowPolicy()
        if self.steering is not None:
            return SteeredBatchPolicy(self._size, self._waiting, self.steering)
        return BatchPolicy(self._size, self._waiting)

    @property
    def _waiting(self) -> Waiting:
        return Waiting(self._max_wait, self._arrivals, self.leeway)

    def _steering_for(self, latency_target: float) -> Steering | None:
        return Steering(latency_target, self._size, self.rules) if latency_target > 0.0 and self.batched else None

    def configure(
        self, max_batch_size: int, max_wait: float, *, adaptive: bool, concurrency: int, latency_target: float = 0.0
    ) -> None:
        """Go on with other values, by the usual policy; for the arguments see `__init__`.

        Whether there is batching stays as it is. What workers have already is not touched.
        """
        if not (adaptive and self.batched):
            self._arrivals = None
        elif self._arrivals is None:
            self._arrivals = Arrivals()
        self._size, self._max_wait = max_batch_size, max_wait
        if self.steering is None or latency_target <= 0.0:
            self.steering = self._steering_for(latency_target)
        else:
            self.steering.configure(latency_target, max_batch_size)
        if self._in_order_of_arrival:
            self._policy = self._usual_policy()
        else:
            self._put_in_order()
        self.loads.run_at_a_time(concurrency)

    @property
    def queued(self) -> int:
        """Live tasks that wait."""
        return self.queue.live

    @property
    def queued_work(self) -> float:
        """What waits, counted in tasks of the usual cost: of the size of the batches that it makes."""
        live = self.queue.live
        if self._full is None or not isinstance(self.queue, OrderedQueue):
            return live
        # A task whose cost is beyond the sum that is allowed is a batch of its own, and no more than one.
        batches = min(live, max(live / self._size, self.queue.cost / self.rules.max_cost))
        return batches * self.usual_size

    @property
    def in_flight(self) -> int:
        """Tasks that workers have and have not answered."""
        return self.loads.in_flight

    @property
    def units(self) -> int:
        """Batches, or tasks where there is no batching, that stand before others: no draining worker has them."""
        return self.loads.units

    @property
    def workers(self) -> int:
        """Workers that can be given tasks."""
        return len(self.loads)

    @property
    def waiting_since(self) -> float:
        """When the task that waits the longest came to this stage; infinite where none waits."""
        head = self.queue.head()
        return math.inf if head is None else head.queued

    def begun_before(self, time: float) -> int:
        """Return how many of the tasks that workers run at this moment were begun before `time`."""
        return self.loads.begun_before(time)

    @property
    def starts_at_once(self) -> bool:
        """Whether a single waiting task can start at once: no batch is to be filled, and workers have nothing to do."""
        return self.queue.live == 1 and self.loads.in_flight == 0 and not self.batched

    # -- what has happened -------------------------------------------------------------------------------------------

    def add_worker(self, worker: WorkerKey) -> None:
        """Take a worker into use; it has nothing yet."""
        self.loads.add(worker)

    def drain_worker(self, worker: WorkerKey) -> None:
        """Give a worker no more tasks; it has to answer those that it has."""
        self.loads.drain(worker)

    def remove_worker(self, worker: WorkerKey) -> list[Task]:
        """Forget a worker; return the tasks that it had not answered, in the order in which they were sent."""
        return self.loads.remove(worker)

    def enqueue(self, task: Task, now: float) -> None:
        """Put a task that has arrived at this stage into the queue."""
        if self._in_order_of_arrival and (task.priority or task.tenant):
            self._put_in_order()
        self.queue.append(task)
        if self._arrivals is not None:
            self._arrivals.arrived(now, self.queue.live + self.loads.in_flight)

    def yields_to(self, priority: int, tenant: str, cost: int) -> Task | None:
        """Return the task that gives its place to one that comes and would be refused; None where none does.

        Under overload the lowest priority goes first, and of that the task whose turn comes last.
        """
        if self._in_order_of_arrival:
            if not (priority or tenant):
                return None
            self._put_in_order()
        assert isinstance(self.queue, OrderedQueue)
        return self.queue.yields_to(priority, tenant, cost)

    def _put_in_order(self) -> None:
        """Have another order than that of arrival from here on: a task, or a rule, asks for it."""
        self._in_order_of_arrival = False
        if isinstance(self.queue, OrderedQueue):
            self.queue.resize(self._size)
        else:
            self.queue = OrderedQueue.of(self.queue, self.rules, self._size)
        if not self.batched:
            self._policy = WindowPolicy(ahead=False)
        elif self.steering is not None:
            self._policy = SteeredOrderedBatchPolicy(self._size, self._waiting, self.rules, self.steering)
        else:
            self._policy = OrderedBatchPolicy(self._size, self._waiting, self.rules)

    def requeue(self, tasks: Iterable[Task]) -> None:
        """Put tasks of a dead worker back into the queue, in order of arrival; those with attempts must run alone."""
        self.queue.requeue(tasks)

    def proven(self, worker: WorkerKey) -> None:
        """Note that the task which `worker` runs alone has sent an event, so that other tasks may join it."""
        self.loads[worker].alone = False

    def discard(self, task: Task) -> None:
        """Note that `task`, which waits here, is being settled; to be called once, before it is."""
        self.queue.discard(task)

    def answered(self, worker: WorkerKey, ids: Sequence[int], seconds: float, now: float) -> list[Task]:
        """Note a worker's answers.

        Args:
            worker: who answers.
            ids: the numbers of the tasks.
            seconds: the time that it was at work on them.
            now: the time.

        Returns:
            the tasks, in the order of `ids`.

        Raises:
            AnswerError: it has no such task, has answered it already, or has to answer another one before, or `seconds`
                is no time; nothing is changed.
        """
        if not 0.0 <= seconds < math.inf:
            # A value that is not a number would stay in the moving averages for ever.
            raise AnswerError(f"answered the tasks {brief(ids)} in {seconds} seconds")
        loads, arrivals = self.loads, self._arrivals
        idle = arrivals is not None and loads.free > 0
        tasks = loads.answered(worker, ids, now)
        if not tasks:
            return tasks
        if self.steering is not None:
            self._learn(worker, tasks, seconds, now)
        if arrivals is not None:
            arrivals.answered(now, self.queue.live + loads.in_flight + len(tasks), seconds, idle=idle)
        elif not self.batched and loads.concurrency == 1:
            loads[worker].measure(seconds / len(tasks))
        return tasks

    def _learn(self, worker: WorkerKey, tasks: Sequence[Task], seconds: float, now: float) -> None:
        """Note what a batch has taken, if these answers are its last."""
        first = tasks[-1].batch
        count = self.loads.size_of_ended(worker, first)
        if self.steering is not None and count:
            # Where a worker runs several batches at a time, it is not known when each was begun.
            seconds = now - tasks[0].began if self.loads.concurrency == 1 else seconds
            self.steering.learn([task for task in tasks if task.batch == first], count, seconds)

    @property
    def slots(self) -> int:
        """Batches, or tasks where there is no batching, that run at a time; where no worker is ready, those of one."""
        return max(1, self.workers) * self.loads.concurrency

    @property
    def batch_line(self) -> BatchLine | None:
        """What batches take, where a latency target bounds them and that is known."""
        return None if self.steering is None else self.steering.line(self.slots)

    @property
    def varies(self) -> bool:
        """Whether batches may be full with fewer tasks than their number allows; see `usual_size`."""
        return self._full is not None or self.steering is not None

    @property
    def usual_size(self) -> int:
        """How many tasks there are in a batch where there is always work."""
        if self._full is not None:
            return min(self._full.size, self._size)
        return self._size if self.steering is None else self.steering.usual_size(self.slots)

    @property
    def together(self) -> int:
        """The most tasks that the next batch may hold, with those that wait: fewer where a latency target bounds it."""
        if self.steering is None:
            return min(self._size, self.queue.live)
        return min(self.steering.size(self.slots), self.queue.live)

    def done_in(self, now: float) -> float | None:
        """Return in how many seconds a task is done that comes now; None where no latency target tells (`Steering`)."""
        return None if self.steering is None else self.steering.done_in(self.queue.live, self.loads, now)

    def pressing(self, before: float) -> list[Task]:
        """Return the tasks whose deadline is before a time, of those that could be sent to some worker now."""
        return self.queue.pressing(before, MAX_WINDOW) if self.loads.any_room else []

    # -- what to do --------------------------------------------------------------------------------------------------

    def assign(self, now: float) -> tuple[list[Pick[WorkerKey]], float | None]:
        """Decide which tasks go to which worker now.

        Args:
            now: the time, in the seconds in which tasks carry theirs.

        Returns:
            the picks that were carried out, whose tasks are marked as sent, and the time at which to ask again even if
            nothing happens until then, or None.
        """
        queue, loads = self.queue, self.loads
        if not queue.live or not len(loads):
            return [], None
        picks: list[Pick[WorkerKey]] = []
        if queue.lone:
            picks = self._assign_lone()
            if quarantine.holds_back_others(queue, loads):
                return picks, None
        while queue.others:
            pick = self._policy.pick(queue, loads, now)
            if not isinstance(pick, Pick):
                return picks, pick
            if self._full is not None and isinstance(queue, OrderedQueue) and queue.is_full(pick.tasks[0]):
                self._full.note(len(pick.tasks))
            if self.steering is not None:
                # The next pick asks when this worker will be done.
                for task in pick.tasks:
                    task.began = now
            self._give(pick, picks)
        return picks, None

    def _assign_lone(self) -> list[Pick[WorkerKey]]:
        picks: list[Pick[WorkerKey]] = []
        for pick in quarantine.picks(self.queue, self.loads):
            self.queue.take(pick.tasks)
            self.loads.give(pick.worker, pick.tasks)
            self.loads[pick.worker].alone = True
            picks.append(pick)
        return picks

    def _give(self, pick: Pick[WorkerKey], picks: list[Pick[WorkerKey]]) -> None:
        """Carry out a pick."""
        worker, tasks = pick.worker, pick.tasks
        self.queue.take(tasks)
        self.loads.give(worker, tasks)
        if not self.batched:
            for other in picks:
                if other.worker == worker:
                    # One message for all that a worker is sent at a time; a batch is a message of its own.
                    other.tasks += tasks
                    return
        picks.append(pick)
