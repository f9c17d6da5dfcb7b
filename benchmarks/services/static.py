"""The model of continuous.py in batches that begin and end together: the next one waits for the longest text.

A text that is done ends its stream, and takes no part in the steps that are left.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from continuous import SLOTS, TOKEN, compute

from mosec_asgi import Server, SSEWorker


class Static(SSEWorker):
    """Writes as many tokens as it is asked for."""

    def forward(self, data: Sequence[dict[str, int]]) -> Iterator[tuple[int, Any]]:
        """Write the texts of a batch, one token of each in a step."""
        left = {index: item["events"] for index, item in enumerate(data)}
        while left:
            compute(len(left))
            for index in list(left):
                yield index, TOKEN
                left[index] -= 1
                if not left[index]:
                    yield index, self.FINISHED
                    del left[index]


if __name__ == "__main__":
    server = Server(timeout=60_000)
    server.append_worker(Static, max_batch_size=SLOTS)
    server.run()
