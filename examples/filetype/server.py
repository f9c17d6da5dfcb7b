"""Google's Magika as a service: POST the bytes of any file to /inference, get its type as JSON.

    python examples/filetype/server.py --port 8000
    curl --data-binary @examples/filetype/README.md http://127.0.0.1:8000/inference

Two stages: `Features`, in two processes, turns a file into the 2048 tokens that the model sees; `Model` runs
the model once for all the files that are waiting. The answers are those of Magika's own command line; what
batches do to the last digits of a score stands in the README.
"""

import io
from pathlib import Path
from typing import TypedDict

import numpy as np
import onnxruntime as ort
from magika import Magika
from magika.types import MagikaResult, ModelFeatures, Seekable

from mosec_asgi import Server, Worker

MAX_BATCH_SIZE = 64
# Per worker. onnxruntime's default is every core, which would leave none to the other processes.
MODEL_THREADS = 2


class Answer(TypedDict):
    """What a client gets, in the words of `magika --json`."""

    label: str
    description: str
    mime_type: str
    group: str
    is_text: bool
    score: float


class SplitMagika(Magika):
    """Magika cut in two before its model, so that one run of the model can serve many requests.

    The cut goes through methods that Magika keeps private, hence the pin `magika>=1.0.3,<1.1`. No other code
    here calls them.
    """

    def prepare(self, content: bytes) -> ModelFeatures | Answer:
        """Return what the model needs, or the answer itself for a file too short to ask the model about.

        Args:
            content: a whole file; anything goes, nothing in it is parsed.
        """
        result, features = self._get_result_or_features_from_seekable(Seekable(io.BytesIO(content)))
        if result is not None:
            return _answer(result)
        assert features is not None
        return features

    def identify(self, batch: list[ModelFeatures]) -> list[Answer]:
        """Return the answers for `batch`, in its order, from one run of the model."""
        # Magika files its results under the path they came from; here, that is the place in the batch.
        results = self._get_results_from_features([(Path(str(i)), item) for i, item in enumerate(batch)])
        return [_answer(results[str(i)]) for i in range(len(batch))]

    def _init_onnx_session(self) -> ort.InferenceSession:
        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        options.intra_op_num_threads = MODEL_THREADS
        return ort.InferenceSession(self._model_path, options, providers=["CPUExecutionProvider"])


def _answer(result: MagikaResult) -> Answer:
    found = result.output
    return {
        "label": str(found.label),
        "description": found.description,
        "mime_type": found.mime_type,
        "group": found.group,
        "is_text": found.is_text,
        # Cut off after three digits, in single precision: to the digit as the command line does it.
        "score": int(np.float32(result.score) * np.float32(1000)) / 1000,
    }


class Features(Worker):
    """Read the beginning and the end of a file as the model's tokens."""

    req_mime_type = "application/octet-stream"
    example = b"import sys\n\nprint(sys.version)\n"

    def __init__(self) -> None:
        self.magika = SplitMagika()

    def deserialize(self, data: bytes) -> bytes:
        """Take the body as it is: a file of any kind."""
        return data

    def forward(self, data: bytes) -> ModelFeatures | Answer:
        """Prepare one file for the model, or answer at once where it needs none."""
        return self.magika.prepare(data)


class Model(Worker):
    """Run Magika's model on a batch of files."""

    def __init__(self) -> None:
        self.magika = SplitMagika()
        self.example = [self.magika.prepare(Features.example)] * MAX_BATCH_SIZE

    def forward(self, data: list[ModelFeatures | Answer]) -> list[Answer]:
        """Answer a batch; what came with its answer keeps it, and the model runs once for all the others."""
        answers = iter(self.magika.identify([item for item in data if isinstance(item, ModelFeatures)]))
        return [next(answers) if isinstance(item, ModelFeatures) else item for item in data]


server = Server()
server.append_worker(Features, num=2)
server.append_worker(Model, max_batch_size=MAX_BATCH_SIZE, max_wait_time=5)

if __name__ == "__main__":
    server.run()
