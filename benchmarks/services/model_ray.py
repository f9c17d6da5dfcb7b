"""The service of `model`, with its worker in an actor of Ray."""

from model import Model

from mosec_asgi import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, max_batch_size=64, max_wait_time=10, executor="ray")
    server.run()
