"""A ResNet50 with seeded random weights: features without meaning, but any test can have it."""

import numpy as np

from delfsearch.extraction.network import tensor_shapes
from delfsearch.extraction.weights import save_weights

RANDOM_META = {
    "layout": "keras",
    "bn_eps": 1e-3,
    "input_mean": [123.0, 117.0, 104.0],
    "input_std": [58.0, 57.0, 57.0],
    "provenance": "seeded random numbers, for tests",
    "licence": "none needed",
}


def save_random_weights(path):
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in tensor_shapes().items():
        if len(shape) == 4:
            deviation = np.sqrt(2.0 / np.prod(shape[1:]))
            arrays[name] = rng.normal(0.0, deviation, shape).astype(np.float32)
        else:
            fill = 1.0 if name.endswith(("weight", "running_var")) else 0.0
            arrays[name] = np.full(shape, fill, np.float32)
    save_weights(path, arrays, RANDOM_META)
    return path
