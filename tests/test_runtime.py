from __future__ import annotations

import dataclasses
import functools
import multiprocessing
from collections.abc import Hashable, Sequence
from typing import Annotated, Any

import numpy as np
import pytest
from fakes import AsyncEvents, Echo, Events, Pushes, Steps

from mosec_asgi.config import Settings
from mosec_asgi.definition import plan_service, plan_stage
from mosec_asgi.errors import DefinitionError
from mosec_asgi.runtime import Runtime, stage_names
from mosec_asgi.streaming import ContinuousWorker
from mosec_asgi.worker import Worker


class Other(Echo):
    pass


class NoForward(Worker):
    pass


class NoWorker:
    def forward(self, data: Any) -> Any:
        return data


class Coroutine(Worker):
    async def forward(self, data: Any) -> Any:
        return data


class Generator(Worker):
    def forward(self, data: Any) -> Any:
        yield data


class AsyncGenerator(Worker):
    async def forward(self, data: Any) -> Any:
        yield data


class AsyncSteps(Steps):
    async def step(self) -> Any:
        return []


class AsyncAdmits(Steps):
    async def admit(self, item: Any) -> Any:
        yield item


class NoStep(ContinuousWorker):
    def admit(self, item: Any) -> Hashable:
        return item

    def evict(self, slot: Hashable) -> None:
        pass


def test_the_defaults() -> None:
    runtime = Runtime(Echo)
    assert (runtime.num, runtime.max_batch_size, runtime.max_wait_time, runtime.timeout) == (1, 1, 0, 0.0)
    assert (runtime.start_method, runtime.env) == ("spawn", None)
    assert (runtime.max_attempts, runtime.isolation_calls, runtime.concurrency) == (2, None, 1)


