"""Photos whose pixels say where they lie, so that a view says what it shows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch.training import PairViews
from delfsearch.training.two_views import views_of_matched, views_of_photo

VIEWS = PairViews(side=96, max_side=200, colour=0.0)
CELLS = np.stack(np.meshgrid(np.arange(0, 96, 16.0), np.arange(0, 96, 16.0)), -1).reshape(-1, 2)


def coordinates(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards: a pixel says where it comes from."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x, y, np.full_like(x, 90)], axis=-1).astype(np.uint8)


def seen_at(view: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Read the coordinates that a view shows at points, bilinearly: (m, 2)."""
    low = np.floor(xy).astype(int)
    share = xy - low
    out = np.zeros((len(xy), 2))
    for dx in (0, 1):
        for dy in (0, 1):
            weight = np.abs(1 - dx - share[:, 0]) * np.abs(1 - dy - share[:, 1])
            out += weight[:, None] * view[low[:, 1] + dy, low[:, 0] + dx, :2]
    return out


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(60, 200), width=st.integers(60, 200))
def test_points_of_one_photo_show_the_same_pixel(seed, height, width):
    photo = coordinates(height, width)
    made = views_of_photo(photo, CELLS, VIEWS, np.random.default_rng(seed))
    assert made.first.shape == made.second.shape == (96, 96, 3)
    assert made.points.shape[1] == 4 and len(made.points) <= len(CELLS)
    if not len(made.points):
        return
    assert set(map(tuple, made.points[:, :2].astype(int))) <= set(map(tuple, CELLS.astype(int)))
    left, right = seen_at(made.first, made.points[:, :2]), seen_at(made.second, made.points[:, 2:])
    # Black lies beyond the edge of a photo; near it a pixel says less.
    inside = [
        (s > 4).all(axis=1) & (s < (width - 5, height - 5)).all(axis=1) for s in (left, right)
    ]
    clear = inside[0] & inside[1]
    assert np.abs(left - right)[clear].max(initial=0) < 3.0
    assert np.median(np.abs(left - right)[clear]) < 1.0 if clear.any() else True


def test_most_cells_are_found_again():
    counts = [
        len(views_of_photo(coordinates(150, 200), CELLS, VIEWS, np.random.default_rng(i)).points)
        for i in range(50)
    ]
    assert np.mean(counts) > 0.4 * len(CELLS)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), zoom=st.sampled_from([0.5, 1.0, 2.0]))
def test_points_of_matched_photos_are_the_matches(seed, zoom):
    rng = np.random.default_rng(seed)
    height, width = 100, 120
    a = coordinates(height, width)
    b = coordinates(round(height * zoom), round(width * zoom))
    xy = rng.uniform((8, 8), (width - 9, height - 9), (40, 2))
    matches = np.hstack([xy, (xy + 0.5) * zoom - 0.5])
    made = views_of_matched(a, b, matches, zoom, VIEWS, rng)
    assert len(made.points) >= 1  # the crops lie around one of the matches
    left, right = seen_at(made.first, made.points[:, :2]), seen_at(made.second, made.points[:, 2:])
    known = left[:, None], right[:, None]
    # Each row is one of the matches, on both sides.
    off = np.abs(known[0] - matches[None, :, :2]).max(-1) + np.abs(
        known[1] - matches[None, :, 2:]
    ).max(-1)
    assert np.median(off.min(axis=1)) < 4.0


def test_points_are_limited_and_seeded():
    rng = np.random.default_rng(0)
    xy = rng.uniform(30, 70, (500, 2))
    matches = np.hstack([xy, xy])
    photo = coordinates(100, 100)
    one = views_of_matched(photo, photo, matches, 1.0, VIEWS, np.random.default_rng(5))
    two = views_of_matched(photo, photo, matches, 1.0, VIEWS, np.random.default_rng(5))
    assert 0 < len(one.points) <= 100
    assert np.array_equal(one.points, two.points) and np.array_equal(one.second, two.second)


def test_colour_changes_pixels_and_not_points():
    photo = coordinates(120, 120)
    grey = views_of_photo(photo, CELLS, VIEWS, np.random.default_rng(3))
    other = dataclasses.replace(VIEWS, colour=1.0)
    coloured = views_of_photo(photo, CELLS, other, np.random.default_rng(3))
    assert not np.array_equal(grey.first, coloured.first)


@pytest.mark.parametrize(
    "wrong",
    [{"side": 8}, {"max_side": 50}, {"min_crop": 0.0}, {"zoom": 0.5}, {"corner_shift": 0.4}],
)
def test_views_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(VIEWS, **wrong).check()
