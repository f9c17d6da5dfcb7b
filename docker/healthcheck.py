"""Exit with 0 where the service on this machine is ready, else with 1 and the reason: the image's HEALTHCHECK.

Nothing but the standard library, and little of that: it is run every few seconds beside a busy model.
"""

import http.client
import os
import sys


def problem(port: int) -> str:
    """Return why the service on a port is not ready, or nothing where it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"no answer from port {port}: {error}"
    finally:
        connection.close()
    return "" if response.status == 200 else f"{response.status}: {body}"


if __name__ == "__main__":
    sys.exit(problem(int(os.environ.get("MOSEC_PORT", "8000"))) or 0)
