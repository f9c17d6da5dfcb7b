"""The engine of a server for code that blocks: with a service of its own, and beside one that runs in an app."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import infer_workers as workers
import numpy as np
import pytest
from common import PATIENCE
from harness import environment_of_programs

from mosec_asgi import Server, Worker
from mosec_asgi.errors import CallError, MosecError, StartupError, ValidationError

BOTH = pytest.mark.parametrize("executor", ["process", "thread"])


class Broken(Worker):
    def __init__(self) -> None:
        raise OSError("no weights")

    def forward(self, data: Any) -> Any:
        return data


class SlowToLoad(Worker):
    begun, go_on = threading.Event(), threading.Event()

    def __init__(self) -> None:
        self.begun.set()
        assert self.go_on.wait(PATIENCE)

    def forward(self, data: Any) -> Any:
        return data


def until(condition: Any) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def server_of(**routes: Any) -> Server:
    """Return a server with a worker on each route."""
    server = Server(timeout=20_000)
    executor = routes.pop("executor", "thread")
    for name, worker in routes.items():
        server.append_worker(worker, executor=executor, route=f"/{name}")
    return server


def admitted(server: Server) -> int:
    assert server._running is not None
    return server._running.statistics().admitted


def test_the_engine_that_blocks_runs_the_service_for_the_time_of_its_block() -> None:
    for executor in ("process", "thread"):
        server = server_of(echo=workers.Echo, spell=workers.Spell, executor=executor)
        for _ in range(2):
            threads = set(threading.enumerate())
            with server.engine() as engine:
                assert engine.infer({1}, "/echo") == {1}
                assert list(engine.stream(["a", {}], "/spell")) == ["a", {}]
                assert engine.infer(np.ones(100_000), "/echo").sum() == 100_000
            assert server._running is None
            until(lambda before=threads: before.issuperset(threading.enumerate()))
            with pytest.raises(CallError, match=r"inside of `with server\.engine"):
                engine.infer(1, "/echo")


def test_odd_arguments_are_refused_or_mean_what_they_say() -> None:
    with server_of(echo=workers.Echo).engine() as engine:
        with pytest.raises(CallError, match="request_id is a text, not 7"):
            engine.infer(1, "/echo", request_id=7)  # type: ignore[arg-type]
        for request_id in ("\ud800", "a\nb", "", "x" * 1000):
            assert engine.infer(1, "/echo", request_id=request_id) == 1
        for timeout in (10**400, float("inf")):
            assert engine.infer(1, "/echo", timeout=timeout) == 1


def test_the_last_of_several_blocks_stops_the_service() -> None:
    server = server_of(echo=workers.Echo)
    first, second = server.engine(), server.engine()
    with contextlib.ExitStack() as exits:
        first.__enter__()
        exits.enter_context(second)
        second.__enter__()
        service = server._running
        first.__exit__(None, None, None)
        with pytest.raises(CallError, match="not running"):
            first.infer(1, "/echo")
        assert second.infer(1, "/echo") == 1
        second.__exit__(None, None, None)
        assert second.infer(2, "/echo") == 2
        assert server._running is service
    assert server._running is None
    first.__exit__(None, None, None)
    with server.engine() as again:
        assert again.infer(3, "/echo") == 3
    assert server._running is None


def test_blocks_in_many_threads_do_not_end_each_others_calls() -> None:
    server = server_of(echo=workers.Echo)

    def job(item: int) -> Any:
        with server.engine() as engine:
            return engine.infer(item, "/echo")

    with server.engine(), ThreadPoolExecutor(8) as threads:
        assert list(threads.map(job, range(200))) == list(range(200))
        assert server._running is not None
    assert server._running is None


def test_a_worker_process_is_refused_to_start_its_server_again(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        textwrap.dedent("""
        from mosec_asgi import Server, Worker

        class Calls(Worker):
            def forward(self, data):
                try:
                    with server.engine() as engine:
                        return engine.infer(data)
                except RuntimeError as error:
                    return str(error)

        server = Server()
        server.append_worker(Calls)
        """)
    )
    body = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import own
        with own.server.engine() as engine:
            print(engine.infer(1), flush=True)
    """
    with program(tmp_path, body) as process:
        assert process.stdout is not None
        assert "in a worker process, whose workers could start servers in turn" in process.stdout.readline()
        assert process.wait(PATIENCE) == 0


