"""`python -m mosec_asgi`."""

import sys

from mosec_asgi.cli import main

sys.exit(main())
