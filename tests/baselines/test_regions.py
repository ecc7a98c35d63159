"""The region grid of R-MAC against counts and places worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from delfsearch.baselines.regions import max_in_regions, region_grid
from delfsearch.extraction.reduction import l2_normalize


@pytest.mark.parametrize(
    ("width", "height", "count"),
    [
        # Square: 1 + 4 + 9.
        (12, 12, 14),
        # 4:3. Between neighbours (32 - 24) / (m - 1): m = 2 gives an overlap of 2/3, m = 3 of 5/6;
        # 2/3 is nearer to 0.4. So 1x2 + 2x3 + 3x4.
        (32, 24, 20),
        (24, 32, 20),
        # 2:1. m = 2 overlaps by 0, m = 3 by 1/2, m = 4 by 2/3: m = 3. So 1x3 + 2x4 + 3x5.
        (20, 10, 26),
    ],
)
def test_counts_by_hand(width, height, count):
    assert len(region_grid(width, height)) == count


def test_places_by_hand():
    # m = 3: level 1 has squares of 10 at 0, 5, 10; level 2 squares of 20 // 3 = 6 in 2 rows and 4
    # columns: rows at 0 and 4, columns at 0, 14 / 3, 28 / 3, 14, rounded down.
    regions = region_grid(20, 10, 2)
    assert regions[:3] == [(0, 0, 10), (5, 0, 10), (10, 0, 10)]
    rows = [(x, y, 6) for y in (0, 4) for x in (0, 4, 9, 14)]
    assert regions[3:] == rows


def test_one_cell_is_one_region_per_place():
    assert set(region_grid(1, 1)) == {(0, 0, 1)}


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 4))
def test_regions_are_inside_and_symmetric(width, height, n_levels):
    regions = region_grid(width, height, n_levels)
    assert all(
        0 <= x and x + side <= width and 0 <= y and y + side <= height and side >= 1
        for x, y, side in regions
    )
    turned = region_grid(height, width, n_levels)
    assert sorted((y, x, side) for x, y, side in turned) == sorted(regions)
    # The first and the last region of the finest level touch both ends of both axes.
    x, y, side = regions[-1]
    if n_levels > 1:
        assert (x + side, y + side) == (width, height)


def test_maximum_against_loops():
    features = torch.randn(5, 9, 13, generator=torch.Generator().manual_seed(0))
    regions = region_grid(13, 9)
    found = max_in_regions(features, regions)
    for row, (x, y, side) in zip(found, regions):
        for channel in range(5):
            values = [features[channel, y + j, x + i] for j in range(side) for i in range(side)]
            assert row[channel] == max(values)


def test_rmac_of_a_constant_map_by_hand():
    # Every region of a constant map is the same vector v; normalised, summed 14 times, normalised
    # again it is v / |v| = (3, 4) / 5.
    features = torch.tensor([3.0, 4.0])[:, None, None].expand(2, 12, 12)
    regions = max_in_regions(features, region_grid(12, 12)).numpy()
    total = l2_normalize(regions).sum(axis=0)
    np.testing.assert_allclose(total, [14 * 0.6, 14 * 0.8], rtol=1e-6)
    np.testing.assert_allclose(l2_normalize(total[None])[0], [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("arguments", [(0, 5), (5, 0), (5, 5, 0)])
def test_nothing_is_refused(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        region_grid(*arguments)
