"""The model: a text becomes tokens, and tokens become how likely each label is.

The process that speaks HTTP imports this module too, and runs no model: what takes seconds and hundreds of megabytes to
import stands where it is used.
"""

import os
from typing import Any

MODEL = os.environ.get("SENTIMENT_MODEL", "distilbert-base-uncased-finetuned-sst-2-english")
# A DistilBERT has places for no more.
MAX_TOKENS = 512


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
    if os.environ.get("SENTIMENT_GPUS"):
        raise RuntimeError(
            f"SENTIMENT_GPUS names GPU {os.environ['CUDA_VISIBLE_DEVICES']}, which torch {torch.__version__} cannot "
            "use: see what nvidia-smi lists, or unset it to run on the processor"
        )
    return "cpu"


class Tokenizer:
    """The tokenizer of the model."""

    def __init__(self) -> None:
        # This class alone, unlike AutoTokenizer, comes without torch: 80 MB a process instead of 260.
        from transformers import DistilBertTokenizer

        self._tokenizer = load(DistilBertTokenizer)
        self.limit = min(self._tokenizer.model_max_length, MAX_TOKENS)

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text, with those that the model wants around it."""
        tokens: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        return tokens


class Classifier:
    """The network."""

    def __init__(self) -> None:
        from transformers import DistilBertForSequenceClassification

        self.device = device()
        self._model = load(DistilBertForSequenceClassification).to(self.device).eval()
        self.padding: int = self._model.config.pad_token_id or 0
        self.labels: list[str] = list(self._model.config.id2label.values())
        self.length: int = self._model.config.max_position_embeddings

    def __call__(self, texts: list[list[int]]) -> list[list[float]]:
        """Return the likelihoods; shorter texts are padded, and the mask keeps the model from reading that."""
        import torch

        longest = max(map(len, texts))
        tokens = [text + [self.padding] * (longest - len(text)) for text in texts]
        mask = [[1] * len(text) + [0] * (longest - len(text)) for text in texts]
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor(tokens, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
            ).logits
            rows: list[list[float]] = logits.float().softmax(-1).tolist()
        return rows
