"""Merged score maps: each pixel is what a slow bilinear interpolation of every level says."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch import DelfExtractor
from delfsearch.extraction.score_maps import merge_levels

from .conftest import texture


def a_level(scores, xs, ys, scale=1.0):
    centres = np.stack(np.meshgrid(xs, ys), axis=-1).astype(np.float32)
    return SimpleNamespace(scale=scale, scores=np.asarray(scores, np.float32), keypoints_xy=centres)


def between(values, at):
    """Return (lower cell, upper cell, weight of the upper one) for a position among centres."""
    if at <= values[0]:
        return 0, 0, 0.0
    if at >= values[-1]:
        return len(values) - 1, len(values) - 1, 0.0
    upper = next(i for i, value in enumerate(values) if value >= at)
    return upper - 1, upper, (at - values[upper - 1]) / (values[upper] - values[upper - 1])


def slow_map(level, photo_size, map_size):
    xs, ys = level.keypoints_xy[0, :, 0], level.keypoints_xy[:, 0, 1]
    result = np.zeros((map_size[1], map_size[0]))
    for row in range(map_size[1]):
        y = (row + 0.5) * photo_size[1] / map_size[1] - 0.5
        up, down, v = between(ys, y)
        for column in range(map_size[0]):
            x = (column + 0.5) * photo_size[0] / map_size[0] - 0.5
            left, right, u = between(xs, x)
            top = (1 - u) * level.scores[up, left] + u * level.scores[up, right]
            bottom = (1 - u) * level.scores[down, left] + u * level.scores[down, right]
            result[row, column] = (1 - v) * top + v * bottom
    return result


@pytest.mark.parametrize("map_size", [None, (20, 11)])
def test_is_the_slow_interpolation_of_every_level(map_size):
    rng = np.random.default_rng(0)
    size = (40, 23)
    levels = [
        a_level(rng.uniform(0, 9, (2, 3)), [3, 19, 35], [3, 19]),
        a_level(rng.uniform(0, 9, (4, 5)), [-1, 8, 17, 26, 44], [0, 7, 14, 21]),
        a_level([[4.0]], [20], [11]),
    ]
    maps = [slow_map(level, size, map_size or size) for level in levels]
    for merge, combine in (("mean", np.mean), ("max", np.max)):
        merged = merge_levels(levels, size, map_size=map_size, merge=merge)
        assert merged.dtype == np.float32
        np.testing.assert_allclose(merged, combine(maps, axis=0), rtol=1e-5)
    assert np.array_equal(
        merge_levels(levels, size, map_size=map_size),
        merge_levels(levels, size, map_size=map_size, merge="mean"),
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
def test_cells_keep_their_scores_and_nothing_exceeds_them(seed, n_rows, n_columns, factor):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-5, 5, (n_rows, n_columns)).astype(np.float32)
    xs, ys = (np.cumsum(rng.integers(1, 6, n)) for n in (n_columns, n_rows))
    size = (int(xs[-1]) + 3, int(ys[-1]) + 2)
    level = a_level(scores, xs, ys)
    merged = merge_levels([level] * factor, size)
    assert merged.shape == (size[1], size[0])
    np.testing.assert_allclose(merged[np.ix_(ys, xs)], scores, rtol=1e-5, atol=1e-6)
    assert scores.min() - 1e-5 <= merged.min() and merged.max() <= scores.max() + 1e-5


def test_levels_without_cells_do_not_count():
    empty = SimpleNamespace(scale=0.25, scores=np.zeros((0, 3)), keypoints_xy=np.zeros((0, 3, 2)))
    level = a_level([[1, 2]], [4, 12], [5])
    for merge in ("mean", "max"):
        alone, both = (
            merge_levels(levels, (16, 10), merge=merge) for levels in ([level], [empty, level])
        )
        assert np.array_equal(alone, both)
    for nothing in ([], [empty]):
        with pytest.raises(ValueError, match="at least one cell"):
            merge_levels(nothing, (16, 10))
    with pytest.raises(ValueError, match="merge must be one of 'mean', 'max'; got 'min'"):
        merge_levels([level], (16, 10), merge="min")


def test_takes_what_score_map_returns(full_weights_path):
    extractor = DelfExtractor(full_weights_path, scales=(0.5, 1.0), precision="fp32", n_jobs=1)
    levels = extractor.score_map(texture(90, 70))
    merged = merge_levels(levels, (90, 70), merge="max")
    assert merged.shape == (70, 90)
    fine = levels[1]
    # A cell's own place has at least its own score.
    x, y = np.rint(fine.keypoints_xy[2, 3]).astype(int)
    assert np.array_equal(fine.keypoints_xy[2, 3], (x, y))
    assert merged[y, x] >= fine.scores[2, 3] * (1 - 1e-5)
