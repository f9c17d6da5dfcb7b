"""A FastAPI app with endpoints of its own around a model that takes batches; run by uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from mosec_asgi import MosecError, Server, SSEWorker, ValidationError, Worker

BATCH = 32


class Read(Worker):
    """Counts words; takes 5 ms and a little for each text."""

    def forward(self, data: list[Any]) -> list[Any]:
        time.sleep(0.005 + 0.0001 * len(data))
        return [
            {"words": len(text.split())} if isinstance(text, str) else ValidationError("that is no text")
            for text in data
        ]


class Spell(SSEWorker):
    def forward(self, data: str) -> Any:
        yield from data


class Odd(Worker):
    def forward(self, data: Any) -> Any:
        return lambda: data


server = Server(timeout=30_000, load_shedding=False)
# Waits so long for a batch to fill that a client of the tests on a busy machine can bring one.
server.append_worker(Read, max_batch_size=BATCH, max_wait_time=1000)
server.append_worker(Spell, route="/spell")
server.append_worker(Odd, route="/odd")


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with contextlib.closing(sqlite3.connect(":memory:")) as shelf:
        shelf.execute("CREATE TABLE books (number INTEGER PRIMARY KEY, text TEXT)")
        shelf.executemany("INSERT INTO books VALUES (?, ?)", [(number, "word " * number) for number in range(1, 101)])
        async with server.lifespan(app):
            app.state.shelf = shelf
            yield


app = FastAPI(lifespan=lifespan)


class Wanted(BaseModel):
    number: Annotated[int, Field(ge=1)]


@app.exception_handler(MosecError)
def model_failed(_: Request, error: MosecError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, error.code)


@app.post("/books")
async def book(wanted: Wanted) -> dict[str, Any]:
    row = app.state.shelf.execute("SELECT text FROM books WHERE number = ?", (wanted.number,)).fetchone()
    if row is None:
        raise HTTPException(404, "there is no such book")
    return {"number": wanted.number, **await server.infer(row[0])}


@app.get("/blocking")
def blocking() -> dict[str, Any]:
    """Runs in a thread of the app's."""
    with server.engine() as engine:
        return {"results": list(engine.map(["a b", "c"]))}


@app.get("/wrong")
async def wrong() -> Any:
    return await server.infer(7)


@app.get("/wrong/item")
async def wrong_item() -> Any:
    """Asks for what cannot be sent."""
    return await server.infer(lambda: 1)


@app.get("/wrong/result")
async def wrong_result() -> Any:
    """Asks for what cannot be sent back."""
    return await server.infer("lambda", "/odd")


@app.get("/wrong/loop")
def wrong_loop() -> Any:
    """Asks from an event loop of its own, in a thread of the app's."""
    return asyncio.run(server.infer("a b"))


@app.get("/spell/{text}")
async def spell(text: str) -> StreamingResponse:
    return StreamingResponse(server.stream(text, "/spell"), media_type="text/plain")


app.mount("/ml", server)
