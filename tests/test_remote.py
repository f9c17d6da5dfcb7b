"""Both ends of an engine in another process, joined in this one by a pair of sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import math
import os
import pickle
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import Held
from harness import until

from mosec_asgi.batching.engine import Caller, Statistics
from mosec_asgi.errors import CANCELLED, CLOSING, ENGINE_AWAY, ENGINE_LOST, INTERNAL_ERROR, TIMED_OUT
from mosec_asgi.ipc import private_socket, reference
from mosec_asgi.ipc.arena import LARGE
from mosec_asgi.ipc.reference import Kind
from mosec_asgi.ipc.shm import SharedMemory, SharedPayload
from mosec_asgi.messages import OK, Call, Chunk, Credit, Outcome, Pieces, StageTime
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.observing.statistics import ServiceReport
from mosec_asgi.remote import callers, frames, handshake
from mosec_asgi.remote import engine as remote_engine
from mosec_asgi.remote.callers import MOST_LETTERS, MOST_QUESTIONS, MOST_REASONS, Callers
from mosec_asgi.remote.dialing import Dialing
from mosec_asgi.remote.engine import Away, RemoteEngine
from mosec_asgi.remote.handshake import Hello, RouteShape
from mosec_asgi.remote.listening import EngineSocket
from mosec_asgi.remote.standing import Standing

ROUTES = [RouteShape("/inference", ("Echo_1",), streams=False)]


class Tenant(str):
    """A text, as a member of an `Enum` is one."""


class Engine:
    """What the test says of each call becomes of it."""

    def __init__(self) -> None:
        self.calls: dict[int, tuple[Call, Caller]] = {}
        self.credits: list[Credit] = []
        self.cancelled: list[Call] = []

    def new_id(self) -> int:
        raise AssertionError("web processes number their calls themselves")

    def submit(self, call: Call, caller: Caller) -> None:
        self.calls[call.id] = (call, caller)

    def cancel(self, call_id: int) -> None:
        found = self.calls.pop(call_id, None)
        if found is not None:
            call, caller = found
            self.cancelled.append(call)
            if not isinstance(call.payload, bytes):
                call.payload.drop()
            caller.settled(frames.cancelled(call_id))

    def credit(self, credit: Credit) -> None:
        self.credits.append(credit)

    def statistics(self) -> Statistics:
        return Statistics(len(self.calls), False, ())

    async def next_call(self) -> tuple[Call, Caller]:
        await until(lambda: self.calls, "a call comes")
        return next(iter(self.calls.values()))

    def settle(self, call: Call, code: int = OK, payload: Any = b"", **more: Any) -> None:
        _, caller = self.calls.pop(call.id)
        if not isinstance(call.payload, bytes):
            call.payload.drop()
        caller.settled(Outcome(call.id, code, payload, **more))


class Web:
    """Whoever has made calls in a web process."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.chunks: list[Chunk] = []

    def settled(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def streamed(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)

    async def outcome(self) -> Outcome:
        await until(lambda: self.outcomes, "an outcome comes")
        return self.outcomes.pop(0)


class Pair:
    """An engine, and web processes that are connected to it."""

    def __init__(self, memory: SharedMemory | None = None, apart: bool = True, timeout: float = math.inf) -> None:
        # Cleared while the engine does not answer.
        self.runs = asyncio.Event()
        self.runs.set()
        self.engine = Engine()
        self.memory = memory
        self.metrics = ServiceMetrics("x", [])
        self.callers = Callers(self.engine, ROUTES, [apart], self.metrics, memory, self._answer, timeout)
        self.dialing: list[asyncio.Task[None]] = []

    async def _answer(self, kind: str, text: str) -> bytes:
        await self.runs.wait()
        if kind == "standing":
            return Standing(self.engine.statistics(), ServiceReport(), {"/inference": (3, 7)}).packed()
        if kind == "metrics":
            await self.callers.gather_counts()
            return repr(sorted(self.metrics.throughput.items())).encode()
        if kind == "broken":
            raise RuntimeError("a fault")
        raise LookupError(kind)

    async def web(self, path: str = "", given: socket.socket | None = None) -> RemoteEngine:
        loop = asyncio.get_running_loop()
        if not path and given is None:
            given, theirs = socket.socketpair()
            given.setblocking(False)
            self.callers.add(theirs)
        remote = RemoteEngine(loop, ServiceMetrics("x", []))
        dialing = Dialing(remote, ROUTES, path, given)
        self.dialing.append(loop.create_task(dialing.run()))
        await dialing.tried.wait()
        return remote

    async def close(self) -> None:
        for each in self.dialing:
            each.cancel()
        await asyncio.wait(self.dialing)
        self.callers.close()


@asynccontextmanager
async def paired(
    *, shared: bool = False, apart: bool = True, timeout: float = math.inf
) -> AsyncIterator[tuple[Pair, RemoteEngine]]:
    memory = SharedMemory(1 << 20, 2) if shared else None
    pair = Pair(memory, apart, timeout)
    remote = await pair.web()
    try:
        yield pair, remote
    finally:
        remote.disconnect()
        await pair.close()
        if memory is not None:
            assert not memory.in_use
            memory.close()


def call(remote: RemoteEngine, payload: Any = b"in", **more: Any) -> Call:
    return Call(remote.new_id(), 0, payload, "request", **more)


async def test_a_call_goes_there_and_its_outcome_comes_back() -> None:
    async with paired() as (pair, remote):
        web = Web()
        asked = call(remote, timeout=2.5, key="k", tenant="t", priority=3, cost=9, trace="00-1-1-01")
        remote.submit(asked, web)
        assert not web.outcomes
        got, _ = await pair.engine.next_call()
        assert got._replace(id=asked.id) == asked
        assert got.id != asked.id
        times = (StageTime("Echo_1", 0.5, 1.5),)
        pair.engine.settle(got, 400, b"no", retry_after=7, head=b"h", times=times)
        assert await web.outcome() == Outcome(asked.id, 400, b"no", 7, b"h", times)


async def test_two_web_processes_have_the_same_numbers_and_get_their_own_answers() -> None:
    async with paired() as (pair, first):
        second = await pair.web()
        webs = []
        for remote in (first, second):
            web = Web()
            remote.submit(call(remote, b"%d" % len(webs)), web)
            webs.append(web)
        await until(lambda: len(pair.engine.calls) == 2, "both calls come")
        for asked, _ in list(pair.engine.calls.values()):
            pair.engine.settle(asked, payload=bytes(asked.payload) + b"!")  # type: ignore[arg-type]
        assert [(await web.outcome()).payload for web in webs] == [b"0!", b"1!"]
        second.disconnect()


async def test_what_is_said_in_one_turn_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async with paired() as (pair, remote):
        sent: list[int] = []
        encode = frames.encode
        monkeypatch.setattr(frames, "encode", lambda entries: sent.append(len(entries)) or encode(entries))
        web = Web()
        for _ in range(5):
            remote.submit(call(remote), web)
        await until(lambda: len(pair.engine.calls) == 5, "the calls come")
        for asked, _ in list(pair.engine.calls.values()):
            pair.engine.settle(asked)
        await until(lambda: len(web.outcomes) == 5, "the outcomes come")
        assert [count for count in sent if count > 1] == [5, 5]


async def test_a_stream_comes_in_order_and_what_is_taken_is_told() -> None:
    async with paired() as (pair, remote):
        web = Web()
        asked = call(remote)
        remote.submit(asked, web)
        got, caller = await pair.engine.next_call()
        for piece in (b"a", b"b"):
            caller.streamed(Chunk(got.id, piece))
        pair.engine.settle(got)
        assert (await web.outcome()).code == OK
        assert web.chunks == [Chunk(asked.id, b"a"), Chunk(asked.id, b"b")]
        other = call(remote)
        remote.submit(other, web)
        remote.credit(Credit(other.id, 5))
        got, _ = await pair.engine.next_call()
        await until(lambda: pair.engine.credits, "what was taken is told")
        assert pair.engine.credits == [Credit(got.id, 5)]


async def test_a_cancelled_call_is_settled_at_once_and_dropped_there() -> None:
    async with paired() as (pair, remote):
        web = Web()
        asked = call(remote)
        remote.submit(asked, web)
        remote.cancel(asked.id)
        assert web.outcomes == [Outcome(asked.id, CANCELLED, b"")]
        await until(lambda: pair.engine.cancelled, "it is dropped")
        remote.cancel(asked.id)
        assert len(web.outcomes) == 1


async def test_an_outcome_that_crosses_a_cancel_is_dropped() -> None:
    async with paired(shared=True) as (pair, remote):
        assert pair.memory is not None
        web = Web()
        asked = call(remote)
        remote.submit(asked, web)
        got, _ = await pair.engine.next_call()
        pair.engine.settle(got, payload=lying(pair.memory, b"x" * LARGE))
        remote.cancel(asked.id)
        memory = pair.memory
        await until(lambda: not memory.in_use, "its memory is given back")
        assert [outcome.code for outcome in web.outcomes] == [CANCELLED]


async def test_the_end_of_a_web_process_drops_its_calls_alone() -> None:
    async with paired() as (pair, first):
        second = await pair.web()
        web, other = Web(), Web()
        first.submit(call(first, b"first"), web)
        second.submit(call(second, b"second"), other)
        await until(lambda: len(pair.engine.calls) == 2, "both calls come")
        second.disconnect()
        await until(lambda: pair.engine.cancelled, "its call is dropped")
        assert [each.payload for each in pair.engine.cancelled] == [b"second"]
        assert (await other.outcome()).failure == ENGINE_LOST
        assert len(pair.callers) == 1
        [(got, _)] = pair.engine.calls.values()
        pair.engine.settle(got, payload=b"out")
        assert (await web.outcome()).payload == b"out"


async def test_without_an_engine_calls_are_refused_later() -> None:
    remote = RemoteEngine(asyncio.get_running_loop(), ServiceMetrics("x", []))
    web = Web()
    remote.submit(call(remote), web)
    assert not web.outcomes
    assert (await web.outcome()).failure == ENGINE_AWAY
    assert remote.statistics().away
    with pytest.raises(Away):
        await remote.refresh()
    remote.close()
    remote.submit(call(remote), web)
    assert (await web.outcome()).failure == CLOSING


async def test_an_engine_that_comes_back_is_found(tmp_path: Path) -> None:
    path = str(tmp_path / "engine.sock")
    pair = Pair()
    listening = EngineSocket(path)
    listening.start(pair.callers.add)
    assert os.stat(path).st_mode & 0o777 == 0o600
    remote = await pair.web(path)
    assert remote.room == {"/inference": (3, 7)}
    web = Web()
    remote.submit(call(remote), web)
    await pair.engine.next_call()
    listening.close()
    pair.callers.close()
    assert (await web.outcome()).failure == ENGINE_LOST
    assert not remote.is_there
    assert not os.path.exists(path)
    again = Pair()
    listening = EngineSocket(path)
    listening.start(again.callers.add)
    await until(lambda: remote.is_there, "it is found")
    remote.submit(call(remote), web)
    got, _ = await again.engine.next_call()
    again.engine.settle(got, payload=b"out")
    assert (await web.outcome()).payload == b"out"
    remote.disconnect()
    await pair.close()
    listening.close()
    again.callers.close()


async def test_a_program_with_other_routes_is_refused_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    async with paired() as (pair, _):
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        pair.callers.add(theirs)
        remote = RemoteEngine(loop, ServiceMetrics("x", []))
        dialing = Dialing(remote, [RouteShape("/other", ("Other_1",), streams=False)], "", ours)
        await dialing.run()
        assert not remote.is_there
        assert (
            "serves /other (Other_1), the engine /inference (Echo_1); start both from the same program" in caplog.text
        )


async def test_an_engine_that_refuses_a_program_is_not_said_to_be_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "e.sock")
    async with paired() as (pair, _):
        listening = EngineSocket(path)
        listening.start(pair.callers.add)
        remote = RemoteEngine(asyncio.get_running_loop(), ServiceMetrics("x", []))
        dialing = asyncio.create_task(Dialing(remote, [RouteShape("/other", ("Other_1",), streams=False)], path).run())
        await until(lambda: f"the engine at {path} cannot be used: the web process serves /other" in caplog.text, path)
        assert "there is no engine" not in caplog.text
        dialing.cancel()
        await asyncio.wait([dialing])
        listening.close()


