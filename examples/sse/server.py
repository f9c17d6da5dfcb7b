"""Server-sent events, in both ways to write them: POST a text, get its words as somebody would say them.

    python examples/sse/server.py --port 8000
    python examples/sse/client.py "To be, or not to be"
    curl -N http://127.0.0.1:8000/yielded -d '{"text": "To be, or not to be"}'

Two routes with the same events. Behind /pushed the worker calls `send_stream_event`, as in mosec; behind /yielded its
`forward` is a generator. Both say up to eight texts at a time.
"""

import json
import time
from collections.abc import Iterator

from mosec_asgi import Event, Runtime, Server, SSEWorker, ValidationError, Worker

SECONDS_PER_WORD = 0.05
MAX_BATCH_SIZE = 8


class Words(Worker):
    """Say a text word by word.

    The last event is called `end` and holds the number of words.
    """

    example = {"text": "To be, or not to be"}

    def forward(self, data: dict[str, str]) -> list[str]:
        """Return the words of a text. An error here is the one event of the stream, and is called `error`."""
        text = data.get("text") if isinstance(data, dict) else None
        if not isinstance(text, str):
            raise ValidationError("'text' must be a string")
        return text.split()


class Push(SSEWorker):
    """Send the words by `send_stream_event`."""

    def forward(self, data: list[list[str]]) -> None:
        """Say all texts of a batch. All streams end when this returns."""
        for place in range(max(map(len, data))):
            for index, words in enumerate(data):
                if place < len(words) and not self.is_cancelled(index):
                    self.send_stream_event(words[place], index)
            time.sleep(SECONDS_PER_WORD)
        for index, words in enumerate(data):
            self.send_stream_event(end(words), index)


class Yield(SSEWorker):
    """Yield the words."""

    def forward(self, data: list[list[str]]) -> Iterator[tuple[int, object]]:
        """Say all texts of a batch. A text that is at its end ends its stream; the others go on."""
        left = dict(enumerate(map(iter, data)))
        while left:
            for index, words in list(left.items()):
                if (word := next(words, None)) is not None:
                    yield index, word
                else:
                    yield index, end(data[index])
                    yield index, self.FINISHED
                    del left[index]
            time.sleep(SECONDS_PER_WORD)


def end(words: list[str]) -> Event:
    """Return the last event of a stream."""
    return Event(json.dumps({"words": len(words)}), event="end")


server = Server()
words = Runtime(Words)
server.register_runtime(
    {
        "/pushed": [words, Runtime(Push, max_batch_size=MAX_BATCH_SIZE)],
        "/yielded": [words, Runtime(Yield, max_batch_size=MAX_BATCH_SIZE)],
    }
)

if __name__ == "__main__":
    server.run()
