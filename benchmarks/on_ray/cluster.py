"""Two nodes of Ray on this machine, with the models deployed by Ray Serve, until standard input is closed.

With the arguments `nodes` and a number they are alone, and each has so many processes that wait for actors.

It says in a line of JSON where they are.
"""

import json
import os
import select
import sys

import ray
from ray import serve
from ray.cluster_utils import Cluster

from on_ray.waiting import waiting

# The least that Ray takes is 80 MB; arrays of 10 MB are under way four at a time.
STORE_BYTES = 400 * 1024 * 1024
# Seconds between two looks at the processes that wait for actors.
WAKE_SECONDS = 0.05


def main() -> None:
    """Start all, say so, wait, and end all."""
    alone = sys.argv[1:2] == ["nodes"]
    if alone:
        # More than start at once: of more than a node allows it starts none.
        os.environ.update({"RAY_worker_maximum_startup_concurrency": "16"})
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 16,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
            "resources": {"first": 10},
        },
    )
    try:
        cluster.add_node(num_cpus=16, object_store_memory=STORE_BYTES, resources={"second": 10})
        if alone:
            with waiting(cluster.list_all_nodes(), int(sys.argv[2])) as each:
                print(json.dumps({"address": cluster.address, "url": ""}), flush=True)
                while not select.select([sys.stdin], [], [], WAKE_SECONDS)[0]:
                    for one in each:
                        one.wake()
            return
        ray.init(address=cluster.address, log_to_driver=False)
        port = int(os.environ["BENCH_PORT"])
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        # By this name also where they are unpickled.
        from on_ray.deployments import APPS

        for name, app in APPS.items():
            serve.run(app, name=name, route_prefix=f"/{name}")
        print(json.dumps({"address": cluster.address, "url": f"http://127.0.0.1:{port}"}), flush=True)
        sys.stdin.read()
        serve.shutdown()
        ray.shutdown()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
