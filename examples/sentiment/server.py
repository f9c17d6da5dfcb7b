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
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mosec_asgi import Server, ValidationError, get_logger
from mosec_asgi.mixin import PydanticMixin

MODEL = os.environ.get("SENTIMENT_MODEL", "distilbert-base-uncased-finetuned-sst-2-english")
GPUS = [gpu for gpu in os.environ.get("SENTIMENT_GPUS", "").split(",") if gpu]
MAX_BATCH_SIZE = 32
# A DistilBERT has places for no more.
MAX_TOKENS = 512


class Text(BaseModel):
    """What somebody has written."""

    model_config = ConfigDict(strict=True, extra="forbid")

    # Far more than MAX_TOKENS can be; what is longer is not even tokenized.
    text: str = Field(min_length=1, max_length=20_000, description="At most 512 tokens: some 400 words.")


class Sentiment(BaseModel):
    """What the model takes a text for."""

    label: str = Field(description="The likeliest label.")
    score: float = Field(description="How likely it is, from 0 to 1.")
    scores: dict[str, float] = Field(description="How likely each label is; together they are 1.")


# The processes that run no model import this module too: what takes seconds and hundreds of megabytes to import stands
# where it is used.
def load(kind: Any) -> Any:
    """Return what `kind.from_pretrained` makes of MODEL; raise an error that names the variable to set."""
    try:
        loaded = kind.from_pretrained(MODEL)
        # Where its files are missing, transformers makes up a tokenizer that knows no word.
        if hasattr(loaded, "all_special_ids") and len(loaded) <= len(loaded.all_special_ids):
            raise ValueError("the tokenizer has no vocabulary")
        return loaded
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"SENTIMENT_MODEL={MODEL} cannot be loaded: it must be a folder with a DistilBERT and its tokenizer, "
            "or the id of one on the hub, which must be in reach"
        ) from error


def device() -> str:
    """Return where the model runs; raise an error where a GPU was asked for and is not there."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if GPUS:
        raise RuntimeError(
            f"SENTIMENT_GPUS names GPU {os.environ['CUDA_VISIBLE_DEVICES']}, which torch {torch.__version__} cannot "
            "use: see what nvidia-smi lists, or unset it to run on the processor"
        )
    return "cpu"


class Tokenize(PydanticMixin):
    """Tell the sentiment of a text."""

    example = Text(text="What a lovely day!")

    def __init__(self) -> None:
        # This class alone, unlike AutoTokenizer, comes without torch: 80 MB a process instead of 260.
        from transformers import DistilBertTokenizer

        self.tokenizer = load(DistilBertTokenizer)
        self.limit = min(self.tokenizer.model_max_length, MAX_TOKENS)

    def forward(self, data: Text) -> list[int]:
        """Return the tokens of a text, with those that the model wants around it."""
        tokens: list[int] = self.tokenizer(data.text, verbose=False)["input_ids"]
        if len(tokens) > self.limit:
            raise ValidationError(
                f"'text' has {len(tokens)} tokens, and this model reads {self.limit} at most: send it in pieces"
            )
        return tokens


class Classify(PydanticMixin):
    """Run DistilBERT on a batch of texts."""

    def __init__(self) -> None:
        from transformers import DistilBertForSequenceClassification

        self.device = device()
        self.model = load(DistilBertForSequenceClassification).to(self.device).eval()
        self.padding = self.model.config.pad_token_id or 0
        self.labels = list(self.model.config.id2label.values())
        # The largest batch, of texts of some length: what a GPU has to reserve, it reserves before the first request.
        length = min(128, self.model.config.max_position_embeddings)
        self.example = [[self.padding] * length] * MAX_BATCH_SIZE
        get_logger().info("%s runs on %s", MODEL, self.device)

    def forward(self, data: list[list[int]]) -> list[Sentiment]:
        """Answer a batch; shorter texts are padded, and the mask keeps the model from reading that."""
        import torch

        longest = max(map(len, data))
        tokens = [text + [self.padding] * (longest - len(text)) for text in data]
        mask = [[1] * len(text) + [0] * (longest - len(text)) for text in data]
        with torch.inference_mode():
            logits = self.model(
                input_ids=torch.tensor(tokens, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
            ).logits
            rows = logits.float().softmax(-1).tolist()
        return [self.sentiment(row) for row in rows]

    def sentiment(self, row: list[float]) -> Sentiment:
        """Return the answer for the likelihoods of all labels."""
        scores = dict(zip(self.labels, row, strict=True))
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