async def test_an_engine_of_another_user_is_named_so(caplog: pytest.LogCaptureFixture) -> None:
    class Denied(Dialing):
        async def _dial(self) -> socket.socket:
            raise PermissionError(errno.EACCES, "Permission denied")

    dialing = Denied(RemoteEngine(asyncio.get_running_loop(), ServiceMetrics("x", [])), [], "/run/e.sock")
    task = asyncio.create_task(dialing.run())
    await asyncio.wait_for(dialing.tried.wait(), 10)
    task.cancel()
    await asyncio.wait([task])
    assert "the engine at /run/e.sock cannot be used: its socket, or a folder above it, is for another" in caplog.text
    assert "start both as the same user" in caplog.text


def test_another_version_is_refused() -> None:
    hello = Hello(tuple(ROUTES), 1, version="0.0.1")
    assert "mosec-asgi 0.0.1 on Python" in hello.differs_from(ROUTES)
    assert not Hello(tuple(ROUTES), 1).differs_from(ROUTES)


def hello_of(**fields: Any) -> bytes:
    body = json.dumps({"routes": [], "pid": 1, "version": "1", "python": "3", **fields}).encode()
    return len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x02\0\0\0{]",
        b"\x02\0\0\0{}",
        b"\xff\xff\xff\xff",
        pickle.dumps(1),
        (200_000).to_bytes(4, "little") + b"[" * 200_000,
        hello_of(pid="me"),
        hello_of(pid=None),
        hello_of(routes=[{"path": "/x", "stages": 1, "streams": False}]),
    ],
    ids=range(10),
)
async def test_whoever_says_no_hello_is_not_heard(said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with paired() as (pair, _):
        loop = asyncio.get_running_loop()
        faults: list[Any] = []
        loop.set_exception_handler(lambda loop, context: faults.append(context))
        ours, theirs = socket.socketpair()
        pair.callers.add(theirs)
        ours.setblocking(False)
        # What was not read at all resets the connection.
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            await asyncio.wait_for(loop.sock_sendall(ours, said), 20)
            ours.shutdown(socket.SHUT_WR)
            assert await asyncio.wait_for(loop.sock_recv(ours, 9), 20) == b""
        assert len(pair.callers) == 1
        ours.close()
        await asyncio.sleep(0)
        gc.collect()
        assert not faults
        assert "Traceback" not in caplog.text


async def test_who_has_not_been_greeted_when_the_engine_ends_is_let_go() -> None:
    async with paired() as (pair, _):
        ours, theirs = socket.socketpair()
        with ours:
            pair.callers.add(theirs)
            pair.callers.close()
            await until(lambda: theirs.fileno() < 0, "its connection is closed")
            assert ours.recv(1) == b""


async def test_a_stop_that_comes_with_the_greeting_takes_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    received = handshake.received

    async def received_at_the_end(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> tuple[Any, list[int]]:
        said = await received(loop, sock)
        loop.call_soon(pair.callers.close)
        return said

    monkeypatch.setattr(handshake, "received", received_at_the_end)
    ours, theirs = socket.socketpair()
    with ours:
        pair.callers.add(theirs)
        ours.sendall(handshake.encoded(Hello(tuple(ROUTES), 1)))
        await until(lambda: theirs.fileno() < 0 or len(pair.callers), "it is let go")
        assert not len(pair.callers)
        assert ours.recv(1) == b""


async def test_of_those_that_are_refused_so_much_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with paired() as (pair, _):
        loop = asyncio.get_running_loop()
        for number in range(MOST_REASONS + 5):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            pair.callers.add(theirs)
            await loop.sock_sendall(ours, hello_of(version=f"{number}," * 10_000))
            answer = await asyncio.wait_for(handshake.received(loop, ours), 20)
            assert len(answer[0]["refused"]) == MOST_LETTERS
            ours.close()
        assert caplog.text.count("is refused") == MOST_REASONS


async def test_a_call_that_cannot_be_told_fails_alone() -> None:
    async with paired() as (pair, remote):
        webs = [Web(), Web()]
        remote.submit(call(remote, tenant=Tenant("one")), webs[0])
        remote.submit(call(remote), webs[1])
        assert (await webs[0].outcome()).failure == INTERNAL_ERROR
        got, _ = await pair.engine.next_call()
        pair.engine.settle(got, payload=b"out")
        assert (await webs[1].outcome()).payload == b"out"


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, asyncio.CancelledError])
async def test_a_fault_of_who_is_told_something_disturbs_nobody(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Web):
        def settled(self, outcome: Outcome) -> None:
            raise error(f"nothing to do with {outcome!r}")

        def streamed(self, chunk: Chunk) -> None:
            raise error(f"nothing to do with {chunk!r}")

    async with paired() as (pair, remote):
        faulty, web = Faulty(), Web()
        for each in (faulty, web):
            remote.submit(call(remote), each)
        await until(lambda: len(pair.engine.calls) == 2, "both calls come")
        for asked, caller in list(pair.engine.calls.values()):
            caller.streamed(Chunk(asked.id, b"piece"))
            pair.engine.settle(asked, payload=b"out")
        assert ((await web.outcome()).payload, [chunk.payload for chunk in web.chunks]) == (b"out", [b"piece"])
    assert caplog.text.count("was not passed on") == 2


