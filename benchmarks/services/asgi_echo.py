"""JSON in, the same JSON out, with ours as an ASGI app: under uvicorn as it comes, and not under `Server.run()`."""

import argparse
import os

import uvicorn
from echo import Echo
from package import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo)
    if os.environ["BENCH_PACKAGE"] != "mosec_asgi":
        server.run()
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("--address")
        parser.add_argument("--port", type=int)
        # What `run()` is told as well means nothing to uvicorn.
        options, _ = parser.parse_known_args()
        uvicorn.run(server, host=options.address, port=options.port, access_log=False, log_level="warning")
