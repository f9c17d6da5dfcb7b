"""JSON in, the same JSON out, one request at a time."""

from typing import Any

from package import Server, Worker


class Echo(Worker):
    """Answers what it is asked."""

    def forward(self, data: Any) -> Any:
        """Return `data`, an item or a batch of items."""
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo)
    server.run()
