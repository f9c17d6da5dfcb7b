"""`python -m mosec_asgi`."""

import sys

from mosec_asgi.cli import main

# A worker that is spawned imports the main module, and must not become a command line.
if __name__ == "__main__":
    sys.exit(main())
