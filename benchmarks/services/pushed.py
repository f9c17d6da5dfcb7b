"""Events pushed into one stream at a time, as fast as they go."""

from package import Server, SSEWorker


class Pushed(SSEWorker):
    """Sends as many events as it is asked for."""

    def forward(self, data: dict[str, int]) -> None:
        """Push the events."""
        for _ in range(data["events"]):
            self.send_stream_event("token~")


if __name__ == "__main__":
    server = Server()
    server.append_worker(Pushed)
    server.run()