def test_settings_may_be_given_by_place_in_mosecs_order() -> None:
    runtime = Runtime(Echo, 2, 8, 5, 1.5, "fork", [{"A": "1"}, {"A": "2"}])
    assert (runtime.num, runtime.max_batch_size, runtime.max_wait_time, runtime.timeout) == (2, 8, 5, 1.5)
    assert (runtime.start_method, runtime.env) == ("fork", [{"A": "1"}, {"A": "2"}])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num": 0}, "num must be at least 1, not 0"),
        ({"num": 1.0}, r"num must be a whole number, not 1.0 \(float\)"),
        ({"num": True}, r"num must be a whole number, not True \(bool\)"),
        ({"max_batch_size": 0}, "max_batch_size must be at least 1, not 0"),
        ({"max_batch_size": "8"}, r"max_batch_size must be a whole number, not '8' \(str\)"),
        ({"max_wait_time": -1}, "max_wait_time must be at least 0, not -1"),
        ({"max_wait_time": 0.5}, r"max_wait_time must be a whole number of milliseconds, not 0.5 \(float\)"),
        ({"max_memory": "2G"}, r"max_memory must be a whole number of bytes, not '2G' \(str\)"),
        ({"timeout": -1}, "timeout must be a number of seconds, 0 or more, not -1"),
        ({"timeout": "1"}, "timeout must be a number of seconds, 0 or more, not '1'"),
        ({"timeout": float("nan")}, "timeout must be a number of seconds"),
        ({"timeout": float("inf")}, "timeout must be a number of seconds"),
        ({"timeout": True}, "timeout must be a number of seconds"),
        ({"start_method": "thread"}, "start_method must be one of spawn, fork, not 'thread'"),
        ({"env": {"A": "1"}}, "env must be a list with one dictionary per worker"),
        ({"env": ["A=1"]}, "env must be a list with one dictionary per worker"),
        ({"env": []}, "env has 0 dictionaries and num is 1; give each of the 1 workers one"),
        ({"env": [{}, {}]}, "env has 2 dictionaries and num is 1"),
        ({"env": [{"A": 1}]}, "env of worker 1: 'A': 1 must be text on both sides; write 'A': '1'"),
        ({"num": 2, "env": [{}, {2: "x"}]}, "env of worker 2: 2: 'x' must be text on both sides; write '2': 'x'"),
        ({"max_attempts": 0}, "max_attempts must be at least 1, not 0"),
        ({"isolation_calls": -1}, "isolation_calls must be at least 0, not -1"),
        ({"concurrency": 0}, "concurrency must be at least 1, not 0"),
        ({"concurrency": 2.0}, r"concurrency must be a whole number, not 2.0 \(float\)"),
        ({"concurrency": True}, "concurrency must be a whole number, not True"),
        ({"preload": 1}, "preload must be True or False, not 1"),
        ({"preload": True, "start_method": "fork"}, "leave out start_method='fork'"),
        ({"preload": True, "num": 2, "env": [{"A": "1"}, {"A": "2"}]}, "env must be the same for each; leave preload"),
        ({"concurrency": 2}, "concurrency=2 needs an asynchronous worker: make Echo.forward `async`, or use num"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_change(options: dict[str, Any], text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        Runtime(Echo, **options)


@pytest.mark.parametrize(
    ("worker", "text"),
    [
        pytest.param(Echo(), "append the class Echo itself, not an instance", id="an-instance"),
        (NoWorker, "is no worker: a worker is a subclass of mosec_asgi.Worker"),
        (print, "is no worker"),
        ("Echo", "'Echo' is no worker"),
        (NoForward, "the worker NoForward does not define forward; add it to the class"),
        (Worker, "does not define forward"),
        (Generator, "Generator.forward is a generator, which streams; derive Generator from SSEWorker"),
        (AsyncGenerator, "AsyncGenerator.forward is a generator, which streams; derive AsyncGenerator from SSEWorker"),
        (NoStep, "the worker NoStep does not define step; add it to the class"),
        (ContinuousWorker, "does not define admit, evict, step"),
        (AsyncSteps, "AsyncSteps.step is asynchronous; a ContinuousWorker has plain methods"),
        (AsyncAdmits, "AsyncAdmits.admit is asynchronous"),
    ],
    ids=str,
)
def test_what_is_no_worker_is_refused(worker: Any, text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        Runtime(worker)


@pytest.mark.parametrize("worker", [Coroutine, AsyncEvents, Pushes])
def test_an_asynchronous_worker_may_work_on_several_at_a_time(worker: type[Worker]) -> None:
    assert Runtime(worker, concurrency=100).concurrency == 100
    assert Runtime(worker, max_batch_size=8, concurrency=2).concurrency == 2


@pytest.mark.parametrize("worker", [Echo, Events, Steps])
def test_no_other_worker_may(worker: type[Worker]) -> None:
    with pytest.raises(DefinitionError, match=f"make {worker.__name__}.forward `async`"):
        Runtime(worker, max_batch_size=8, concurrency=2)


def test_preloaded_workers_may_have_variables_that_are_the_same_for_all() -> None:
    assert Runtime(Echo, num=2, env=[{"A": "1"}] * 2, preload=True).preload


# -- as it is to be run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runtime", "batch_size", "concurrency", "ordered", "streams"),
    [
        (Runtime(Echo), 1, 1, True, False),
        (Runtime(Echo, max_batch_size=8), 8, 1, True, False),
        (Runtime(Coroutine, concurrency=5), 1, 5, False, False),
        (Runtime(Coroutine, max_batch_size=8, concurrency=5), 8, 5, False, False),
        (Runtime(Events), 1, 1, False, True),
        (Runtime(Events, max_batch_size=8), 8, 1, False, True),
        (Runtime(AsyncEvents, concurrency=5), 1, 5, False, True),
        # Its batch is formed in the worker, which has a slot for each task.
        (Runtime(Steps, max_batch_size=8), 1, 8, False, True),
        (Runtime(Steps), 1, 1, False, True),
    ],
    ids=lambda value: value.worker.__name__ if isinstance(value, Runtime) else None,
)
def test_how_a_stage_is_run_follows_from_its_worker(
    runtime: Runtime, batch_size: int, concurrency: int, ordered: bool, streams: bool
) -> None:
    plan = plan_stage(runtime, "Name_1", Settings())
    assert (plan.batch_size, plan.concurrency, plan.ordered, plan.streams) == (
        batch_size, concurrency, ordered, streams,
    )  # fmt: skip
    (spec,) = plan.specs
    assert (spec.max_batch_size, spec.concurrency) == (runtime.max_batch_size, runtime.concurrency)


def test_a_stage_has_its_own_times_and_those_of_the_service_where_it_has_none() -> None:
    settings = Settings(timeout=2500, wait=20, start_timeout=4000, stream_buffer=2048, log_level="error")
    plan = plan_stage(Runtime(Echo, num=2, env=[{"A": "1"}, {"A": "2"}]), "Echo_1", settings)
    assert (plan.timeout, plan.max_wait, plan.adaptive, plan.start_timeout) == (2.5, 0.02, True, 4.0)
    assert plan.variables == [{"A": "1"}, {"A": "2"}]
    assert [(spec.stage, spec.worker_id) for spec in plan.specs] == [("Echo_1", 1), ("Echo_1", 2)]
    assert {(spec.stream_buffer, spec.log_level, spec.log_text) for spec in plan.specs} == {(2048, "error", False)}
    own = plan_stage(Runtime(Echo, max_wait_time=5, timeout=0.5, max_attempts=3, isolation_calls=0), "Echo_1", settings)
    assert (own.timeout, own.max_wait, own.adaptive, own.max_attempts) == (0.5, 0.005, False, 3)
    assert own.specs[0].isolation_calls == 0


def test_buffers_go_apart_where_all_stages_that_read_them_unpickle_by_default() -> None:
    class Own(Echo):
        def deserialize_ipc(self, data: bytes) -> bytes:
            return data

    first, plain, own = Runtime(Echo), Runtime(Other), Runtime(Own)
    for routes, apart in (
        ({"/a": [first, plain]}, True),
        ({"/a": [first, own]}, False),
        ({"/a": [first, plain], "/b": [first, own]}, False),
        ({"/a": [first, plain, own]}, True),
    ):
        stages, _, _ = plan_service(routes, Settings())
        assert stages[0].specs[0].buffers_apart is apart


def test_a_refusal_is_a_value_error_for_programs_written_for_mosec() -> None:
    with pytest.raises(ValueError, match="num must be"):
        Runtime(Echo, num=0)


def test_no_isolation_and_no_second_attempt_are_allowed() -> None:
    runtime = Runtime(Echo, max_attempts=1, isolation_calls=0)
    assert (runtime.max_attempts, runtime.isolation_calls) == (1, 0)


def test_stages_are_named_by_class_and_place_in_order_of_creation() -> None:
    first, second, third = Runtime(Echo), Runtime(Other), Runtime(Echo)
    assert stage_names([third, second, first, second]) == {first: "Echo_1", second: "Other_2", third: "Echo_3"}
    assert list(stage_names([third, first])) == [first, third]


def test_numbers_begin_anew_in_each_server() -> None:
    Runtime(Echo)
    later = Runtime(Other)
    assert stage_names([later]) == {later: "Other_1"}


def test_a_stage_says_what_it_is() -> None:
    assert repr(Runtime(Echo, num=2, max_batch_size=8)) == "<Runtime Echo num=2 max_batch_size=8>"


def test_no_stages_have_no_names() -> None:
    assert stage_names([]) == {}


@pytest.mark.parametrize(
    "value", ["text/plain\r\nset-cookie: a=b", "text/plain\n", "", " ", "text/ü", "a\x00b", None, 3]
)
def test_a_mime_type_that_is_no_header_value_is_refused_where_it_is_defined(value: Any) -> None:
    class Odd(Worker):
        resp_mime_type = value

        def forward(self, data: Any) -> Any:
            return data

    with pytest.raises(DefinitionError, match="resp_mime_type"):
        Runtime(Odd)


# -- arguments of the constructor --------------------------------------------------------------------------------------


class Model(Worker):
    def __init__(self, path: str, *, size: int = 1) -> None:
        self.path = path

    def forward(self, data: Any) -> Any:
        return data


def test_a_worker_has_arguments() -> None:
    runtime = Runtime(Model, args=["weights"], kwargs={"size": 2})
    assert (runtime.args, runtime.kwargs) == (("weights",), {"size": 2})
    (spec,) = plan_stage(runtime, "Model_1", Settings()).specs
    assert (spec.args, spec.kwargs) == (("weights",), {"size": 2})


@pytest.mark.parametrize(
    ("worker", "options", "text"),
    [
        (Model, {}, "Model.__init__ cannot be called: missing a required argument: 'path'; give its arguments by"),
        (Model, {"args": ("a", "b")}, "cannot be called: too many positional arguments"),
        (Model, {"args": ("a",), "kwargs": {"colour": 1}}, "got an unexpected keyword argument 'colour'"),
        (Model, {"args": "weights"}, "args must be a tuple or a list of Model's arguments, not 'weights'"),
        (Model, {"args": ("a",), "kwargs": [1]}, "kwargs must be a dictionary of Model's arguments"),
        (Echo, {"args": (1,)}, "Echo has no __init__ that would take args or kwargs"),
        (Model, {"args": (lambda: 1,)}, r"args\[0\] of Model cannot be sent to a spawned process: .*method='fork'"),
        (Model, {"args": ("a",), "kwargs": {"size": (x for x in "a")}},
         r"kwargs\['size'\] of Model cannot be sent to a spawned process: cannot pickle 'generator'"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(worker: type[Worker], options: dict[str, Any], text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        Runtime(worker, **options)


def test_what_cannot_be_pickled_can_be_inherited() -> None:
    assert Runtime(Model, args=(lambda: 1,), start_method="fork").args
    # Its processes are spawned by `multiprocessing`, which knows how.
    assert Runtime(Model, args=(multiprocessing.get_context("spawn").Lock(),)).args


# -- batches and times -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Item:
    text: str


def takes(annotation: Any) -> type[Worker]:
    class Takes(Worker):
        def forward(self, data):  # type: ignore[no-untyped-def]
            return data

    Takes.forward.__annotations__ = {"data": annotation}
    return Takes


@pytest.mark.parametrize("annotation", [str, bytes, int, "dict[str, int]", Item, str | None, Annotated[float, "x"]])
def test_a_batched_forward_that_takes_one_item_is_refused(annotation: Any) -> None:
    with pytest.raises(DefinitionError, match=r"Takes.forward takes `data: .*max_batch_size=8 .* write `data: list\["):
        Runtime(takes(annotation), max_batch_size=8)
    assert Runtime(takes(annotation)).max_batch_size == 1


@pytest.mark.parametrize(
    "annotation",
    [Any, list[str], list, Sequence[int], tuple[int, ...], "Unknown", list[str] | None, str | list[str], np.ndarray],
)
def test_what_may_be_a_batch_is_taken(annotation: Any) -> None:
    assert Runtime(takes(annotation), max_batch_size=8).max_batch_size == 8


def test_a_timeout_in_milliseconds_is_noticed(logged: pytest.LogCaptureFixture) -> None:
    Runtime(Echo, timeout=600)
    assert not logged.records
    Runtime(Echo, timeout=5000)
    (record,) = logged.records
    assert record.getMessage() == (
        "timeout=5000 of Echo is in seconds; for 5000 milliseconds write timeout=5"
    )  # fmt: skip


# -- streams before the last stage -------------------------------------------------------------------------------------


def test_a_worker_that_could_stream_does_so_only_in_the_last_stage() -> None:
    first, middle, last = Runtime(Echo), Runtime(Pushes), Runtime(Pushes)
    stages, _, _ = plan_service({"/a": [first, middle, last]}, Settings())
    assert [plan.streams for plan in stages] == [False, False, True]
    assert stages[1].specs[0].next_stages == ("Pushes_3",)
    assert not stages[2].specs[0].next_stages


# -- what workers run on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"executor": "rays"}, 'executor must be "process", "thread", "ray" or a function'),
        ({"executor": "ray", "preload": True}, "preload is for workers that are processes of this machine"),
        ({"executor": "ray", "start_method": "fork"}, "start_method is for workers that are processes of this machine"),
        ({"num": "auto"}, 'num="auto" is for executor="ray"'),
        ({"executor": "ray", "num": "auto"}, 'num="auto" of .* needs to know what a worker takes'),
        ({"executor": "ray", "devices": "auto"}, "ray_actor_options={'num_gpus': 1} and num"),
        ({"executor": "ray", "ray_actor_options": 3}, "ray_actor_options of .* must be a dictionary of options"),
        ({"executor": "ray", "ray_actor_options": {"num_gpus": -1}}, "num_gpus must be a number, 0 or more, not -1"),
        ({"executor": "ray", "ray_actor_options": {"max_restarts": 2}}, "has 'max_restarts'; leave it out: the server"),
        ({"executor": "ray", "placement": "NEAR"}, 'placement of .* must be "SPREAD", "PACK" or a placement group'),
        ({"placement": "PACK"}, "placement of .* is for executor='ray'"),
        ({"ray_actor_options": {}}, "ray_actor_options of .* is for executor='ray'"),
        (
            {
                "executor": "ray",
                "env": [{"CUDA_VISIBLE_DEVICES": "0"}],
                "ray_actor_options": {"num_gpus": 1},
            },
            "env of .* sets CUDA_VISIBLE_DEVICES, which Ray does",
        ),
        ({"executor": "thread", "env": [{"A": "1"}]}, "env is for workers that are processes"),
        ({"executor": "thread", "preload": True}, "preload is for workers that are processes"),
        ({"executor": "thread", "start_method": "fork"}, "start_method is for workers that are processes"),
    ],
)
def test_an_executor_that_does_not_fit_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        Runtime(Echo, **options)


def test_a_thread_takes_arguments_that_cannot_be_pickled_and_gets_what_others_pass_on_as_bytes() -> None:
    stages = [Runtime(Echo), Runtime(Model, args=(lambda: 1,), executor="thread")]
    plans, _, _ = plan_service({"/a": stages}, Settings())
    assert plans[1].executor == "thread"
    assert not plans[0].specs[0].buffers_apart
    plans, _, _ = plan_service({"/a": [Runtime(Echo), Runtime(Echo)]}, Settings())
    assert plans[0].specs[0].buffers_apart


@pytest.mark.parametrize("target", [-1, "fast", True, float("inf"), None])
def test_a_latency_target_is_a_number_of_milliseconds(target: Any) -> None:
    with pytest.raises(DefinitionError, match="latency_target must be a number of milliseconds"):
        Runtime(Echo, latency_target=target)
    assert Runtime(Echo, latency_target=2.5).latency_target == 2.5


# -- the signature of forward ------------------------------------------------------------------------------------------


def no_argument(self: Worker) -> None:
    pass


def two_arguments(self: Worker, a: Any, b: Any) -> None:
    pass


def by_name(self: Worker, *, data: Any) -> None:
    pass


def with_default(self: Worker, data: Any, more: Any = None) -> None:
    pass


def anything(*args: Any, **kwargs: Any) -> None:
    pass


def alone(data: Any) -> None:
    pass


@pytest.mark.parametrize("forward", [no_argument, two_arguments, by_name, 3, staticmethod(two_arguments), alone])
def test_a_forward_that_cannot_be_called_is_refused(forward: Any) -> None:
    with pytest.raises(DefinitionError, match=r"write `def forward\(self, data\)|make it a method: `def forward"):
        Runtime(type("Made", (Worker,), {"forward": forward}))


class Called:
    def __call__(self, data: Any) -> Any:
        return data


@pytest.mark.parametrize(
    "forward",
    [with_default, anything, staticmethod(alone), classmethod(with_default), Called(), print, len,
     functools.partialmethod(two_arguments, 1), functools.wraps(with_default)(anything)],
)  # fmt: skip
def test_a_forward_that_can_be_called_is_taken(forward: Any) -> None:
    Runtime(type("Made", (Worker,), {"forward": forward}))
