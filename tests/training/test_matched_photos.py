"""Matched photos: reciprocal matches against a slow search; one thing, and different things."""

from __future__ import annotations

import dataclasses
import itertools
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from search_helpers import make_features
from training.small import CONGAS

from delfsearch.baselines import load_system
from delfsearch.errors import DatasetError
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.features import LocalFeatures
from delfsearch.training import (
    MATCHERS,
    CheckpointError,
    LabelledPhotos,
    MatchedPhotos,
    match_photos,
)
from delfsearch.training.matched_photos import reciprocal_matches
from delfsearch.verification.verifier import Verifier


def within(squared: np.ndarray, k: int, *, with_ties: bool) -> np.ndarray:
    """Whether each of a row is among its k nearest; with or without those that tie for it."""
    among = np.sort(squared, axis=1)
    if with_ties:
        return squared <= among[:, min(k, among.shape[1]) - 1, None]
    return (squared < among[:, k, None]) if k < among.shape[1] else np.ones_like(squared, bool)


def on_grid(features: LocalFeatures, rng: np.random.Generator) -> LocalFeatures:
    """Descriptors that 8 bits hold exactly: of 256 values, the first and last of them present."""
    values = rng.integers(0, 256, features.descriptors.shape).astype(np.float32)
    values[:1], values[1:2] = 0, 255
    return dataclasses.replace(features, descriptors=values)


@given(
    st.integers(0, 1000),
    st.integers(0, 40).filter(lambda n: n != 1),
    st.integers(0, 40).filter(lambda m: m != 1),
    st.integers(1, 5),
)
def test_reciprocal_matches_are_those_of_a_slow_search(seed, n, m, k):
    rng = np.random.default_rng(seed)
    first, second = make_features(rng, n, 4), make_features(rng, m, 4)
    first, second = on_grid(first, rng), on_grid(second, rng)
    found = reciprocal_matches(first, second, k=k)
    got = set(zip(found.query_indices.tolist(), found.database_indices.tolist()))
    if not n or not m:
        assert not got and not len(found)
        return
    squared = ((first.descriptors[:, None] - second.descriptors[None]) ** 2).sum(2)
    surely, perhaps = (
        set(
            zip(
                *np.nonzero(
                    within(squared, k, with_ties=ties) & within(squared.T, k, with_ties=ties).T
                )
            )
        )
        for ties in (False, True)
    )
    assert surely <= got <= perhaps
    np.testing.assert_array_equal(found.query_xy, first.keypoints_xy[found.query_indices])
    np.testing.assert_array_equal(found.database_xy, second.keypoints_xy[found.database_indices])


def drawing(seed: int, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 12, width // 12, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def test_photos_of_one_thing_are_matched(tmp_path):
    """Two crops of one drawing, 30 pixels apart; two drawings that are called one thing."""
    whole = drawing(0, 330, 240)
    whole.crop((0, 0, 300, 240)).save(tmp_path / "a.png")
    whole.crop((30, 0, 330, 240)).resize((150, 120)).save(tmp_path / "b.png")
    drawing(1, 300, 240).save(tmp_path / "c.png")
    drawing(2, 300, 240).save(tmp_path / "d.png")
    names = ("a.png", "b.png", "c.png", "d.png")
    photos = LabelledPhotos.from_names(names, ["x", "x", "y", "y"], root=tmp_path)
    seen = []
    matched = match_photos(
        photos, matchers=(CONGAS,), n_jobs=1, max_points=40, progress=lambda *x: seen.append(x)
    )
    assert seen[-1] == ("photos", 4, 4)
    assert matched.names == ("a.png", "b.png") and matched.pairs.tolist() == [[0, 1]]
    assert matched.sizes.tolist() == [[300, 240, 150, 120]]
    assert matched.zooms[0] == pytest.approx(0.5, rel=0.1)
    points = matched.points_of(0)
    assert 15 <= len(points) <= 40
    expected = (points[:, :2] + 0.5 - (30, 0)) / 2 - 0.5
    assert np.median(np.abs(points[:, 2:] - expected)) < 2
    again = match_photos(photos, matchers=(CONGAS,), n_jobs=2, max_points=40)
    assert again.fingerprint() == matched.fingerprint()


def test_what_hinders_writing_is_said_with_the_file(tmp_path):
    few, more = (
        MatchedPhotos(
            ("a.png", "b.png"),
            np.array([[0, 1]]),
            np.ones((1, 4), np.float32),
            np.ones(1, np.float32),
            np.array([0, n]),
            np.zeros((n, 4), np.float32),
        )
        for n in (1, 4000)
    )
    path = tmp_path / "new" / "matched.npz"
    few.save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the system itself refuses
    try:
        with pytest.raises(CheckpointError, match=r"to .*matched\.npz \(.*\); free some space"):
            more.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert MatchedPhotos.load(path).fingerprint() == few.fingerprint()
    assert [p.name for p in path.parent.iterdir()] == ["matched.npz"]
    with pytest.raises(CheckpointError, match=r"matched photos .*put that right and run again"):
        few.save(path / "under a file.npz")


def test_photos_that_cannot_be_matched_because_unreadable_are_named(tmp_path, caplog):
    for name in ("a.png", "b.png"):
        drawing(0, 300, 240).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no photo")
    names = ("a.png", "b.png", "c.png")
    photos = LabelledPhotos.from_names(names, ["x"] * 3, root=tmp_path)
    matched = match_photos(photos, matchers=(CONGAS,), n_jobs=1)
    assert matched.names == ("a.png", "b.png")
    assert "left out 1 of 3 photos that cannot be read" in caplog.text and "c.png" in caplog.text


def test_nothing_to_match_is_an_error(photos):
    with pytest.raises(DatasetError, match="no two photos"):
        match_photos(photos, matchers=(dataclasses.replace(CONGAS, min_inliers=9999),), n_jobs=1)


def test_drawings_of_different_things_do_not_match(tmp_path):
    for i in range(8):
        drawing(i, 320, 240).save(tmp_path / f"{i}.png")
    names = [f"{i}.png" for i in range(8)]
    photos = LabelledPhotos.from_names(names, ["one thing"] * 8, root=tmp_path)
    with pytest.raises(DatasetError, match="no two photos"):
        match_photos(photos, matchers=(MATCHERS[0],), max_pairs=28, n_jobs=1)


def test_photographs_of_different_things_do_not_match():
    """Real photographs, where they are: each of 24 distractor queries with each other."""
    default = Path(__file__).resolve().parents[3] / "shared" / "photos"
    root = Path(os.environ.get("DELFSEARCH_PHOTOS") or default)
    if not (root / "photos.csv").is_file():
        pytest.skip(f"no photographs in {root}")
    folder = PhotoFolder.read(root, check_files=False)
    small = [p for p in folder.distractor_queries if folder.subsets[p].startswith("scene15")]
    others = [p for p in folder.distractor_queries if p not in set(small)]
    chosen = [root / others[i] for i in np.random.default_rng(5).permutation(len(others))[:24]]
    matcher = MATCHERS[0]
    system = load_system(matcher.system, n_jobs=2, **dict(matcher.options))
    features = [found for _, found in system.stream(chosen)]
    verifier = Verifier(min_inliers=matcher.min_inliers, max_error=matcher.max_error)
    passed = [
        (a, b)
        for a, b in itertools.combinations(range(24), 2)
        if verifier.verify(reciprocal_matches(features[a], features[b]))
    ]
    assert not passed
