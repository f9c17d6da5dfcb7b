"""Three stages, the way most services begin: prepare each request, run the model on batches, shape each answer.

    python examples/echo/server.py --port 8000
    curl http://127.0.0.1:8000/inference -d '{"text": "hello"}'
    python examples/echo/client.py "hello" --count 32

`Infer` stands in for a model: a batch takes it as long as one text does. Put yours in its place.
"""

import time
from typing import Any, TypedDict

from mosec_asgi import Server, ValidationError, Worker

SECONDS = 0.02


class Call(TypedDict):
    """What a client sends. Annotations are the contract, at /openapi/swagger/; a plain `Worker` checks by itself."""

    text: str


class Echo(TypedDict):
    """What a client gets."""

    echo: str
    batch: int


class Prepare(Worker):
    """Check a request, and take out of it what the model needs."""

    example = {"text": "hello"}

    def forward(self, data: Call) -> str:
        """Return the text of a request."""
        text: Any = data.get("text") if isinstance(data, dict) else None
        if not isinstance(text, str):
            raise ValidationError("'text' must be a string")
        return text.strip()


class Infer(Worker):
    """Make an echo of each text of a batch."""

    def forward(self, data: list[str]) -> list[tuple[list[str], int]]:
        """Return what comes back of each text, fainter each time, and how many texts were in the batch."""
        time.sleep(SECONDS)
        return [([text[start:] for start in range(0, len(text), 2)], len(data)) for text in data]


class Shape(Worker):
    """Make an answer of what the model has found."""

    def forward(self, data: tuple[list[str], int]) -> Echo:
        """Return the echo as one text."""
        echoes, batch = data
        return {"echo": " ".join(echoes), "batch": batch}


server = Server()
server.append_worker(Prepare, num=2)
server.append_worker(Infer, max_batch_size=16)
server.append_worker(Shape)

if __name__ == "__main__":
    server.run()
