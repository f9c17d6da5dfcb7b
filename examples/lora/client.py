"""Have digits read that were changed, by the service of server.py.

    python examples/lora/client.py --adapter mirrored

Exit status: 0 if there are answers, 1 if not.
"""

import argparse
import concurrent.futures
import sys
from typing import Any

import httpx
import numpy as np
from sklearn.datasets import load_digits

CHANGES = {"mirrored": np.fliplr, "upside-down": np.flipud, "turned": lambda image: np.rot90(image, 2)}


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Have digits read that were changed.")
    parser.add_argument("--change", choices=CHANGES, default="mirrored", help="of the images (%(default)s)")
    parser.add_argument("--adapter", choices=["none", *CHANGES], default="none", help="to read them by (%(default)s)")
    parser.add_argument("--count", type=int, default=200, help="of images (%(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    digits = load_digits()
    images, shown = digits.images[-options.count :], digits.target[-options.count :].tolist()

    with httpx.Client(base_url=options.url, timeout=30) as client, concurrent.futures.ThreadPoolExecutor(16) as pool:

        def ask(image: Any) -> int:
            body = {"image": CHANGES[options.change](image).tolist(), "adapter": options.adapter}
            answer = client.post("/inference", json=body).raise_for_status()
            return int(answer.json()["digit"])

        try:
            read = list(pool.map(ask, images))
        except httpx.HTTPStatusError as error:
            print(f"error: {error.response.status_code}: {error.response.text}", file=sys.stderr)
            return 1
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            print(f"No server at {options.url} ({error}). Start one: python examples/lora/server.py", file=sys.stderr)
            return 1
    right = sum(map(int.__eq__, read, shown))
    print(f"{right} of {len(shown)} {options.change} digits are read with the adapter {options.adapter}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
