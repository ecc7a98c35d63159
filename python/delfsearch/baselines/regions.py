"""R-MAC's regular grid of square regions over a feature map, and the maximum in each.

At level l = 1, 2, ... the regions are squares of side floor(2 min(w, h) / (l + 1)). Along the
shorter side l of them are spread evenly; along the longer one l + m - 1, with m in 2 ... 7 chosen
so that the squares of level 1 come closest to overlapping by 40%. A square map has m = 1.
Source: Tolias, Sicre, Jegou, "Particular object retrieval with integral max-pooling of CNN
activations"; DIR keeps the grid.
"""

from __future__ import annotations

from torch import Tensor

TARGET_OVERLAP = 0.4
_COUNTS = range(2, 8)


def region_grid(width: int, height: int, n_levels: int = 3) -> list[tuple[int, int, int]]:
    """Return the regions (x, y, side) in cells of a map, level by level, row-major.

    width, height : of the map, at least 1. n_levels : at least 1.
    Raises ValueError where one is smaller.
    """
    if width < 1 or height < 1 or n_levels < 1:
        raise ValueError(
            f"width, height and n_levels must be at least 1; got {width}, {height}, {n_levels}"
        )
    short = min(width, height)
    extra = _extra_regions(max(width, height), short)
    regions = []
    for level in range(1, n_levels + 1):
        side = max(1, 2 * short // (level + 1))
        across = _starts(width, side, level + (extra if width > height else 0))
        down = _starts(height, side, level + (extra if height > width else 0))
        regions += [(x, y, side) for y in down for x in across]
    return regions


def max_in_regions(features: Tensor, regions: list[tuple[int, int, int]]) -> Tensor:
    """Return the maximum of each channel in each region.

    features : (c, h, w). regions : (x, y, side) in cells. Returns (n_regions, c).
    """
    import torch

    return torch.stack([features[:, y : y + s, x : x + s].amax(dim=(1, 2)) for x, y, s in regions])


def _extra_regions(long: int, short: int) -> int:
    """Return m - 1, the regions that the longer side has more than the shorter."""
    if long == short:
        return 0
    # Level 1's squares have the shorter side; between neighbours lie (long - short) / (m - 1).
    overlaps = [1.0 - (long - short) / (m - 1) / short for m in _COUNTS]
    errors = [abs(overlap - TARGET_OVERLAP) for overlap in overlaps]
    return _COUNTS[errors.index(min(errors))] - 1


def _starts(length: int, side: int, n: int) -> list[int]:
    if n == 1:
        return [(length - side) // 2]
    return [i * (length - side) // (n - 1) for i in range(n)]
