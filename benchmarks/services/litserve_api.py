"""LitServe as the services here need it: what its users write, and the command line that the benchmarks use."""

import argparse

import litserve


def serve(api: litserve.LitAPI) -> None:
    """Serve an API with one worker process, as mosec's services have."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address")
    parser.add_argument("--port", type=int)
    options, _ = parser.parse_known_args()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host=options.address, port=options.port, generate_client_file=False, log_level="warning")
