"""Tools for tests: of users' workers and servers, and of this package itself.

serving, InlineService    a server whose workers run in the test's own process, without ports
ScriptedWorker            one of these workers, which a test can let crash, hang or be slow
run, VirtualTimeLoop      an event loop on virtual time: `await asyncio.sleep(3600)` takes no time
simulate                  thousands of random histories of a whole service, with crashes, hangs and floods
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
