"""CONGAS-style features: the filter bank, and descriptors that follow rotation and scale."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_networks
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from delfsearch import LocalFeatures
from delfsearch.baselines.congas import CongasExtractor, describe, gabor_bank
from delfsearch.baselines.scale_space import build_octaves, detect
from delfsearch.errors import PhotoError


def extractor(**options):
    return CongasExtractor(**{"n_components": None, "n_jobs": 1, "threshold": 0.003, **options})


def textured(side: int = 300, seed: int = 0) -> Image.Image:
    return tiny_networks.photo(side, side, seed)


def test_filters_have_no_mean_and_unit_energy():
    bank = gabor_bank()
    assert bank.even.shape == bank.odd.shape == (21 * 21, 176)
    assert bank.blocks == ((0, 120), (120, 176))
    np.testing.assert_allclose(bank.even.sum(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(bank.odd.sum(axis=0), 0.0, atol=1e-5)
    energy = (bank.even**2 + bank.odd**2).sum(axis=0)
    np.testing.assert_allclose(energy, 1.0, atol=1e-5)


@pytest.mark.parametrize("orientation", range(8))
@pytest.mark.parametrize("phase", [0.0, 1.0, 2.5])
def test_a_grating_answers_at_its_own_orientation(orientation, phase):
    bank = gabor_bank()
    angle = np.pi * orientation / 8
    along = bank.offsets @ [np.cos(angle), np.sin(angle)]
    patch = np.cos(2 * np.pi / 4.0 * along + phase)[None].astype(np.float32)
    centre = bank.describe(patch)[0, :8]
    assert centre.argmax() == orientation


def test_contrast_and_brightness_do_not_matter():
    patch = np.random.default_rng(0).uniform(size=(3, 21 * 21)).astype(np.float32)
    plain, changed = gabor_bank().describe(patch), gabor_bank().describe(0.4 * patch + 0.3)
    np.testing.assert_allclose(plain, changed, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1.0, atol=1e-5)
    assert (gabor_bank().describe(np.full((1, 441), 0.5, np.float32)) == 0).all()


def matched(a: LocalFeatures, b: LocalFeatures, to_b):
    """Share of a's strongest features whose nearest descriptor in b is at the right place."""
    strongest = a[:60]
    nearest = (strongest.descriptors @ b.descriptors.T).argmax(axis=1)
    distance = np.linalg.norm(to_b(strongest.keypoints_xy) - b.keypoints_xy[nearest], axis=1)
    return np.mean(distance < 3.0)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_features_follow_quarter_turns(turns):
    image = textured()
    turned = image.rotate(90 * turns)  # counter-clockwise as seen
    a, b = extractor().transform([image, turned])
    last = image.width - 1

    def to_b(xy):
        for _ in range(turns):
            xy = np.stack([xy[:, 1], last - xy[:, 0]], axis=1)
        return xy

    assert len(a) > 60
    assert matched(a, b, to_b) > 0.95


def test_features_follow_any_rotation():
    image = textured(400)
    angle = 33.0
    a, b = extractor().transform([image, image.rotate(angle, Image.Resampling.BICUBIC)])
    centre = (image.width - 1) / 2
    turn = np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    # Those well inside, which the turned photo still shows with what surrounds them.
    inside = np.linalg.norm(a.keypoints_xy - centre, axis=1) < 130
    assert matched(a[inside], b, lambda xy: (xy - centre) @ matrix.T + centre) > 0.8


def test_features_follow_scale():
    image = textured(400)
    factor = 0.6
    smaller = image.resize((240, 240), Image.Resampling.BICUBIC)
    a, b = extractor().transform([smaller, image])
    assert matched(a, b, lambda xy: (xy + 0.5) / factor - 0.5) > 0.8
    nearest = (a[:60].descriptors @ b.descriptors.T).argmax(axis=1)
    ratio = np.median(b.scales[nearest] / a[:60].scales)
    assert ratio == pytest.approx(1 / factor, rel=0.1)


def test_keypoints_are_in_pixels_of_the_original():
    image = textured(400)
    limited = extractor(max_side=200).transform([image])[0]
    small = extractor().transform([image.resize((200, 200), Image.Resampling.BICUBIC)])[0]
    assert limited.image_size == (400, 400)
    np.testing.assert_allclose(limited.keypoints_xy, small.keypoints_xy * 2 + 0.5, atol=1e-3)
    np.testing.assert_allclose(limited.scales, 2 * small.scales, rtol=1e-6)


def test_same_bytes_whatever_the_order_and_the_threads(photo_paths):
    one = extractor().transform(photo_paths)
    for other in (
        extractor(n_jobs=3).transform(photo_paths),
        extractor().transform(photo_paths[::-1])[::-1],
    ):
        for a, b in zip(one, other):
            assert a.descriptors.tobytes() == b.descriptors.tobytes()
            assert a.keypoints_xy.tobytes() == b.keypoints_xy.tobytes()


def test_pca_to_forty(photo_paths):
    system = extractor(n_components=40)
    assert system.needs == "photos" and system.max_squared_distance is None
    with pytest.raises(NotFittedError, match="call fit"):
        system.transform(photo_paths)
    system.fit(photo_paths)
    assert system.needs == "nothing"
    features = system.transform(photo_paths)
    assert all(f.dimension == 40 for f in features)
    np.testing.assert_allclose(np.linalg.norm(features[-1].descriptors, axis=1), 1.0, atol=1e-5)
    raw = extractor().transform(photo_paths)
    expected = system.pca_.transform(raw[0].descriptors)
    assert features[0].descriptors.tobytes() == expected.tobytes()
    with pytest.raises(NotFittedError):
        system.set_params(n_components=20).transform(photo_paths)


def test_photos_without_keypoints_and_unreadable_ones(tmp_path, photo_paths):
    flat = Image.new("RGB", (80, 60), (90, 90, 90))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG")
    system = extractor(n_components=8).fit(photo_paths)
    results = [features for _, features in system.stream([flat, broken, photo_paths[0]])]
    assert len(results[0]) == 0 and results[0].dimension == 8
    assert results[0].image_size == (80, 60)
    assert isinstance(results[1], PhotoError)
    assert len(results[2]) > 0
    assert len(extractor().transform([Image.new("RGB", (1, 1))])[0]) == 0


def test_describe_is_what_the_extractor_does():
    image = textured(120)
    octaves = build_octaves(np.asarray(image.convert("L"), np.float32) / 255)
    keypoints = detect(octaves, threshold=0.003, max_keypoints=1000)
    features = extractor().transform([image])[0]
    np.testing.assert_allclose(features.descriptors, describe(keypoints, octaves), atol=1e-6)


def test_estimator_and_bad_parameters(photo_paths):
    assert clone(CongasExtractor(max_features=5)).max_features == 5
    assert "176 Gabor magnitudes, PCA to 40" in CongasExtractor().ran
    for options in ({"threshold": 0.0}, {"max_features": 0}, {"max_side": 1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            extractor(**options).transform(photo_paths)
    with pytest.raises(ValueError, match="n_components"):
        extractor(n_components=0).fit(photo_paths)
    with pytest.raises(TypeError, match="list"):
        extractor().fit("photo.jpg")
