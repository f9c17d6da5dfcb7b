"""The sentiment of a text, by DistilBERT: POST a text, get a label and how sure the model is of it.

    python examples/sentiment/server.py --port 8000
    curl http://127.0.0.1:8000/inference -d '{"text": "What a lovely day!"}'

Two stages: `Tokenize`, in two processes, makes tokens of a text, or refuses one that is longer than the model reads;
`Classify` runs the model once for up to 32 texts.

Two variables of the environment say what runs where. `SENTIMENT_MODEL` is a folder, or the id of a model on the hub.
`SENTIMENT_GPUS`, like `0,1`, gives each of these GPUs a worker of its own; without it there is one worker, which takes
the first GPU that it finds, or else the processor.
"""

import os
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mosec_asgi import Server, ValidationError, get_logger
from mosec_asgi.mixin import PydanticMixin

# The module of the model, wherever it is imported from.
sys.path.insert(0, str(Path(__file__).parent / "modules"))
from distilbert import MODEL, Classifier, Tokenizer

GPUS = [gpu for gpu in os.environ.get("SENTIMENT_GPUS", "").split(",") if gpu]
MAX_BATCH_SIZE = 32


class Text(BaseModel):
    """What somebody has written."""

    model_config = ConfigDict(strict=True, extra="forbid")

    # Far more than 512 tokens can be; what is longer is not even tokenized.
    text: str = Field(min_length=1, max_length=20_000, description="At most 512 tokens: some 400 words.")


class Sentiment(BaseModel):
    """What the model takes a text for."""

    label: str = Field(description="The likeliest label.")
    score: float = Field(description="How likely it is, from 0 to 1.")
    scores: dict[str, float] = Field(description="How likely each label is; together they are 1.")


class Tokenize(PydanticMixin):
    """Tell the sentiment of a text."""

    example = Text(text="What a lovely day!")

    def __init__(self) -> None:
        self.tokenize = Tokenizer()

    def forward(self, data: Text) -> list[int]:
        """Return the tokens of a text."""
        tokens, limit = self.tokenize(data.text), self.tokenize.limit
        if len(tokens) > limit:
            raise ValidationError(
                f"'text' has {len(tokens)} tokens, and this model reads {limit} at most: send it in pieces"
            )
        return tokens


class Classify(PydanticMixin):
    """Run DistilBERT on a batch of texts."""

    def __init__(self) -> None:
        self.classify = Classifier()
        # The largest batch, of texts of some length: what a GPU has to reserve, it reserves before the first request.
        self.example = [[self.classify.padding] * min(128, self.classify.length)] * MAX_BATCH_SIZE
        get_logger().info("%s runs on %s", MODEL, self.classify.device)

    def forward(self, data: list[list[int]]) -> list[Sentiment]:
        """Answer a batch."""
        return [self.sentiment(row) for row in self.classify(data)]

    def sentiment(self, row: list[float]) -> Sentiment:
        """Return the answer for the likelihoods of all labels."""
        scores = dict(zip(self.classify.labels, row, strict=True))
        label = max(scores, key=lambda name: scores[name])
        return Sentiment(label=label, score=scores[label], scores=scores)


server = Server(timeout=30_000)
server.append_worker(Tokenize, num=2)
server.append_worker(
    Classify,
    num=len(GPUS) or 1,
    max_batch_size=MAX_BATCH_SIZE,
    env=[{"CUDA_VISIBLE_DEVICES": gpu} for gpu in GPUS] or None,
)

if __name__ == "__main__":
    server.run()
