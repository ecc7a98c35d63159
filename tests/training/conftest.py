from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from evaluation.miniature import Miniature, make_miniature
from training.small import PCA, save_small_weights

from delfsearch.training import LabelledPhotos, photos_from_image_folder


@pytest.fixture(scope="session")
def weights_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with a PCA, without attention."""
    folder = tmp_path_factory.mktemp("training-weights")
    return save_small_weights(folder / "small.safetensors", **PCA)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(
        tmp_path_factory.mktemp("training-photos"),
        parts=("training", "library", "google_landmarks"),
        size=(80, 64),
    )


@pytest.fixture(scope="session")
def photos(miniature: Miniature) -> LabelledPhotos:
    """Twelve photos of three classes."""
    return photos_from_image_folder(miniature["training"] / "landmarks_clean")


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
