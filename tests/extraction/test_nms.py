from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch import _core


def brute_force(boxes, scores, threshold, max_kept):
    """Greedy suppression, every pair compared, in float32 as the core does."""
    order = np.lexsort((np.arange(len(scores)), -scores))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    for i in order:
        if len(kept) == max_kept:
            break
        if kept:
            k = np.array(kept)
            w = np.minimum(boxes[i, 2], boxes[k, 2]) - np.maximum(boxes[i, 0], boxes[k, 0])
            h = np.minimum(boxes[i, 3], boxes[k, 3]) - np.maximum(boxes[i, 1], boxes[k, 1])
            inter = np.maximum(w, np.float32(0)) * np.maximum(h, np.float32(0))
            if np.any(inter > np.float32(threshold) * (areas[i] + areas[k] - inter)):
                continue
        kept.append(i)
    return np.array(kept, np.int64)


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(0, 120),
    seed=st.integers(0, 2**32 - 1),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.95, 1.0]),
    max_kept=st.sampled_from([0, 1, 7, 1000]),
    levels=st.booleans(),
)
def test_equals_brute_force(n, seed, threshold, max_kept, levels):
    generator = np.random.default_rng(seed)
    sides = generator.choice([40, 56.6, 80, 113.1], n) if levels else generator.uniform(0, 150, n)
    corner = generator.integers(-20, 100, (n, 2))
    boxes = np.concatenate([corner, corner + sides[:, None]], axis=1).astype(np.float32)
    scores = generator.integers(0, 20, n).astype(np.float32)  # with ties
    kept = _core.non_maximum_suppression(boxes, scores, threshold, max_kept)
    np.testing.assert_array_equal(kept, brute_force(boxes, scores, threshold, max_kept))


@pytest.mark.parametrize(
    "boxes, scores, threshold",
    [
        ([[0, 0, 1, 1]], [1, 2], 0.5),
        ([[1, 0, 0, 1]], [1], 0.5),
        ([[0, 0, np.nan, 1]], [1], 0.5),
        ([[0, 0, 1, 1]], [np.inf], 0.5),
        ([[0, 0, 1, 1]], [1], 1.5),
    ],
)
def test_refuses_what_it_cannot_use(boxes, scores, threshold):
    with pytest.raises(ValueError):
        _core.non_maximum_suppression(
            np.array(boxes, np.float32), np.array(scores, np.float32), threshold, 5
        )
