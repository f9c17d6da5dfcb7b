"""JSON in, the same JSON out, by way of two worker processes, one request at a time."""

from echo import Echo
from package import Server


class SecondEcho(Echo):
    """The second stage; a class of its own, as two stages of a real pipeline are."""


if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo)
    server.append_worker(SecondEcho)
    server.run()
