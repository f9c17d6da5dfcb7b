"""JSON in, the same JSON out, in batches of up to 64 that wait at most 1 ms to fill."""

from echo import Echo
from package import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo, max_batch_size=64, max_wait_time=1)
    server.run()
