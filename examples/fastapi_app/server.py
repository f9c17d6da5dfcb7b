"""A model inside a FastAPI app, beside the app's own routes.

    python examples/fastapi_app/server.py --port 8000
    uvicorn --app-dir examples/fastapi_app server:app
    python examples/fastapi_app/client.py "To be, or not to be"

The app's own routes are FastAPI's, with its docs at /docs. All below /ml is the model server: /ml/inference,
/ml/metrics, /ml/readyz, /ml/openapi/swagger/. Its workers start and stop with the app.
"""

import argparse
import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypedDict

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException

from mosec_asgi import Server, ValidationError, Worker


class Answer(TypedDict):
    """How long it takes to read a text."""

    seconds: float


class Read(Worker):
    """Say how long it takes to read a text."""

    words_a_minute = 240

    def deserialize(self, data: bytes) -> str:
        """Return the text of a request; what is no text fails alone, whatever batch it would have been in."""
        text = super().deserialize(data)
        if not isinstance(text, str):
            raise ValidationError("send a text as a JSON string")
        return text

    def forward(self, data: list[str]) -> list[Answer]:
        """Return the seconds for each text of a batch."""
        return [{"seconds": round(len(text.split()) * 60 / self.words_a_minute, 2)} for text in data]


server = Server()
server.append_worker(Read, max_batch_size=32)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start what the app needs, the model among it, and stop it at the end."""
    # Calls into the model without a network: batched with everybody else's.
    transport = httpx.ASGITransport(server)
    async with server.lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://ml") as model:
        app.state.model = model
        yield


app = FastAPI(title="A library", lifespan=lifespan)
SHELF = {"hamlet": "To be, or not to be: that is the question", "macbeth": "Tomorrow, and tomorrow, and tomorrow"}


@app.get("/books")
def books() -> list[str]:
    """List the books: a route that has nothing to do with the model."""
    return sorted(SHELF)


@app.get("/books/{name}")
async def book(name: str) -> dict[str, Any]:
    """Return a book, and how long it takes to read it, which the model knows."""
    if name not in SHELF:
        raise HTTPException(404, f"there is no book {name!r}; there are {', '.join(books())}")
    answer = await app.state.model.post("/inference", json=SHELF[name])
    if answer.is_error:
        raise HTTPException(answer.status_code, answer.text)
    return {"text": SHELF[name], **answer.json()}


app.mount("/ml", server)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(app, host=options.address, port=options.port)
