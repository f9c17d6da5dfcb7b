"""Bytes in, the same bytes out, one request at a time."""

from typing import Any

from package import Server, Worker


class BytesEcho(Worker):
    """Answers what it is asked, without looking at it."""

    def deserialize(self, data: bytes) -> bytes:
        """Return the body as it is."""
        return data

    def forward(self, data: Any) -> Any:
        """Return `data`."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """Return the result as it is."""
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(BytesEcho)
    server.run()
