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
import contextlib
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from mosec_asgi import MosecError, Server

# The modules beside this one, wherever it is imported from.
sys.path.insert(0, str(Path(__file__).parent / "modules"))
from access import NeedsKey, check_key
from readers import Answer, Describe, Read

# Other sites whose pages may call this app.
ORIGINS = os.environ.get("ORIGINS", "http://localhost:5173").split(",")
BOOKS = [("hamlet", "To be, or not to be: that is the question"), ("macbeth", "Tomorrow, and tomorrow, and tomorrow")]


server = Server()
server.append_worker(Read, max_batch_size=32)
server.append_worker(Describe, concurrency=100, route="/describe")


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start what the app needs, the models among it, and stop it at the end."""
    with contextlib.closing(sqlite3.connect(":memory:")) as shelf:
        shelf.execute("CREATE TABLE books (name TEXT PRIMARY KEY, text TEXT)")
        shelf.executemany("INSERT INTO books VALUES (?, ?)", BOOKS)
        async with server.lifespan(app):
            app.state.shelf = shelf
            yield


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
    """Say what is wrong. FastAPI's own answer repeats the input, and becomes a 500 where JSON cannot hold that."""
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
