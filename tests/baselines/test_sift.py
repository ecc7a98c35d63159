"""OpenCV's SIFT behind the interface."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import tiny_networks
from PIL import Image

from delfsearch.baselines.sift import SiftExtractor


def test_sift_and_rootsift_against_opencv(photo_paths):
    image = tiny_networks.photo(200, 150)
    keypoints, raw = cv2.SIFT_create(nfeatures=1000).detectAndCompute(
        np.asarray(image.convert("L")), None
    )
    by_place = {
        (round(k.pt[0], 3), round(k.pt[1], 3), round(k.angle, 2)): d for k, d in zip(keypoints, raw)
    }
    for root in (False, True):
        features = SiftExtractor(root=root, n_jobs=1).transform([image])[0]
        assert len(features) == len(keypoints) > 20
        np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1.0, atol=1e-5)
        expected = np.stack(
            [np.sqrt(d / d.sum()) if root else d / np.linalg.norm(d) for d in by_place.values()]
        )
        similarity = features.descriptors @ expected.T
        np.testing.assert_allclose(similarity.max(axis=1), 1.0, atol=1e-5)
        assert (np.diff(features.scores) <= 0).all()


def test_rootsift_is_hellinger():
    # The inner product of two RootSIFT is the sum of sqrt(a b) of the L1-normalised SIFT.
    image = tiny_networks.photo(200, 150)
    plain, root = (SiftExtractor(root=r, n_jobs=1).transform([image])[0] for r in (False, True))
    a = plain.descriptors / plain.descriptors.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        root.descriptors @ root.descriptors.T, np.sqrt(a) @ np.sqrt(a).T, atol=1e-4
    )


def test_same_bytes_whatever_the_threads(photo_paths):
    one = SiftExtractor(n_jobs=1).transform(photo_paths)
    other = SiftExtractor(n_jobs=3).transform(photo_paths)
    assert [f.descriptors.tobytes() for f in one] == [f.descriptors.tobytes() for f in other]


def test_resized_photos_flat_photos_and_pca(photo_paths):
    image = tiny_networks.photo(400, 300)
    half = image.resize((200, 150), Image.Resampling.BICUBIC)
    limited, small = (
        SiftExtractor(max_side=200, n_jobs=1).transform([photo])[0] for photo in (image, half)
    )
    assert limited.image_size == (400, 300)
    np.testing.assert_allclose(limited.keypoints_xy, 2 * small.keypoints_xy + 0.5, atol=1e-3)
    flat = SiftExtractor(n_jobs=1).transform([Image.new("RGB", (64, 64))])[0]
    assert len(flat) == 0 and flat.dimension == 128
    system = SiftExtractor(n_components=16, n_jobs=1).fit(photo_paths)
    assert system.transform(photo_paths)[0].dimension == 16
    assert (system.name, system.set_params(root=False).name) == ("rootsift", "sift")


def test_without_opencv_the_extra_is_named(monkeypatch, photo_paths):
    import importlib

    real = importlib.import_module

    def absent(name, *arguments):
        if name == "cv2":
            raise ImportError("No module named 'cv2'")
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"delfsearch\[opencv\]"):
        SiftExtractor().transform(photo_paths)