async def test_a_result_that_cannot_be_told_fails_alone() -> None:
    async with paired() as (pair, remote):
        webs = [Web(), Web()]
        for web in webs:
            remote.submit(call(remote), web)
        await until(lambda: len(pair.engine.calls) == 2, "both calls come")
        first, second = [asked for asked, _ in pair.engine.calls.values()]
        pair.engine.settle(first, 400, b"no", head=Tenant("x"))
        pair.engine.settle(second, payload=b"out")
        assert (await webs[0].outcome()).failure == INTERNAL_ERROR
        assert (await webs[1].outcome()).payload == b"out"


async def test_an_engine_that_does_not_answer_is_given_no_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    async with paired() as (pair, remote):
        monkeypatch.setattr(remote_engine, "ASK_SECONDS", 0.02)
        web = Web()
        remote.submit(call(remote), web)
        await pair.engine.next_call()
        pair.runs.clear()
        with pytest.raises(Away):
            await remote.ask("metrics")
        assert (await web.outcome()).failure == ENGINE_AWAY
        await until(lambda: pair.engine.cancelled, "the engine hears that nobody waits for the call")
        assert remote.is_silent
        assert remote.statistics().away
        remote.submit(call(remote), web)
        assert (await web.outcome()).failure == ENGINE_AWAY
        # Others are not kept waiting for what does not come.
        monkeypatch.setattr(remote_engine, "ASK_SECONDS", 20.0)
        with pytest.raises(Away):
            await asyncio.wait_for(remote.ask("metrics"), 1)
        pair.runs.set()
        await remote.refresh()
        assert not remote.is_silent
        assert not remote.statistics().away
        remote.submit(call(remote), web)
        got, _ = await pair.engine.next_call()
        pair.engine.settle(got)
        assert (await web.outcome()).code == OK


