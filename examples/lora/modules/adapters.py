"""A small network that reads digits of 8 x 8 pixels, and its low-rank adapters; trained at the first start, in seconds.

    python examples/lora/modules/adapters.py

The network learns scikit-learn's digits as they are. Then it stays as it is, and each adapter learns to have it read
digits that were changed in one way: two narrow matrices for each layer (Hu et al., LoRA, 2021).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.nn import functional

FILE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mosec_asgi" / "digits-lora.pt"
RANK = 8
HIDDEN = 128
BRIGHTEST = 16.0
# What is done to the images that an adapter is for; the network itself reads them as they are.
CHANGES: dict[str, Callable[[Any], Any]] = {
    "mirrored": lambda images: images.flip(2),
    "upside-down": lambda images: images.flip(1),
    "turned": lambda images: images.rot90(2, (1, 2)),
}


def images() -> tuple[Any, Any]:
    """Return images with pixels from 0 to 1, and which digit each of them shows; the last quarter is to test with."""
    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32) / BRIGHTEST, torch.tensor(digits.target)


def run(network: Any, adapter: Any, pixels: Any) -> Any:
    """Return the scores of ten digits for each image: two layers, and beside each the narrow way of an adapter."""
    values = pixels.flatten(1)
    for place, (weight, bias) in enumerate(network):
        out = functional.linear(values, weight, bias)
        if adapter is not None:
            down, up = adapter[place]
            out = out + values @ down @ up
        values = functional.relu(out) if place == 0 else out
    return values


def learned(layers: list[Any], scores: Callable[[], Any], shown: Any) -> list[Any]:
    """Change the parameters of layers until the scores are those of the digits that are shown; return the layers."""
    parameters = [each for layer in layers for each in layer]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        functional.cross_entropy(scores(), shown).backward()
        optimizer.step()
    for each in parameters:
        each.requires_grad_(False)
    return layers


def train() -> dict[str, Any]:
    """Return the network, and its adapters by name."""
    torch.manual_seed(0)
    pixels, shown = images()
    count = len(shown) * 3 // 4
    pixels, shown = pixels[:count], shown[:count]
    sizes = [(64, HIDDEN), (HIDDEN, 10)]

    def drawn(out: int, wide: int) -> Any:
        return (torch.randn(out, wide) / max(out, wide) ** 0.5).requires_grad_()

    network = [(drawn(out, wide), torch.zeros(out, requires_grad=True)) for wide, out in sizes]
    learned(network, lambda: run(network, None, pixels), shown)

    def adapter_for(changed: Any) -> list[Any]:
        adapter = [(drawn(wide, RANK), torch.zeros(RANK, out, requires_grad=True)) for wide, out in sizes]
        return learned(adapter, lambda: run(network, adapter, changed), shown)

    return {"network": network, "adapters": {name: adapter_for(change(pixels)) for name, change in CHANGES.items()}}


def made() -> dict[str, Any]:
    """Return what was trained before, or train it."""
    # Its parts take microseconds: on busy processors more threads would mostly wait for each other.
    torch.set_num_threads(1)
    if not FILE.exists():
        FILE.parent.mkdir(parents=True, exist_ok=True)
        # Whoever looks meanwhile finds all of it or nothing.
        begun = FILE.with_suffix(f".{os.getpid()}")
        torch.save(train(), begun)
        begun.replace(FILE)
    trained: dict[str, Any] = torch.load(FILE)
    return trained


class Network:
    """The network with its adapters."""

    def __init__(self) -> None:
        trained = made()
        self._layers, self._adapters = trained["network"], trained["adapters"]

    def read(self, images: list[Any], adapter: str) -> list[tuple[int, float]]:
        """Return which digit each image shows, and how sure that is, with an adapter; `none` is no adapter."""
        pixels = torch.tensor(images) / BRIGHTEST
        best = run(self._layers, self._adapters.get(adapter), pixels).softmax(1).max(1)
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


if __name__ == "__main__":
    made()
