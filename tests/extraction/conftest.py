"""Networks with random weights and synthetic photos: nothing here needs a download."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from delfsearch.extraction.network import N_CHANNELS, tensor_shapes
from delfsearch.extraction.weights import save_weights

META = {
    "layout": "keras",
    "bn_eps": 1e-3,
    "input_mean": [123.68, 116.779, 103.939],
    "input_std": [58.0, 57.0, 57.0],
    "provenance": "random numbers",
    "licence": "none",
}


def random_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Return a trunk whose activations neither vanish nor explode."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes().items():
        if len(shape) == 4:
            gain = np.sqrt(2.0 / np.prod(shape[1:]))
            tensors[name] = (generator.standard_normal(shape, np.float32) * gain).astype(np.float32)
        elif name.endswith("running_var"):
            tensors[name] = generator.uniform(0.8, 1.2, shape).astype(np.float32)
        elif name.endswith(".weight"):
            low, high = (0.2, 0.4) if "bn3" in name else (0.8, 1.2)
            tensors[name] = generator.uniform(low, high, shape).astype(np.float32)
        else:
            tensors[name] = generator.uniform(-0.1, 0.1, shape).astype(np.float32)
    return tensors


def attention_tensors(seed: int = 1) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    first = generator.standard_normal((512, N_CHANNELS, 1, 1), np.float32)
    return {
        "attention.conv1.weight": first / 32,
        "attention.conv1.bias": generator.standard_normal(512, np.float32) / 32,
        "attention.conv2.weight": generator.standard_normal((1, 512, 1, 1), np.float32) / 23,
        "attention.conv2.bias": np.zeros(1, np.float32),
    }


def pca_arrays(k: int = 16, seed: int = 2) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((N_CHANNELS, k)))[0].T
    return {
        "pca.mean": np.full(N_CHANNELS, 0.02, np.float32),
        "pca.components": np.ascontiguousarray(basis, np.float32),
        "pca.explained_variance": np.linspace(0.1, 0.01, k).astype(np.float32),
    }


@pytest.fixture(scope="session")
def tensors() -> dict[str, np.ndarray]:
    return random_tensors()


@pytest.fixture(scope="session")
def weights_path(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]) -> Path:
    """Weights without attention and PCA."""
    path = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    save_weights(path, tensors, META)
    return path


@pytest.fixture(scope="session")
def full_weights_path(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]
) -> Path:
    """Weights with attention and a PCA of 16 components."""
    path = tmp_path_factory.mktemp("weights") / "full.safetensors"
    save_weights(path, {**tensors, **attention_tensors(), **pca_arrays()}, META)
    return path


def texture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Return (height, width, 3) uint8 of smooth random blobs."""
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(0, 255, (height // 8 + 3, width // 8 + 3, 3))
    fine = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    return (0.8 * fine + generator.uniform(0, 50, (height, width, 3))).astype(np.uint8)


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_real_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELFSEARCH_CACHE", os.fspath(tmp_path / "cache"))