async def test_a_call_that_the_engine_does_not_answer_in_time_is_answered_408_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote_engine, "LOOK_SECONDS", 0.02)
    async with paired(timeout=0.1) as (pair, remote):
        whole, stream = Web(), Web()
        for web in (stream, whole):
            remote.submit(call(remote), web)
        await until(lambda: len(pair.engine.calls) == 2, "both calls come")
        asked, caller = next(iter(pair.engine.calls.values()))
        caller.streamed(Chunk(asked.id, b"a stream takes as long as it likes"))
        began = asyncio.get_running_loop().time()
        assert (await whole.outcome()).failure == TIMED_OUT
        assert asyncio.get_running_loop().time() - began > 0.05
        await until(lambda: pair.engine.cancelled, "the engine hears that nobody waits for the call")
        pair.engine.settle(asked)
        assert (await stream.outcome()).code == OK
        # What has come meanwhile was in time.
        remote.submit(call(remote), whole)
        got, _ = await pair.engine.next_call()
        pair.engine.settle(got)
        assert (await whole.outcome()).code == OK
    assert "has not answered 1 calls within their time" in caplog.text


@pytest.mark.parametrize("timeout", [math.inf, 5.0])
async def test_so_is_one_that_has_brought_its_own_time_and_no_other(
    timeout: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote_engine, "LOOK_SECONDS", 0.02)
    async with paired(timeout=timeout) as (pair, remote):
        stream, plain, answered, late, later = (Web() for _ in range(5))
        loop = asyncio.get_running_loop()
        began = loop.time()
        for web, own in ((stream, 0.5), (plain, None), (answered, 0.5), (late, 0.5), (later, 0.7)):
            remote.submit(call(remote, timeout=own), web)
        await until(lambda: len(pair.engine.calls) == 5, "the calls come")
        (begun, caller), (asked, _), (done, _), _, _ = pair.engine.calls.values()
        caller.streamed(Chunk(begun.id, b"a stream takes as long as it likes"))
        pair.engine.settle(done)
        assert (await answered.outcome()).code == OK
        for web, seconds in ((late, 0.5), (later, 0.7)):
            assert (await web.outcome()).failure == TIMED_OUT
            assert loop.time() - began > seconds
        await until(lambda: len(pair.engine.cancelled) == 2, "the engine hears that nobody waits for the calls")
        await until(lambda: not remote._own_times, "nothing is left of them")
        for each, web in ((begun, stream), (asked, plain)):
            pair.engine.settle(each)
            assert (await web.outcome()).code == OK
        if timeout == math.inf:
            # Without such calls, nothing is looked at.
            await until(lambda: remote._look_timer is None, "it looks no more")
            assert not remote._begun
    assert sum(map(int, re.findall(r"has not answered (\d) calls within their time", caplog.text))) == 2


