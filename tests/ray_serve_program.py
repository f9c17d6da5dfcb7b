"""Starts a Ray of its own, deploys `ray_app:app` of the working directory, and takes it down again after SIGTERM."""

import signal
import sys
import threading

import ray
from ray import serve


def main(port: int, folder: str) -> None:
    over = threading.Event()
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    # Ray sends what it pickles to the replicas, and they import the rest.
    from ray_app import app

    serve.run(app, name="model")
    print("metrics of the node at", ray.nodes()[0]["MetricsExportPort"], flush=True)
    print("deployed", flush=True)
    over.wait()
    serve.delete("model")
    print("deleted", flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
