"""Two nodes of Ray on this machine, with the models deployed by Ray Serve, until standard input is closed.

With the arguments `nodes` and a number they are alone, and each has so many processes that wait for actors.

It says in a line of JSON where they are.
"""

import json
import os
import sys
import time
from collections.abc import Sequence

import grpc
import processes
import ray
from ray import serve
from ray._private.node import Node
from ray.cluster_utils import Cluster
from ray.core.generated.common_pb2 import Language
from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

# The least that Ray takes is 80 MB; arrays of 10 MB are under way four at a time.
STORE_BYTES = 400 * 1024 * 1024
# For which processes wait for actors that none has begun in.
KEPT_SECONDS = 3600
# So many of each node start at once, and seconds that they may take. One looks as if it waited for an actor before its
# node thinks so, and of more than it allows at once a node starts none.
AT_ONCE, START_SECONDS = 2, 60.0


def start_before(nodes: Sequence[Node], count: int) -> None:
    """Have each node start processes in which actors can begin later: a request to it that Ray itself does not make."""
    for ready in range(0, count, AT_ONCE):
        number = min(AT_ONCE, count - ready)
        for node in nodes:
            request = PrestartWorkersRequest(
                language=Language.PYTHON, num_workers=number, keep_alive_duration_secs=KEPT_SECONDS
            )
            with grpc.insecure_channel(f"{node.node_ip_address}:{node.node_manager_port}") as channel:
                NodeManagerServiceStub(channel).PrestartWorkers(request)
        _wait_for(len(nodes) * (ready + number))


def _wait_for(count: int) -> None:
    """Wait until so many processes wait for actors."""
    deadline = time.monotonic() + START_SECONDS
    while (found := sum(map(_is_idle, processes.members(os.getpid())))) < count:
        if time.monotonic() > deadline:
            sys.exit(f"Ray has started {found} of {count} processes that were to wait for actors")
        time.sleep(0.1)


def _is_idle(pid: int) -> bool:
    try:
        return (processes.PROC / str(pid) / "cmdline").read_bytes().startswith(b"ray::IDLE")
    except OSError:
        return False


def main() -> None:
    """Start all, say so, wait, and end all."""
    if alone := sys.argv[1:2] == ["nodes"]:
        os.environ["RAY_worker_maximum_startup_concurrency"] = str(8 * AT_ONCE)
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
            start_before(cluster.list_all_nodes(), int(sys.argv[2]))
            print(json.dumps({"address": cluster.address, "url": ""}), flush=True)
            sys.stdin.read()
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
