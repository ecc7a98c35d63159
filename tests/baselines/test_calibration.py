"""Thresholds from photos without a match, by hand and by the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delfsearch import DelfIndex, LocalFeatures, Verifier
from delfsearch.baselines.calibration import false_inliers, suggest_min_inliers


def photo(n: int, seed: int, d: int = 8) -> LocalFeatures:
    generator = np.random.default_rng(seed)
    return LocalFeatures(
        generator.uniform(0, 500, (n, 2)).astype(np.float32),
        generator.normal(size=(n, d)).astype(np.float32),
        image_size=(500, 500),
    )


def test_by_hand():
    counts = [5, 46, 7, 45, 5, 21, 5, 5, 18, 5]
    assert suggest_min_inliers(counts, false_rate=0.1) == 46
    assert suggest_min_inliers(counts, false_rate=0.25) == 22
    assert suggest_min_inliers(counts, false_rate=0.0) == 47
    assert suggest_min_inliers(counts, false_rate=1.0) == 3
    assert suggest_min_inliers([0, 0, 0]) == 3


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=50), st.sampled_from([0.0, 0.01, 0.1, 0.5, 1])
)
def test_lowest_threshold_that_keeps_the_rate(counts, rate):
    threshold = suggest_min_inliers(counts, false_rate=rate)
    answered = [sum(c >= t for c in counts) for t in range(3, 64)]
    expected = next(t for t, a in zip(range(3, 64), answered) if a <= rate * len(counts))
    assert threshold == expected


def test_counts_are_those_of_index_and_verifier():
    database = [photo(60, i) for i in range(5)]
    # A copy of photo 3 with other descriptors mixed in answers with inliers, unless excluded.
    queries = [photo(40, 90), database[3], database[3]]
    counts = false_inliers(queries, database, exclude_ids=[None, None, [3]], n_jobs=2)
    index, verifier = DelfIndex().fit(database), Verifier(min_inliers=3, random_state=0)
    hits = verifier.verify(index.query(queries[1]))
    assert counts[1] == hits[0].n_inliers == 60 and hits[0].id == 3
    assert counts[2] < 30 and counts[0] < 30
    assert (
        counts.tolist() == false_inliers(queries, database, exclude_ids=[None, None, [3]]).tolist()
    )
    assert false_inliers([], database).shape == (0,)
    assert false_inliers([LocalFeatures.empty(8)], database).tolist() == [0]


def test_bad_input():
    with pytest.raises(ValueError, match="at least one photo"):
        suggest_min_inliers([])
    with pytest.raises(ValueError, match="false_rate"):
        suggest_min_inliers([1], false_rate=2.0)
    with pytest.raises(ValueError, match="at least one photo"):
        false_inliers([photo(3, 0)], [])
