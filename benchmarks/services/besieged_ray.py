"""What `benchmarks/faults.py` does its worst to, on Ray: actors of two nodes."""

from besieged import One
from echo import Echo

from mosec_asgi import Server

if __name__ == "__main__":
    server = Server(log_level="error", timeout=10_000)
    # Asked once, when the service is there.
    server.append_worker(Echo)
    server.append_worker(One, num=6, route="/five-attempts", max_attempts=5, executor="ray", placement="SPREAD")
    server.run()
