"""The service of model.py with `max_wait_time` left to the package: 10 ms in mosec, the scheduler's choice in ours."""

from model import Model
from package import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, max_batch_size=64)
    server.run()
