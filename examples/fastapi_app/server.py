"""Models inside a FastAPI app, beside the app's own routes, and a page.

    API_KEY=sesame python examples/fastapi_app/server.py --port 8000
    uvicorn --app-dir examples/fastapi_app server:app
    python examples/fastapi_app/client.py "To be, or not to be" --key sesame

The app's own routes are FastAPI's, with its docs at /docs. They check what they are sent, look into a database, and
call the model by `server.infer`, in one batch with all other calls. All below /ml is the model server: /ml/inference,
/ml/describe (a form with an image; the answer is a stream), /ml/metrics, /ml/readyz, /ml/openapi/swagger/. Its workers
start and stop with the app. The page at /ui/ sends the form, and shows the answer as it comes.

With the environment variable API_KEY all of them but the page, the documents, health and metrics want the header
`x-api-key`.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import os
import secrets
import sqlite3
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import TypedDict

from mosec_asgi import MosecError, Server, SSEWorker, ValidationError
from mosec_asgi.mixin import File, MultipartMixin, PydanticMixin

API_KEY = os.environ.get("API_KEY", "")
# Other sites whose pages may call this app.
ORIGINS = os.environ.get("ORIGINS", "http://localhost:5173").split(",")
BOOKS = [("hamlet", "To be, or not to be: that is the question"), ("macbeth", "Tomorrow, and tomorrow, and tomorrow")]


# -- the models: these run in processes of their own -------------------------------------------------------------------


class Answer(TypedDict):
    """How long it takes to read a text."""

    seconds: float


class Read(PydanticMixin):
    """Say how long it takes to read a text."""

    words_a_minute = 240

    def forward(self, data: list[str]) -> list[Answer]:
        """Return the seconds for each text of a batch."""
        return [{"seconds": round(len(text.split()) * 60 / self.words_a_minute, 2)} for text in data]


@dataclasses.dataclass
class Picture:
    """A form with an image."""

    image: File
    title: Annotated[str, Field(max_length=100)] = "Untitled"


class Describe(MultipartMixin, SSEWorker):
    """Describe an image, word by word; the answer is a stream of plain text."""

    resp_mime_type = "text/plain; charset=utf-8"

    async def forward(self, data: Picture) -> AsyncIterator[str]:
        """Yield the words."""
        content = data.image.data
        if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) < 24:
            raise ValidationError("the image is no PNG")
        width, height = struct.unpack(">II", content[16:24])
        for word in f"{data.title}: an image of {width} by {height} pixels in {len(content)} bytes.".split():
            yield f"{word} "
            await asyncio.sleep(0.1)


server = Server()
server.append_worker(Read, max_batch_size=32)
server.append_worker(Describe, concurrency=100, route="/describe")


# -- the app -----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start what the app needs, the models among it, and stop it at the end."""
    with contextlib.closing(sqlite3.connect(":memory:")) as shelf:
        shelf.execute("CREATE TABLE books (name TEXT PRIMARY KEY, text TEXT)")
        shelf.executemany("INSERT INTO books VALUES (?, ?)", BOOKS)
        async with server.lifespan(app):
            app.state.shelf = shelf
            yield


def check_key(key: Annotated[str | None, Depends(APIKeyHeader(name="x-api-key", auto_error=False))]) -> None:
    """Refuse a request without the right key."""
    if API_KEY and not secrets.compare_digest((key or "").encode(), API_KEY.encode()):
        raise HTTPException(401, "send the right key in the header x-api-key")


class NeedsKey:
    """`Depends(check_key)` for an app that is mounted: FastAPI's dependencies do not reach there."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key of a call of a model; documents, health and metrics are free."""
        if scope["type"] == "http" and scope["method"] == "POST":
            check_key(Headers(scope=scope).get("x-api-key"))
        await self.app(scope, receive, send)


class Book(BaseModel):
    """A book, and how long it takes to read it."""

    text: str
    seconds: float


class Draft(BaseModel):
    """A text that is not on the shelf."""

    text: Annotated[str, Field(min_length=1, max_length=10_000)]


app = FastAPI(title="A library", lifespan=lifespan)
app.add_middleware(CORSMiddleware, allow_origins=ORIGINS, allow_methods=["*"], allow_headers=["*"])


@app.exception_handler(MosecError)
def model_failed(_: Request, error: MosecError) -> JSONResponse:
    """Answer with the model's own status, and say when to come again where that may help."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return JSONResponse({"detail": str(error)}, error.code, headers)


@app.exception_handler(RequestValidationError)
def not_valid(_: Request, error: RequestValidationError) -> JSONResponse:
    """Say what is wrong. FastAPI's own answer repeats the input, and becomes a 500 where that has no form in JSON."""
    return JSONResponse(
        {"detail": [{key: each[key] for key in ("type", "loc", "msg")} for each in error.errors()]}, 422
    )


@app.get("/books", dependencies=[Depends(check_key)])
async def books() -> list[str]:
    """List the books: a route that has nothing to do with the model."""
    return [name for (name,) in app.state.shelf.execute("SELECT name FROM books ORDER BY name")]


@app.get("/books/{name}", dependencies=[Depends(check_key)])
async def book(name: str) -> Book:
    """Return a book, and how long it takes to read it, which the model knows."""
    row = app.state.shelf.execute("SELECT text FROM books WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise HTTPException(404, f"there is no book {name!r}; there are {', '.join(await books())}")
    answer: Answer = await server.infer(row[0])
    return Book(text=row[0], seconds=answer["seconds"])


@app.post("/drafts", dependencies=[Depends(check_key)])
async def draft(request: Request, draft: Draft) -> Book:
    """Say how long it takes to read a text, which FastAPI has checked."""
    # The same id in the logs of the app and of the model; half a second, for somebody who types.
    answer: Answer = await server.infer(draft.text, timeout=500, request_id=request.headers.get("x-request-id"))
    return Book(text=draft.text, seconds=answer["seconds"])


app.mount("/ml", NeedsKey(server))
app.mount("/ui", StaticFiles(directory=Path(__file__).parent / "page", html=True))

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(app, host=options.address, port=options.port)
