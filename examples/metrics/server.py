"""Metrics of one's own, counted inside the workers and shown in the server's /metrics.

    python examples/metrics/server.py --port 8000
    python examples/metrics/client.py "Is it raining?" "It is raining." "Is it raining?"

What prometheus_client counts in a worker process is added up over all of them. There is nothing to set up.
"""

from prometheus_client import Counter, Gauge, Histogram

from mosec_asgi import Server, ValidationError, Worker

TEXTS = Counter("texts", "texts that were told apart, by their kind", ["kind"])
LOOKUPS = Counter("cache_lookups", "answers that were in a worker's cache, and that were not", ["outcome"])
# A gauge says how its processes make one number: here the sum over those that live.
CACHED = Gauge("cached_texts", "texts that the workers remember", multiprocess_mode="livesum")
WORDS = Histogram("text_words", "words of a text", buckets=(1, 2, 4, 8, 16, 32, 64))

KINDS = {"?": "question", "!": "exclamation"}


class Classify(Worker):
    """Tell questions, exclamations and statements apart, and remember them."""

    def __init__(self) -> None:
        self.cache: dict[str, str] = {}

    def forward(self, data: str) -> dict[str, str]:
        """Return what kind of sentence a text is."""
        if not isinstance(data, str):
            raise ValidationError("send a sentence as a JSON string")
        kind = self.cache.get(data)
        LOOKUPS.labels("miss" if kind is None else "hit").inc()
        if kind is None:
            kind = self.cache[data] = KINDS.get(data.rstrip()[-1:], "statement")
            CACHED.inc()
        TEXTS.labels(kind).inc()
        WORDS.observe(len(data.split()))
        return {"kind": kind}


server = Server()
server.append_worker(Classify, num=2)

if __name__ == "__main__":
    server.run()
