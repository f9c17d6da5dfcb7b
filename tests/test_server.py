"""Writing a server down: what is wrong is refused at the call, with what to change; nothing is started."""

from __future__ import annotations

import abc
import inspect
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from harness import child_processes
from starlette.applications import Starlette
from workers import Echo, Raw

from mosec_asgi import MosecError, Runtime, Server, SSEWorker, Worker
from mosec_asgi.errors import DefinitionError, describe
from mosec_asgi.mixin import PlasmaShmIPCMixin


class Unfinished(Worker):
    @abc.abstractmethod
    def model(self) -> str:
        """Left to a subclass."""

    def forward(self, data: Any) -> Any:
        return data


class NoForward(Worker):
    pass


class Asynchronous(Worker):
    async def forward(self, data: Any) -> Any:
        return data


class Generator(Worker):
    def forward(self, data: Any) -> Any:
        yield data


class Events(SSEWorker):
    def forward(self, data: Any) -> Any:
        yield data


class Batched(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        return data


class NoWorker:
    def forward(self, data: Any) -> Any:
        return data


def refusal(act: Callable[[], object]) -> str:
    """Return the message with which a definition is refused."""
    with pytest.raises(DefinitionError) as caught:
        act()
    return str(caught.value)


@pytest.mark.parametrize(
    "append", [lambda **given: Server().append_worker(Echo, **given), lambda **given: Runtime(Echo, **given)]
)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num": 0}, "num must be at least 1, not 0"),
        ({"num": -3}, "num must be at least 1, not -3"),
        ({"num": 1.5}, "num must be a whole number, not 1.5 (float)"),
        ({"num": "2"}, "num must be a whole number, not '2' (str)"),
        ({"num": True}, "num must be a whole number, not True (bool)"),
        ({"max_batch_size": 0}, "max_batch_size must be at least 1, not 0"),
        ({"max_batch_size": None}, "max_batch_size must be a whole number, not None (NoneType)"),
        ({"max_wait_time": -1}, "max_wait_time must be at least 0, not -1"),
        ({"max_attempts": 0}, "max_attempts must be at least 1, not 0"),
        ({"isolation_calls": -1}, "isolation_calls must be at least 0, not -1"),
        ({"concurrency": 0}, "concurrency must be at least 1, not 0"),
        ({"concurrency": 4}, "concurrency=4 needs an asynchronous worker: make Echo.forward `async`, or use num for "
         "more processes"),
        ({"timeout": -0.5}, "timeout must be a number of seconds, 0 or more, not -0.5"),
        ({"timeout": "1"}, "timeout must be a number of seconds, 0 or more, not '1'"),
        ({"timeout": float("inf")}, "timeout must be a number of seconds, 0 or more, not inf"),
        ({"timeout": float("nan")}, "timeout must be a number of seconds, 0 or more, not nan"),
        ({"start_method": "forkserver"}, "start_method must be one of spawn, fork, not 'forkserver'"),
        ({"start_method": None}, "start_method must be one of spawn, fork, not None"),
        ({"env": {"A": "1"}}, "env must be a list with one dictionary per worker, not {'A': '1'}"),
        ({"env": ["A=1"]}, "env must be a list with one dictionary per worker, not ['A=1']"),
        ({"env": []}, "env has 0 dictionaries and num is 1; give each of the 1 workers one, in order"),
        (
            {"num": 3, "env": [{"A": "1"}, {}]},
            "env has 2 dictionaries and num is 3; give each of the 3 workers one, in order",
        ),
        ({"env": [{"A": 1}]}, "env of worker 1: 'A': 1 must be text on both sides; write 'A': '1'"),
        ({"num": 2, "env": [{}, {0: "x"}]}, "env of worker 2: 0: 'x' must be text on both sides; write '0': 'x'"),
    ],
)  # fmt: skip
def test_a_stage_that_does_not_fit_is_refused_with_what_to_change(
    append: Callable[..., object], given: dict[str, Any], message: str
) -> None:
    assert refusal(lambda: append(**given)) == message


