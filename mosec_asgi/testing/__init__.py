"""Tools for tests: of users' workers and servers, and of this package itself.

run, VirtualTimeLoop    an event loop on virtual time: `await asyncio.sleep(3600)` takes no time
simulate                a whole service under crashes, hangs and floods, histories by the thousand
"""

from mosec_asgi.testing.loop import DeadlockError, VirtualTimeLoop, run
from mosec_asgi.testing.script import ScriptedWorker
from mosec_asgi.testing.serving import InlineService, serving
from mosec_asgi.testing.simulation import Summary, Violation, simulate

__all__ = [
    "DeadlockError",
    "InlineService",
    "ScriptedWorker",
    "Summary",
    "Violation",
    "VirtualTimeLoop",
    "run",
    "serving",
    "simulate",
]
