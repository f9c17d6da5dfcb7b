"""The service of `arrays` on two nodes of Ray: the array goes from one to the other by the object store."""

from arrays import Make, Mean

from mosec_asgi import Server

FIRST, SECOND = ({"resources": {name: 1}} for name in ("first", "second"))

if __name__ == "__main__":
    server = Server()
    server.append_worker(Make, executor="ray", ray_actor_options=FIRST)
    server.append_worker(Mean, executor="ray", ray_actor_options=SECOND)
    server.run()
