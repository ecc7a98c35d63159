"""Laplacian-of-Gaussian keypoints: planted blobs, brute force, rotation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from delfsearch.baselines import scale_space
from delfsearch.baselines.scale_space import (
    BASE_SIGMA,
    INTERVALS,
    _responses,
    build_octaves,
    detect,
    group_by_level,
    sample,
)


def blobs(width, height, places, contrast=0.5):
    """Gaussian blobs at (x, y, deviation) on a grey ground."""
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width), 0.3)
    for cx, cy, deviation in places:
        image += contrast * np.exp(-0.5 * ((x - cx) ** 2 + (y - cy) ** 2) / deviation**2)
    return image.astype(np.float32)


@pytest.mark.parametrize("deviation", [2.5, 4.0, 7.0, 12.0])
def test_a_planted_blob_is_found_at_its_place_and_scale(deviation):
    # The response to a blob of deviation s is strongest at sigma = s. Our sigma leaves out the
    # blur that a photo is taken to have.
    image = blobs(160, 140, [(70.3, 61.6, deviation)])
    found = detect(build_octaves(image), threshold=0.05, max_keypoints=1)
    assert len(found.xy) >= 1
    np.testing.assert_allclose(found.xy[0], [70.3, 61.6], atol=0.1 + 0.02 * deviation)
    assert found.sigmas[0] == pytest.approx(deviation, rel=0.1)


def test_levels_have_the_stated_blur():
    # A blob of deviation s blurred to sigma has the deviation sqrt(s^2 + sigma^2 - 0.5^2).
    octaves = build_octaves(blobs(200, 200, [(100, 100, 3.0)], contrast=1.0))
    for number, octave in enumerate(octaves[:2]):
        assert octave.step == 2.0**number
        for image, sigma in zip(octave.images, octave.sigmas * octave.step):
            weights = image - image.min()
            x = np.arange(image.shape[1]) * octave.step
            total = weights.sum()
            variance = (weights * (x - (weights * x).sum() / total) ** 2).sum() / total
            assert variance**0.5 == pytest.approx((9.0 + sigma**2 - 0.25) ** 0.5, rel=0.05)


def test_extrema_against_brute_force(monkeypatch):
    monkeypatch.setattr(scale_space, "EDGE_RATIO", 1e6)
    generator = np.random.default_rng(0)
    image = ndimage.gaussian_filter(generator.uniform(size=(80, 96)), 1.5).astype(np.float32)
    octave = build_octaves(image)[0]
    response = _responses(octave)
    expected = set()
    for level in range(1, INTERVALS + 1):
        for y in range(2, 78):
            for x in range(2, 94):
                value = response[level, y, x]
                box = response[level - 1 : level + 2, y - 1 : y + 2, x - 1 : x + 2]
                others = np.delete(box.ravel(), 13)
                if (value > others).all() or (value < others).all():
                    expected.add((level, y, x))
    found = detect([octave], threshold=1e-6, max_keypoints=10_000)
    places = {
        (int(level), round(float(y)), round(float(x)))
        for (x, y), level in zip(found.xy, found.levels)
    }
    # Those whose vertex lies far off are dropped; a vertex may round to the next pixel.
    assert 20 < len(expected) * 0.8 < len(places) <= len(expected)
    near = sum(
        any((level, y + dy, x + dx) in expected for dy in (-1, 0, 1) for dx in (-1, 0, 1))
        for level, y, x in places
    )
    assert near == len(places)


def test_straight_edges_have_no_keypoints():
    image = np.zeros((96, 96), np.float32)
    image[:, 48:] = 1.0
    assert len(detect(build_octaves(image), threshold=0.01, max_keypoints=100).xy) == 0


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_sampling_against_scipy(seed):
    generator = np.random.default_rng(seed)
    image = generator.uniform(size=(7, 9)).astype(np.float32)
    x, y = generator.uniform(-3, 12, (2, 40))
    expected = ndimage.map_coordinates(image, [y, x], order=1, mode="nearest")
    np.testing.assert_allclose(sample(image, x, y), expected, atol=1e-5)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_orientation_turns_with_the_photo(quarter_turns):
    # The gradients of a blob cancel; a ramp, which the Laplacian does not see, gives a direction.
    image = blobs(121, 121, [(60, 60, 5.0)]) + 0.004 * np.arange(121, dtype=np.float32)
    plain = detect(build_octaves(image), threshold=0.05, max_keypoints=1)
    # np.rot90 turns counter-clockwise as seen, which is from x towards -y.
    turned = detect(
        build_octaves(np.rot90(image, quarter_turns).copy()), threshold=0.05, max_keypoints=1
    )
    expected = plain.angles[0] - quarter_turns * np.pi / 2
    assert plain.angles[0] == pytest.approx(0.0, abs=0.02)
    difference = (turned.angles[0] - expected + np.pi) % (2 * np.pi) - np.pi
    assert abs(difference) < 0.05
    assert turned.sigmas[0] == pytest.approx(plain.sigmas[0], rel=0.01)


def test_strongest_come_first_and_are_kept():
    places = [(30, 30, 3.0), (90, 30, 4.0), (30, 90, 5.0), (90, 90, 6.0)]
    octaves = build_octaves(blobs(120, 120, places))
    everything = detect(octaves, threshold=0.02, max_keypoints=1000)
    assert (np.diff(everything.responses) <= 0).all()
    some = detect(octaves, threshold=0.02, max_keypoints=3)
    n_places = len(np.unique(some.xy, axis=0))
    assert n_places == 3
    assert (some.xy == everything.xy[: len(some.xy)]).all()
    assert sum(map(len, group_by_level(everything).values())) == len(everything.xy)


def test_flat_and_tiny_photos_have_none():
    for shape in ((64, 64), (15, 200), (1, 1)):
        image = np.full(shape, 0.5, np.float32)
        assert len(detect(build_octaves(image), threshold=0.01, max_keypoints=10).xy) == 0
    assert BASE_SIGMA > 0