async def test_what_the_engine_answers_while_this_process_stands_still_is_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_engine, "LOOK_SECONDS", 0.02)
    async with paired() as (pair, remote):
        web = Web()
        remote.submit(call(remote, timeout=0.05), web)
        got, _ = await pair.engine.next_call()
        # Both sides stand still.
        time.sleep(0.2)
        pair.engine.settle(got)
        assert (await web.outcome()).code == OK


@pytest.mark.parametrize(
    "entry", [(0,), (1, 2, 3, 4, 5), "text", 1.5, [1], *[(number, *[None] * 12) for number in (0, -1, 1 << 40, "x")]]
)
async def test_garbage_ends_the_connection_and_drops_its_calls(entry: Any) -> None:
    async with paired() as (pair, remote):
        web = Web()
        remote.submit(call(remote), web)
        await pair.engine.next_call()
        assert remote._channel is not None
        remote._channel.send(frames.encode([entry]))
        await until(lambda: not len(pair.callers), "the connection is closed")
        assert len(pair.engine.cancelled) == 1
        assert (await web.outcome()).failure == ENGINE_LOST


async def test_garbage_of_the_engine_ends_the_connection() -> None:
    async with paired() as (pair, remote):
        web = Web()
        remote.submit(call(remote), web)
        _, caller = await pair.engine.next_call()
        caller._say((1, 2, 3, 4, 5))  # type: ignore[attr-defined]
        assert (await web.outcome()).failure == ENGINE_LOST
        await until(lambda: pair.engine.cancelled, "the call is dropped")