def test_errors_are_those_of_infer() -> None:
    with server_of(awkward=workers.Awkward, spell=workers.Spell).engine() as engine:
        with pytest.raises(ValidationError, match="the details"):
            engine.infer(("raise", "ValidationError"), "/awkward")
        with pytest.raises(MosecError) as caught:
            engine.infer(("sleep", 1.0), "/awkward", timeout=20)
        assert caught.value.code == 408
        for call in (lambda: engine.infer(1), lambda: engine.stream(1, "/awkward"), lambda: engine.map([1], "/spell")):
            with pytest.raises(CallError):
                call()
        stream = engine.stream(["a", "KeyError"], "/spell")
        assert next(stream) == "a"
        with pytest.raises(MosecError, match="internal error"):
            next(stream)


def test_many_threads_may_call_one_engine_and_ask_for_it_at_the_same_time() -> None:
    server = server_of(echo=workers.Echo)
    gate = threading.Barrier(8)
    done = threading.Barrier(8)

    def client(number: int) -> list[int]:
        gate.wait()
        with server.engine() as engine:
            results = [engine.infer(number * 100 + each, "/echo") for each in range(20)]
            # Whoever has started it ends it.
            done.wait()
            return results

    with ThreadPoolExecutor(8) as threads:
        for number, results in enumerate(threads.map(client, range(8))):
            assert results == [number * 100 + each for each in range(20)]
    until(lambda: server._running is None)


def test_a_service_that_cannot_start_says_why_and_leaves_no_thread() -> None:
    server = server_of(broken=Broken)
    with pytest.raises(StartupError, match="no weights"), server.engine():
        pass
    until(lambda: not any("mosec_asgi engine" in thread.name for thread in threading.enumerate()))


def test_a_stream_that_is_left_ends_in_its_worker(tmp_path: Path) -> None:
    with server_of(endless=workers.Endless).engine() as engine:
        for name, leave in (("a", lambda stream: stream.close()), ("b", lambda stream: None)):
            stream = engine.stream(str(tmp_path / name), "/endless")
            next(stream)
            leave(stream)
            del stream
            until((tmp_path / f"{name}.ended").exists)


async def test_beside_an_app_calls_go_to_its_loop_and_the_service_lives_on() -> None:
    server = server_of(echo=workers.Echo, spell=workers.Spell)
    async with server:

        def work() -> list[Any]:
            with server.engine() as engine:
                return [
                    engine.infer(1, "/echo"),
                    list(engine.stream("ab", "/spell")),
                    list(engine.map([3, 4], "/echo")),
                ]

        assert await asyncio.to_thread(work) == [1, ["a", "b"], [3, 4]]
        assert await server.infer(2, "/echo") == 2
        with pytest.raises(CallError, match=r"await server\.infer"), server.engine():
            pass
        engine = server.engine()
        await asyncio.to_thread(engine.__enter__)
        for call in (
            lambda: engine.infer(1, "/echo"),
            lambda: engine.stream("a", "/spell"),
            lambda: engine.map([1], "/echo"),
        ):
            with pytest.raises(CallError, match=r"await server\.infer"):
                call()
        assert await server.infer(2, "/echo") == 2
    with pytest.raises(CallError, match="is not running"):
        await asyncio.to_thread(engine.infer, 1, "/echo")


async def test_a_call_that_runs_when_the_app_stops_is_finished_or_told() -> None:
    server = server_of(awkward=workers.Awkward)
    async with server:
        engine = server.engine()
        await asyncio.to_thread(engine.__enter__)
        running = asyncio.ensure_future(asyncio.to_thread(engine.infer, ("sleep", 0.1), "/awkward"))
        while not admitted(server):
            await asyncio.sleep(0.001)
    assert await running == 0.1


