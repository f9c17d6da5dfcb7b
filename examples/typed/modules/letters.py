"""The model: texts as vectors of how often they have each group of three letters."""

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

DIMENSIONS = 4096


def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return one row for each text, of length 1, or 0 for a text without a letter."""
    rows, columns = [], []
    for row, text in enumerate(texts):
        padded = f" {' '.join(text.lower().split())} "
        for place in range(len(padded) - 2):
            rows.append(row)
            columns.append(zlib.crc32(padded[place : place + 3].encode()) % DIMENSIONS)
    vectors = np.zeros((len(texts), DIMENSIONS), np.float32)
    np.add.at(vectors, (rows, columns), 1)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    np.divide(vectors, lengths, out=vectors, where=lengths > 0)
    return vectors


def closest(scores: npt.NDArray[np.float32], at_least: float) -> list[tuple[int, float]]:
    """Return the places and scores from `at_least` on, the best one first, and the first of equals first."""
    matches = [(place, round(min(float(score), 1.0), 4)) for place, score in enumerate(scores)]
    return sorted((match for match in matches if match[1] >= at_least), key=lambda match: -match[1])