@pytest.mark.parametrize(
    ("worker", "words"),
    [
        (Echo(), ["append the class Echo itself", "not an instance"]),
        (NoWorker, ["NoWorker", "a subclass of mosec_asgi.Worker"]),
        ("Echo", ["'Echo' is no worker"]),
        (None, ["None is no worker"]),
        (Worker, ["Worker does not define forward", "add it"]),
        (NoForward, ["NoForward does not define forward", "add it"]),
        (Unfinished, ["Unfinished does not define model", "add it"]),
        (Generator, ["Generator.forward is a generator, which streams", "derive Generator from SSEWorker"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_no_worker_is_refused_with_what_to_change(worker: Any, words: list[str]) -> None:
    for act in (lambda: Server().append_worker(worker), lambda: Runtime(worker)):
        message = refusal(act)
        assert all(word in message for word in words), message


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/metrics", "/openapi/metadata.json", "/openapi/swagger/"])
def test_a_route_of_the_servers_own_is_refused(path: str) -> None:
    for act in (
        lambda: Server().append_worker(Echo, route=path),
        lambda: Server().append_worker(Echo, route=["/good", path]),
        lambda: Server().register_runtime({path: [Runtime(Echo)]}),
    ):
        message = refusal(act)
        assert f"the route {path} is the server's own" in message
        assert "use another" in message


def test_an_asynchronous_worker_is_accepted_with_as_many_at_a_time_as_is_said() -> None:
    server = Server()
    server.append_worker(Asynchronous, concurrency=16)
    server.append_worker(Asynchronous, max_batch_size=4)
    assert repr(server) == (
        "<Server {'/inference': [<Runtime Asynchronous num=1 max_batch_size=1>, "
        "<Runtime Asynchronous num=1 max_batch_size=4>]}>"
    )


def test_nothing_follows_a_stage_that_streams() -> None:
    def append(server: Server) -> None:
        server.append_worker(Events)
        server.append_worker(Echo, route=["/other", "/inference"])

    for act in (
        lambda: append(Server()),
        lambda: Server().register_runtime({"/inference": [Runtime(Echo), Runtime(Events), Runtime(Echo)]}),
    ):
        message = refusal(act)
        assert "Events streams, so it must be the last stage of /inference" in message
        assert "append it last, or give what follows it a route of its own" in message
    server = Server()
    refusal(lambda: append(server))
    assert repr(server) == "<Server {'/inference': [<Runtime Events num=1 max_batch_size=1>]}>"
    server.append_worker(Echo, route="/other")
    server.append_worker(Events, route="/other")


@pytest.mark.parametrize(
    "route",
    [
        "inference",
        "",
        [],
        ["/good", "bad"],
        [None],
        1,
        None,
    ],
)
def test_a_route_that_is_no_path_is_refused(route: Any) -> None:
    message = refusal(lambda: Server().append_worker(Echo, route=route))
    assert "begins with a slash" in message or "name at least one path" in message


def test_a_refused_route_leaves_no_stage_behind() -> None:
    server = Server()
    refusal(lambda: server.append_worker(Echo, route=["/good", "bad"]))
    assert repr(server) == "<Server {}>"


@pytest.mark.parametrize(
    "runtimes",
    [[], None, [Echo], [Runtime(Echo), "more"], "more", Runtime(Echo)],
)
def test_a_pipeline_that_is_no_list_of_runtimes_is_refused(runtimes: Any) -> None:
    message = refusal(lambda: Server().register_runtime({"/a": runtimes}))
    assert "the route /a needs a list of one or more Runtime objects" in message


@pytest.mark.parametrize("routes", [[Runtime(Echo)], None, {}, Runtime(Echo)])
def test_routes_that_are_no_dictionary_are_refused_with_what_to_pass(routes: Any) -> None:
    message = refusal(lambda: Server().register_runtime(routes))
    assert 'register_runtime needs a dictionary such as {"/inference": [Runtime(YourWorker)]}' in message


def test_routes_are_registered_at_once_or_not_at_all() -> None:
    server = Server()
    server.append_worker(Echo)
    message = refusal(lambda: server.register_runtime({"/a": [Runtime(Echo)]}))
    assert "call it alone, and once" in message


def test_settings_are_checked_when_they_are_passed() -> None:
    message = refusal(lambda: Server(prot=8000))
    assert "unknown setting prot" in message
    assert "port" in message.partition(";")[2]
    assert refusal(lambda: Server(port="http")) == "Server(port=...) must be a whole number, not 'http'"
    assert refusal(lambda: Server(capacity=0)) == "Server(capacity=...) must be at least 1, not 0"
    assert "must be one of debug, info, warning, error" in refusal(lambda: Server(log_level="loud"))


def test_a_daemon_that_is_no_process_is_refused() -> None:
    assert "pass a subprocess.Popen or a multiprocessing.Process" in refusal(
        lambda: Server().register_daemon("mps", 4711)  # type: ignore[arg-type]
    )
    assert "a daemon's name is text" in refusal(
        lambda: Server().register_daemon(None, None)  # type: ignore[arg-type]
    )


def test_a_server_without_a_stage_is_refused_when_it_is_run() -> None:
    assert "call append_worker(YourWorker) first" in refusal(Server().run)


async def test_a_server_without_a_stage_is_refused_when_it_is_started() -> None:
    with pytest.raises(DefinitionError, match=re.escape("call append_worker(YourWorker) first")):
        async with Server().lifespan():
            pass


def test_a_definition_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="num must be at least 1"):
        Server().append_worker(Echo, num=0)


def test_stages_of_one_route_are_in_the_order_in_which_they_were_appended() -> None:
    server = Server()
    server.append_worker(Echo, num=2)
    server.append_worker(Batched, max_batch_size=4)
    server.append_worker(Raw, route=["/raw", "/also"])
    assert repr(server) == (
        "<Server {'/inference': [<Runtime Echo num=2 max_batch_size=1>, <Runtime Batched num=1 max_batch_size=4>], "
        "'/raw': [<Runtime Raw num=1 max_batch_size=1>], '/also': [<Runtime Raw num=1 max_batch_size=1>]}>"
    )


def test_constructing_a_server_starts_no_process_and_looks_at_no_argument_environment_or_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = child_processes(os.getpid())
    monkeypatch.setattr(sys, "argv", ["server.py", "--help", "--port", "none"])
    monkeypatch.setenv("MOSEC_PORT", "none")
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        server = Server(port=taken.getsockname()[1])
        server.append_worker(Echo, num=2, env=[{"A": "1"}, {"A": "2"}])
        server.append_worker(Raw, route="/raw")
    assert child_processes(os.getpid()) == before
    assert "A" not in os.environ


def test_importing_the_package_loads_no_web_framework() -> None:
    program = (
        "import sys, mosec_asgi; server = mosec_asgi.Server(); "
        "unwanted = {'starlette', 'uvicorn', 'pydantic', 'prometheus_client', 'fastapi', 'numpy', 'httptools'}; "
        "print(sorted(unwanted & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_stage_has_a_name_its_place_in_its_server() -> None:
    runtime = Runtime(Echo)
    assert runtime.name == f"Echo_{runtime.sequence}"
    server = Server()
    server.append_worker(Raw)
    server.register_daemon("none", subprocess.Popen([sys.executable, "-c", ""]))
    other = Server()
    other.register_runtime({"/a": [runtime, Runtime(Raw)]})
    assert runtime.name == "Echo_1"
    server._daemons["none"].wait()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("route", "text"),
    [
        ("/models/{name", "holds a brace that belongs to no parameter"),
        ("/models/{name:regex}", "has a parameter of the kind 'regex'; there are str, path, int"),
        ("/{a}/{a}", "has the parameter a twice"),
        ("/a?b=1", "a query is a part of a request"),
        ("/a#b", "a fragment is never sent"),
        ("/a%20b", "write '/a b'"),
    ],
)
def test_a_route_that_nothing_would_reach_is_refused(route: str, text: str) -> None:
    assert text in refusal(lambda: Server().append_worker(Echo, route=route))
    assert text in refusal(lambda: Server().register_runtime({route: [Runtime(Echo)]}))


def test_a_refused_stage_leaves_the_others_as_they_were() -> None:
    class Pushes(SSEWorker):
        def forward(self, data: Any) -> None:
            pass

    server = Server()
    server.append_worker(Pushes, route=["/a", "/b"])
    before = repr(server)
    assert "make two Runtime objects" in refusal(lambda: server.append_worker(Echo, route="/b"))
    assert repr(server) == before


def test_ctrl_c_before_anything_runs_ends_the_program_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Server, settings_of: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "_run", interrupted)
    server = Server()
    server.append_worker(Echo)
    with pytest.raises(SystemExit) as stop:
        server.run()
    assert stop.value.code == 130


async def test_run_within_an_event_loop_says_what_to_call_instead() -> None:
    server = Server()
    server.append_worker(Echo)
    with pytest.raises(RuntimeError, match=r"async with server.lifespan\(\).*uvicorn.Server"):
        server.run()


def test_an_event_loop_of_another_kind_is_answered_503_with_one_clear_error(caplog: pytest.LogCaptureFixture) -> None:
    """As under `hypercorn -k trio`: what runs it by hand here is no loop of asyncio either."""
    server = Server()
    server.append_worker(Echo)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("it is not asked for the body")

    for _ in range(2):
        with pytest.raises(StopIteration):
            server({"type": "http", "headers": []}, receive, send).send(None)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"] * 2
    assert sent[0]["status"] == 503
    assert b"asyncio" in sent[1]["body"]
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "need an event loop of asyncio" in told
    assert "hypercorn -k asyncio" in told


async def test_nothing_is_defined_while_the_server_runs() -> None:
    server = Server()
    server.append_worker(Echo, executor="thread")
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        late: list[Callable[[], Any]] = [
            lambda: server.append_worker(Echo, route="/late"),
            lambda: server.register_runtime({"/late": [Runtime(Echo)]}),
            lambda: server.register_daemon("late", process),
        ]
        async with server:
            for define in late:
                assert "comes too late; call it before the server is run" in refusal(define)
        server.append_worker(Echo, route="/late", executor="thread")


def test_mosecs_names_of_statuses_are_statuses() -> None:
    from mosec_asgi.protocol import HTTPStatusCode

    class Refused(MosecError):
        code = HTTPStatusCode.VALIDATION_ERROR

    assert describe(Refused("x")).code == 422
    assert describe(MosecError("x")).code == HTTPStatusCode.INTERNAL_ERROR


def test_mosecs_import_paths_are_there() -> None:
    from mosec_asgi.worker import SSEWorker as FromWorker

    assert FromWorker is SSEWorker
    assert PlasmaShmIPCMixin.set_plasma_path("/tmp/plasma") is None  # type: ignore[func-returns-value]


def test_a_worker_with_plasma_is_told_what_replaces_it(caplog: pytest.LogCaptureFixture) -> None:
    class Stored(PlasmaShmIPCMixin):
        def forward(self, data: Any) -> Any:
            return data

    Server().append_worker(Stored)
    (record,) = caplog.records
    assert "shared memory between all stages by themselves" in record.getMessage()
    worker = Stored()
    assert worker.deserialize_ipc(worker.serialize_ipc([1])) == [1]


@pytest.mark.parametrize("framework", [FastAPI, Starlette])
async def test_a_server_in_the_place_of_a_lifespan_says_what_to_write(framework: Any) -> None:
    server = Server()
    server.append_worker(Echo, executor="thread")
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    app = framework(lifespan=server)
    with pytest.raises(DefinitionError, match=rf"write {framework.__name__}\(lifespan=server\.lifespan\)"):
        await app({"type": "lifespan", "app": app, "state": {}}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "lifespan=server.lifespan" in sent[0]["message"]


async def test_whoever_asks_finds_an_app_of_asgi_3_and_gets_a_coroutine() -> None:
    class Own(Server):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await super().__call__(scope, receive, send)

    for kind in (Server, Own):
        server = kind()
        server.append_worker(Echo, executor="thread")
        assert inspect.iscoroutinefunction(server.__call__)
        async with server:
            for path in ("/inference", "/metrics"):
                scope = {"type": "http", "method": "POST", "path": path, "headers": []}
                coroutine: Any = server(scope, _never, _never)
                assert inspect.iscoroutine(coroutine)
                coroutine.close()


async def _never(*_: Any) -> Any:
    raise AssertionError("nothing is received or sent")
