"""A small model in ONNX: which digit an image of 8 x 8 pixels shows. Trained on scikit-learn's digits, in a second.

    python examples/onnx_classifier/modules/digits.py

The service does it by itself where there is no model yet. Any other classifier in ONNX does in its place.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mosec_asgi" / "digits.onnx"
SIZE = 8
# Pixels are from 0 to 16.
BRIGHTEST = 16.0


def images() -> tuple[Any, Any, Any, Any]:
    """Return the images to train with, those to test with, and which digits each of them shows."""
    # Only where there is something to train or to test: they take a second to load.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    parts = train_test_split(digits.images.astype(np.float32), digits.target, test_size=0.25, random_state=0)
    return tuple(parts)


def train() -> bytes:
    """Return a network with one hidden layer, in ONNX: images in, the digits and the probabilities of all ten out."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    seen, _, shown, _ = images()
    network = MLPClassifier(hidden_layer_sizes=(64,), max_iter=60, random_state=0)
    with warnings.catch_warnings():
        # It is good enough long before it is done.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(seen.reshape(len(seen), -1) / BRIGHTEST, shown)
    first, second = ([part.astype(np.float32) for part in parts] for parts in (network.coefs_, network.intercepts_))
    constants = {
        "flat": np.array([-1, SIZE * SIZE], np.int64),
        "brightest": np.array(BRIGHTEST, np.float32),
        **{f"weights{place}": weights for place, weights in enumerate(first)},
        **{f"bias{place}": bias for place, bias in enumerate(second)},
    }
    nodes = [
        helper.make_node("Reshape", ["image", "flat"], ["pixels"]),
        helper.make_node("Div", ["pixels", "brightest"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "weights0", "bias0"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "weights1", "bias1"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["digit"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", SIZE, SIZE])],
        [
            helper.make_tensor_value_info("digit", TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10]),
        ],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


def made() -> Path:
    """Return the file of the model, which is made where there is none."""
    if not FILE.exists():
        FILE.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: several workers may do so at one time.
        part = FILE.with_suffix(f".{os.getpid()}")
        part.write_bytes(train())
        part.replace(FILE)
    return FILE


if __name__ == "__main__":
    print(made())
