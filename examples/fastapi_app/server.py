"""A model inside a FastAPI app, beside the app's own routes.

    python examples/fastapi_app/server.py --port 8000
    uvicorn --app-dir examples/fastapi_app server:app
    python examples/fastapi_app/client.py "To be, or not to be"

The app's own routes are FastAPI's, with its docs at /docs. They check what they are sent, look into a database, and
call the model by `server.infer`, in one batch with all other calls. All below /ml is the model server: /ml/inference,
/ml/metrics, /ml/readyz, /ml/openapi/swagger/. Its workers start and stop with the app.
"""

import argparse
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from typing import Annotated, TypedDict

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from mosec_asgi import MosecError, Server, ValidationError, Worker


class Answer(TypedDict):
    """How long it takes to read a text."""

    seconds: float


class Read(Worker):
    """Say how long it takes to read a text."""

    words_a_minute = 240

    def deserialize(self, data: bytes) -> str:
        """Return the text of a request to /ml/inference; what is no text fails alone, whatever batch it is for."""
        text = super().deserialize(data)
        if not isinstance(text, str):
            raise ValidationError("send a text as a JSON string")
        return text

    def forward(self, data: list[str]) -> list[Answer]:
        """Return the seconds for each text of a batch."""
        return [{"seconds": round(len(text.split()) * 60 / self.words_a_minute, 2)} for text in data]


server = Server()
server.append_worker(Read, max_batch_size=32)

BOOKS = [("hamlet", "To be, or not to be: that is the question"), ("macbeth", "Tomorrow, and tomorrow, and tomorrow")]


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start what the app needs, the model among it, and stop it at the end."""
    with contextlib.closing(sqlite3.connect(":memory:")) as shelf:
        shelf.execute("CREATE TABLE books (name TEXT PRIMARY KEY, text TEXT)")
        shelf.executemany("INSERT INTO books VALUES (?, ?)", BOOKS)
        async with server.lifespan(app):
            app.state.shelf = shelf
            yield


app = FastAPI(title="A library", lifespan=lifespan)


class Book(BaseModel):
    """A book, and how long it takes to read it."""

    text: str
    seconds: float


class Draft(BaseModel):
    """A text that is not on the shelf."""

    text: Annotated[str, Field(min_length=1, max_length=10_000)]


@app.exception_handler(MosecError)
def model_failed(_: Request, error: MosecError) -> JSONResponse:
    """Answer with the model's own status, and say when to come again where that may help."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return JSONResponse({"detail": str(error)}, error.code, headers)


@app.get("/books")
async def books() -> list[str]:
    """List the books: a route that has nothing to do with the model."""
    return [name for (name,) in app.state.shelf.execute("SELECT name FROM books ORDER BY name")]


@app.get("/books/{name}")
async def book(name: str) -> Book:
    """Return a book, and how long it takes to read it, which the model knows."""
    row = app.state.shelf.execute("SELECT text FROM books WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise HTTPException(404, f"there is no book {name!r}; there are {', '.join(await books())}")
    answer: Answer = await server.infer(row[0])
    return Book(text=row[0], seconds=answer["seconds"])


@app.post("/drafts")
async def draft(request: Request, draft: Draft) -> Book:
    """Say how long it takes to read a text, which FastAPI has checked."""
    # The same id in the logs of the app and of the model; half a second, for somebody who types.
    answer: Answer = await server.infer(draft.text, timeout=500, request_id=request.headers.get("x-request-id"))
    return Book(text=draft.text, seconds=answer["seconds"])


app.mount("/ml", server)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(app, host=options.address, port=options.port)
