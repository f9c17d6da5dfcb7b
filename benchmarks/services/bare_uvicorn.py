"""The bare app under uvicorn as it comes: none of what `Server.run()` adds, and no access log, as `run()` has none."""

import argparse

import uvicorn
from bare import Bare

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--address")
    parser.add_argument("--port", type=int)
    # What other servers are told as well means nothing to this one.
    options, _ = parser.parse_known_args()
    uvicorn.run(Bare(), host=options.address, port=options.port, access_log=False, log_level="warning")
