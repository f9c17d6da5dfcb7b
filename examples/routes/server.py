"""Several routes in one service, which share a stage.

    python examples/routes/server.py --port 8000
    python examples/routes/client.py /count /frequent --text "to be or not to be"

Both pipelines begin with the same two processes of `Split`; a `Runtime` that stands on several routes is one stage.
"""

from collections import Counter
from typing import Any, TypedDict

from mosec_asgi import Runtime, Server, ValidationError, Worker


class Request(TypedDict):
    """What a client sends to either route."""

    text: str


class Split(Worker):
    """Split a text into words, for whichever route."""

    def forward(self, data: Request) -> list[str]:
        """Return the words of a text, in small letters."""
        text: Any = data.get("text") if isinstance(data, dict) else None
        if not isinstance(text, str):
            raise ValidationError("'text' must be a string")
        return text.lower().split()


class Count(Worker):
    """Count words."""

    def forward(self, data: list[list[str]]) -> list[dict[str, int]]:
        """Return the number of words of each text of a batch, and how many of them are different."""
        return [{"words": len(words), "different": len(set(words))} for words in data]


class Frequent(Worker):
    """Find the words that are there most often."""

    def forward(self, data: list[str]) -> dict[str, int]:
        """Return the three most frequent words of a text."""
        return dict(Counter(data).most_common(3))


server = Server()
split = Runtime(Split, num=2)
server.register_runtime(
    {
        "/count": [split, Runtime(Count, max_batch_size=16)],
        "/frequent": [split, Runtime(Frequent)],
    }
)

if __name__ == "__main__":
    server.run()
