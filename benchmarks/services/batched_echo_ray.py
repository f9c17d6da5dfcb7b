"""The service of `batched_echo`, with its worker in an actor of Ray."""

from echo import Echo

from mosec_asgi import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo, max_batch_size=64, max_wait_time=1, executor="ray")
    server.run()
