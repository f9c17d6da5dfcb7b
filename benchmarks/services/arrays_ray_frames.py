"""The same, with a format of its own: so the array goes to the server and from there to the other node."""

import pickle
from typing import Any

from arrays import Make, Mean
from arrays_ray import FIRST, SECOND

from mosec_asgi import Server


class MakePickled(Make):
    """Makes an array, and pickles it by itself."""

    def serialize_ipc(self, data: Any) -> bytes:
        """Return the pickle."""
        return pickle.dumps(data, 5)


if __name__ == "__main__":
    server = Server()
    server.append_worker(MakePickled, executor="ray", ray_actor_options=FIRST)
    server.append_worker(Mean, executor="ray", ray_actor_options=SECOND)
    server.run()