@pytest.mark.parametrize("cancels", [True, False])
def test_a_call_whose_loop_ends_without_a_shutdown_does_not_hang(cancels: bool) -> None:
    server = server_of(awkward=workers.Awkward)
    entered = threading.Event()
    leave = threading.Event()

    async def app() -> None:
        await server.__aenter__()
        entered.set()
        while not leave.is_set():
            await asyncio.sleep(0.002)

    def without_a_word() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(app())
        loop.close()

    thread = threading.Thread(target=(lambda: asyncio.run(app())) if cancels else without_a_word)
    thread.start()
    entered.wait(PATIENCE)
    with server.engine() as engine, ThreadPoolExecutor(1) as threads:
        call = threads.submit(engine.infer, ("sleep", 0.5), "/awkward")
        until(lambda: admitted(server) == 1)
        leave.set()
        with pytest.raises(CallError, match="is not running"):
            call.result(PATIENCE)
    thread.join()


async def test_in_a_notebook_whose_loop_is_another_one_a_block_has_a_service_of_its_own() -> None:
    with server_of(echo=workers.Echo).engine() as engine:
        assert engine.infer({1}, "/echo") == {1}
        assert list(engine.map([1, 2], "/echo")) == [1, 2]


async def test_a_second_loop_cannot_start_a_server_that_runs() -> None:
    server = server_of(echo=workers.Echo)
    async with server:

        async def second() -> None:
            async with server:
                pass

        with pytest.raises(StartupError, match=r"runs already.*server\.engine\(\)"):
            await asyncio.to_thread(lambda: asyncio.run(second()))
        assert await server.infer(1, "/echo") == 1


async def test_a_second_loop_cannot_start_a_server_that_is_being_started() -> None:
    server = server_of(slow=SlowToLoad)
    starting = asyncio.ensure_future(server.__aenter__())
    try:
        assert await asyncio.to_thread(SlowToLoad.begun.wait, PATIENCE)

        async def second() -> None:
            async with server:
                pass

        with pytest.raises(StartupError, match=r"is being started already, on another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(second()))
        with pytest.raises(StartupError, match=r"is being started already, on another event loop"):
            await asyncio.to_thread(lambda: server.engine().__enter__())
    finally:
        SlowToLoad.go_on.set()
        await starting
    assert await server.infer(1, "/slow") == 1
    await server.__aexit__(None, None, None)
    assert server._running is None


def test_a_server_that_loads_holds_up_no_engine_of_another() -> None:
    class Slow(SlowToLoad):
        begun, go_on = threading.Event(), threading.Event()

    def load() -> int:
        with server_of(slow=Slow).engine() as engine:
            return engine.infer(1, "/slow")  # type: ignore[no-any-return]

    def other() -> int:
        with server_of(echo=workers.Echo).engine() as engine:
            return engine.infer(2, "/echo")  # type: ignore[no-any-return]

    with ThreadPoolExecutor(2) as threads:
        loading = threads.submit(load)
        try:
            assert Slow.begun.wait(PATIENCE)
            assert threads.submit(other).result(PATIENCE) == 2
        finally:
            Slow.go_on.set()
        assert loading.result(PATIENCE) == 1


def group_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def program(folder: Path, body: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program that uses an engine for the time of a block; nothing of its process group may be left."""
    text = "import time\nfrom infer_workers import *\nfrom mosec_asgi import Server\n\n"
    text += 'if __name__ == "__main__":\n' + textwrap.indent(textwrap.dedent(body), "    ")
    (folder / "program.py").write_text(text)
    process = subprocess.Popen(
        [sys.executable, str(folder / "program.py")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment_of_programs(),
    )
    try:
        yield process
        assert process.poll() is not None
        until(lambda: not group_lives(process.pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_ctrl_c_in_a_blocking_call_ends_the_program_and_its_workers(tmp_path: Path) -> None:
    body = """
        server = Server(timeout=60_000)
        server.append_worker(Slow)
        with server.engine() as engine:
            print("ready", flush=True)
            try:
                engine.infer(30.0)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
    """
    with program(tmp_path, body) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert process.wait(PATIENCE) == 0


def test_a_program_that_forgets_the_end_of_its_block_ends_with_its_workers(tmp_path: Path) -> None:
    body = """
        server = Server()
        server.append_worker(Echo)
        engine = server.engine().__enter__()
        print(engine.infer(7), flush=True)
    """
    with program(tmp_path, body) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "7\n"
        assert process.wait(PATIENCE) == 0
