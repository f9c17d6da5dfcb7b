"""Compressed requests and responses: the setting `compression`.

    python examples/compression/server.py --port 8000
    python examples/compression/client.py README.md

The worker knows nothing of it: requests come unpacked, and answers are packed on their way out where the client
accepts it.
"""

from mosec_asgi import Server, ValidationError, Worker


class Index(Worker):
    """Make the index of a text: its words, and the lines where they stand."""

    example = "to be\nor not to be"

    def forward(self, data: str) -> dict[str, list[int]]:
        """Return the numbers of the lines, from 1, for each word of a text."""
        if not isinstance(data, str):
            raise ValidationError("send the text as a JSON string")
        index: dict[str, list[int]] = {}
        for number, line in enumerate(data.splitlines(), 1):
            for word in dict.fromkeys(line.lower().split()):
                index.setdefault(word, []).append(number)
        return index


# The limit is for what a request holds once it is unpacked, whatever its size on the way.
server = Server(compression=True, max_request_size=4 * 1024 * 1024)
server.append_worker(Index, num=2)

if __name__ == "__main__":
    server.run()