# -- large payloads --------------------------------------------------------------------------------------------------


def lying(memory: SharedMemory, payload: bytes) -> SharedPayload:
    """Return a payload that lies in shared memory, as a worker's result does."""
    blocks = memory.own_blocks()
    span = blocks.put(payload)
    assert span is not None
    return blocks.hold(reference.pack(Kind.BYTES, [span]))


async def test_a_large_body_is_written_once_and_read_where_it_lies() -> None:
    async with paired(shared=True) as (pair, remote):
        assert pair.memory is not None
        body = os.urandom(LARGE)
        web = Web()
        # More together than there is room for, so that blocks are written again.
        for _ in range(40):
            remote.submit(call(remote, body), web)
            got, _ = await pair.engine.next_call()
            assert isinstance(got.payload, SharedPayload)
            assert got.payload.read() == body
            pair.engine.settle(got, payload=lying(pair.memory, body[::-1]))
            assert (await web.outcome()).payload == body[::-1]


class Reader(Web):
    """Whoever reads large results where they lie."""

    takes_held = True


@pytest.mark.parametrize("error", [ImportError, SystemExit])
async def test_a_held_result_that_cannot_be_copied_is_answered_500_and_dropped(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    class Foreign(Held):
        def copy(self) -> bytes:
            raise error("no module named theirs")

    async with paired() as (pair, remote):
        web, held = Web(), Foreign(b"large")
        remote.submit(call(remote, objects=True), web)
        got, _ = await pair.engine.next_call()
        pair.engine.settle(got, payload=held)
        assert (await web.outcome()).failure == INTERNAL_ERROR
        assert held.drops == 1
    assert "cannot be copied" in caplog.text


async def test_a_large_result_is_read_where_it_lies_by_whoever_does_so() -> None:
    async with paired(shared=True) as (pair, remote):
        memory = pair.memory
        assert memory is not None
        web = Reader()
        # More together than there is room for, so that blocks are written again.
        for number in range(40):
            remote.submit(call(remote), web)
            got, _ = await pair.engine.next_call()
            body = bytes([number]) * (LARGE + number)
            pair.engine.settle(got, payload=lying(memory, body))
            held: Any = (await web.outcome()).payload
            assert (len(held), held.read()) == (len(body), body)
            with held.lend() as lent:
                assert lent == body
                assert memory.in_use
            held.drop()
            await until(lambda: not memory.in_use, "its memory is given back")


async def test_what_is_dropped_after_its_engine_is_not_told_to_the_next_one(tmp_path: Path) -> None:
    path = str(tmp_path / "engine.sock")
    memory = SharedMemory(1 << 20, 2)
    pair = Pair(memory)
    listening = EngineSocket(path)
    listening.start(pair.callers.add)
    remote = await pair.web(path)
    web = Reader()
    remote.submit(call(remote), web)
    got, _ = await pair.engine.next_call()
    pair.engine.settle(got, payload=lying(memory, b"x" * LARGE))
    held: Any = (await web.outcome()).payload
    listening.close()
    pair.callers.close()
    await until(lambda: not remote.is_there, "it is gone")
    assert not memory.in_use
    again = Pair()
    listening = EngineSocket(path)
    listening.start(again.callers.add)
    await until(lambda: remote.is_there, "the next is found")
    held.drop()
    await remote.refresh()
    assert remote.is_there
    remote.disconnect()
    await pair.close()
    listening.close()
    again.callers.close()
    memory.close()


async def test_a_body_in_pieces_is_written_as_one() -> None:
    async with paired(shared=True) as (pair, remote):
        web = Web()
        body = os.urandom(LARGE + 1000)
        pieces = [body[:10], memoryview(body)[10:20_000], body[20_000:]]
        for parts, size in ((pieces, len(body)), (pieces[:1], 10)):
            remote.submit(call(remote, Pieces(parts, size)), web)
            got, _ = await pair.engine.next_call()
            assert isinstance(got.payload, SharedPayload) == (size >= LARGE)
            assert (got.payload if isinstance(got.payload, bytes) else got.payload.read()) == body[:size]
            pair.engine.settle(got, payload=b"out")
            assert (await web.outcome()).payload == b"out"


async def test_what_finds_no_room_goes_through_the_socket() -> None:
    async with paired(shared=True) as (pair, remote):
        body = os.urandom(LARGE * 10)
        web = Web()
        for _ in range(3):
            remote.submit(call(remote, body), web)
        await until(lambda: len(pair.engine.calls) == 3, "the calls come")
        calls = [each for each, _ in pair.engine.calls.values()]
        assert [type(each.payload) for each in calls] == [SharedPayload, bytes, bytes]
        for each in calls:
            payload = each.payload if isinstance(each.payload, bytes) else each.payload.read()
            pair.engine.settle(each, payload=payload)
        assert [(await web.outcome()).payload == body for _ in calls] == [True] * 3


async def test_what_cannot_be_told_leaves_no_memory_taken() -> None:
    async with paired(shared=True) as (pair, remote):
        assert pair.memory is not None
        assert remote.memory is not None
        web = Web()
        remote.submit(call(remote, b"x" * LARGE, tenant=Tenant("one")), web)
        assert (await web.outcome()).failure == INTERNAL_ERROR
        writer = remote.memory._mapped.writer
        assert writer is not None
        assert not writer.in_use
        remote.submit(call(remote), web)
        got, _ = await pair.engine.next_call()
        pair.engine.settle(got, payload=lying(pair.memory, b"x" * LARGE), head=Tenant("x"))
        assert (await web.outcome()).failure == INTERNAL_ERROR
        assert not pair.memory.in_use


async def test_a_route_whose_workers_read_no_shared_memory_gets_bytes() -> None:
    async with paired(shared=True, apart=False) as (pair, remote):
        web = Web()
        remote.submit(call(remote, b"x" * LARGE), web)
        got, _ = await pair.engine.next_call()
        assert got.payload == b"x" * LARGE
        pair.engine.settle(got)


async def test_an_object_with_large_buffers_comes_back_as_one_that_may_be_changed() -> None:
    async with paired(shared=True) as (pair, remote):
        assert pair.memory is not None
        blocks = pair.memory.own_blocks()
        large = bytearray(os.urandom(LARGE))
        spans: list[Any] = []
        stream = pickle.dumps(
            {"a": pickle.PickleBuffer(large)}, 5, buffer_callback=lambda buffer: spans.append(blocks.put(buffer.raw()))
        )
        web = Web()
        remote.submit(call(remote, objects=True), web)
        got, _ = await pair.engine.next_call()
        pair.engine.settle(got, payload=blocks.hold(reference.pack(Kind.PICKLE, spans, stream)))
        payload: Any = (await web.outcome()).payload
        value = payload.load()["a"]
        assert value == large
        value[0] ^= 1
        memory = pair.memory
        await until(lambda: not memory.in_use, "its memory is given back")


async def test_a_web_process_that_dies_with_payloads_leaves_no_memory_taken() -> None:
    async with paired(shared=True) as (pair, _):
        assert pair.memory is not None
        second = await pair.web()
        web = Web()
        for _ in range(3):
            second.submit(call(second, b"x" * LARGE), web)
        await until(lambda: len(pair.engine.calls) == 3, "the calls come")
        got, _ = await pair.engine.next_call()
        pair.engine.settle(got, payload=lying(pair.memory, b"y" * LARGE))
        assert pair.memory.in_use
        assert second._channel is not None
        # As the kernel does for a process that was killed.
        second._channel._sock.shutdown(socket.SHUT_RDWR)
        memory = pair.memory
        await until(lambda: not memory.in_use, "its memory is given back")
        assert [outcome.code for outcome in web.outcomes].count(503) >= 2


# -- questions -------------------------------------------------------------------------------------------------------


async def test_answers_of_all_processes_are_counted_together() -> None:
    async with paired() as (pair, first):
        second = await pair.web()
        for remote, count in ((first, 2), (second, 3)):
            for _ in range(count):
                remote._metrics.answered("/inference", 200, 0.01)
        expected = repr([(("/inference", 200), 5)]).encode()
        assert await first.ask("metrics") == expected
        assert await second.ask("metrics") == expected
        assert pair.metrics.duration.count == 5
        assert not first._metrics.duration.count
        second._metrics.answered("/inference", 200, 0.01)
        second.disconnect()
        await until(lambda: pair.metrics.duration.count == 6, "the last is counted at the end")


async def test_a_web_process_that_does_not_answer_delays_one_scrape_and_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    async with paired() as (pair, first):
        second = await pair.web()
        for remote in (first, second):
            remote._metrics.answered("/inference", 200, 0.01)
        # As one that is stopped, which reads nothing.
        channel = second._channel
        assert channel is not None
        loop.remove_reader(channel._sock.fileno())
        # Long enough for the one that answers, beside other work.
        monkeypatch.setattr(callers, "COUNT_SECONDS", 0.5)
        assert await first.ask("metrics") == repr([(("/inference", 200), 1)]).encode()
        assert pair.callers.standing() == (2, 1)
        monkeypatch.setattr(callers, "COUNT_SECONDS", 3600)
        for _ in range(3):
            await asyncio.wait_for(first.ask("metrics"), 5)
        assert caplog.text.count("has not told") == 1
        loop.add_reader(channel._sock.fileno(), channel._read)
        await until(lambda: pair.callers.standing() == (2, 0), "it counts as one that does not answer")
        assert await first.ask("metrics") == repr([(("/inference", 200), 2)]).encode()


async def test_a_question_that_cannot_be_answered_fails() -> None:
    async with paired() as (_, remote):
        for kind in ("unknown", "broken"):
            with pytest.raises(Away):
                await remote.ask(kind)


async def test_so_many_questions_of_a_web_process_wait_and_more_are_refused() -> None:
    async with paired() as (pair, remote):
        pair.runs.clear()
        asked = [asyncio.ensure_future(remote.ask("metrics")) for _ in range(MOST_QUESTIONS + 3)]
        # The process asks how the engine stands as well.
        await until(lambda: sum(each.done() for each in asked) >= 3, "those beyond the bound are refused", 10)
        pair.runs.set()
        done = await asyncio.gather(*asked, return_exceptions=True)
        assert 3 <= sum(isinstance(each, Away) for each in done) <= 4
        assert await remote.ask("metrics")


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancellation_that_comes_with_an_answer_is_not_lost(fails: bool) -> None:
    async with paired() as (pair, remote):
        pair.runs.clear()
        asked = asyncio.ensure_future(remote.ask("metrics"))
        await until(lambda: remote._questions, "it is asked")
        await asyncio.sleep(0)
        answer = list(remote._questions.values())[-1]
        if fails:
            answer.set_exception(Away())
        else:
            answer.set_result(b"")
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        pair.runs.set()


async def test_a_stop_that_comes_with_the_connection_is_not_lost(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    path = str(tmp_path / "engine.sock")
    pair = Pair()
    listening = EngineSocket(path)
    listening.start(pair.callers.add)

    def stop() -> None:
        dialing.cancel()
        remote.disconnect()

    class Remote(RemoteEngine):
        def connect(self, *of_an_engine: Any) -> None:
            super().connect(*of_an_engine)
            loop.call_soon(stop)

    remote = Remote(loop, ServiceMetrics("x", []))
    dialing = loop.create_task(Dialing(remote, ROUTES, path).run())
    try:
        await asyncio.wait([dialing], timeout=10)
        assert dialing.cancelled()
    finally:
        dialing.cancel()
        listening.close()
        pair.callers.close()


async def test_a_question_fails_with_the_connection() -> None:
    async with paired() as (pair, remote):
        asked = asyncio.ensure_future(remote.ask("standing"))
        await asyncio.sleep(0)
        pair.callers.close()
        with pytest.raises(Away):
            await asked


async def test_at_its_end_a_web_process_waits_for_its_calls() -> None:
    async with paired() as (pair, remote):
        web = Web()
        remote.submit(call(remote), web)
        got, _ = await pair.engine.next_call()
        ending = asyncio.ensure_future(remote.finish(20))
        await asyncio.sleep(0)
        assert not ending.done()
        pair.engine.settle(got)
        await asyncio.wait_for(ending, 10)
        assert (await web.outcome()).code == OK
        assert remote.statistics().closing


async def test_a_lack_of_descriptors_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Scarce(socket.socket):
        tried = 0

        def accept(self) -> Any:
            self.tried += 1
            if self.tried <= 2:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    listens = private_socket.listen
    scarce: list[Scarce] = []

    def listen(path: str, *, backlog: int, takes_over: bool) -> Scarce:
        scarce.append(Scarce(fileno=listens(path, backlog=backlog, takes_over=takes_over).detach()))
        scarce[0].setblocking(False)
        return scarce[0]

    monkeypatch.setattr(private_socket, "listen", listen)
    monkeypatch.setattr(private_socket, "PAUSE_SECONDS", 0.05)
    taken: list[socket.socket] = []
    listening = EngineSocket(str(tmp_path / "e.sock"))
    listening.start(taken.append)
    with socket.socket(socket.AF_UNIX) as web:
        web.connect(str(tmp_path / "e.sock"))
        await until(lambda: taken, "it is accepted")
    # Not in each turn of the loop, and said once.
    assert scarce[0].tried == 3
    assert caplog.text.count("no web process can connect now: Too many open files") == 1
    assert "ulimit -n" in caplog.text
    taken[0].close()
    listening.close()
