"""What runs on a GPU, on a processor: the results are those of one level at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from delfsearch import DelfExtractor, LocalFeatures, PhotoError
from delfsearch.extraction import batches as batches_module
from delfsearch.extraction import extractor as extractor_module
from delfsearch.extraction.batches import BatchedExtraction, reduction_on, run_in_windows
from delfsearch.extraction.runtime import Runtime

from .conftest import texture

SCALES = (0.5, 2**-0.5, 1.0)


@pytest.fixture(scope="module")
def photos():
    sizes = [(130, 90), (64, 100), (130, 90), (97, 97), (130, 90)]
    return [texture(*size, seed) for seed, size in enumerate(sizes)]


def make(path, **options):
    options = {"scales": SCALES, "n_components": 8, "max_features": 60, **options}
    return DelfExtractor(path, precision="fp32", device="cpu", n_jobs=2, **options)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Windows of photos in place of one level at a time; returns the sizes of the batches."""
    sizes: list[int] = []
    run_batch = BatchedExtraction._run_batch

    def counted(self, photos, members):
        sizes.append(len(members))
        run_batch(self, photos, members)

    def in_windows(items, *, read, compute, finish, n_workers):
        return run_in_windows(
            items, read=read, extraction=current[0], n_readers=n_workers, max_window=3
        )

    current: list[BatchedExtraction] = []

    def extract(extractor, items):
        current[:] = [
            BatchedExtraction(
                extractor._runtime(),
                max_features=extractor.max_features,
                iou_threshold=extractor.iou_threshold,
                score_threshold=extractor.score_threshold,
                best=extractor.max_features if extractor.iou_threshold == 1.0 else None,
                finish=reduction_on(torch.device("cpu"), extractor._reduction()),
            )
        ]
        with monkeypatch.context() as patched:
            patched.setattr(BatchedExtraction, "_run_batch", counted)
            patched.setattr(extractor_module, "run_in_order", in_windows)
            return [result for _, result in extractor.stream(items)]

    def lazily(extractor, items):
        extract(extractor, [])
        current[0] = BatchedExtraction(
            extractor._runtime(),
            max_features=extractor.max_features,
            iou_threshold=1.0,
            score_threshold=None,
            best=None,
        )
        with monkeypatch.context() as patched:
            patched.setattr(extractor_module, "run_in_order", in_windows)
            yield from extractor._stream_selected(items, raw=True)

    extract.lazily = lazily  # type: ignore[attr-defined]
    extract.sizes = sizes  # type: ignore[attr-defined]
    return extract


def assert_close(got: LocalFeatures, expected: LocalFeatures) -> None:
    assert got.image_size == expected.image_size
    np.testing.assert_allclose(got.scores, expected.scores, rtol=1e-4)
    order = [np.lexsort((*f.keypoints_xy.T, f.scales)) for f in (got, expected)]
    for name in ("keypoints_xy", "scales", "scores", "descriptors"):
        ours, theirs = (getattr(f, name)[o] for f, o in zip((got, expected), order))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"iou_threshold": 0.5},
        {"border_cells": 1},
        {"score": "l2", "score_threshold": 8.0, "max_features": 10_000},
        {"score_threshold": 1e9},
    ],
)
def test_windows_give_what_single_levels_give(full_weights_path, photos, as_on_a_gpu, options):
    extractor = make(full_weights_path, **options)
    expected = extractor.transform(photos)
    for got, other in zip(as_on_a_gpu(extractor, photos), expected, strict=True):
        assert_close(got, other)


def test_levels_of_equal_size_share_a_batch(full_weights_path, photos, as_on_a_gpu, monkeypatch):
    extractor = make(full_weights_path)
    as_on_a_gpu(extractor, photos)
    # Windows of 3 and 2 photos: (A, B, A) and (C, A), three levels of each size.
    assert sorted(as_on_a_gpu.sizes) == [1] * 9 + [2] * 3
    as_on_a_gpu.sizes.clear()
    monkeypatch.setattr(batches_module, "_MAX_BATCH_PIXELS", 1)
    as_on_a_gpu(extractor, photos)
    assert as_on_a_gpu.sizes == [1] * 15


def test_a_window_holds_no_more_pixels_than_it_may(
    full_weights_path, photos, as_on_a_gpu, monkeypatch
):
    extractor = make(full_weights_path)
    expected = extractor.transform(photos)
    monkeypatch.setattr(batches_module, "_MAX_WINDOW_PIXELS", 1)
    for got, other in zip(as_on_a_gpu(extractor, photos), expected, strict=True):
        assert_close(got, other)
    assert as_on_a_gpu.sizes == [1] * 15


def test_a_batch_that_does_not_fit_is_halved(full_weights_path, photos, as_on_a_gpu, monkeypatch):
    extractor = make(full_weights_path)
    expected = extractor.transform([photos[0]])[0]
    dense_batch = Runtime.dense_batch
    tried = []

    def little_memory(self, rgb):
        tried.append(len(rgb))
        if len(rgb) > limit:
            raise torch.cuda.OutOfMemoryError("too many")
        return dense_batch(self, rgb)

    monkeypatch.setattr(Runtime, "dense_batch", little_memory)
    limit = 1
    for got in as_on_a_gpu(extractor, [photos[0]] * 3):
        assert_close(got, expected)
    assert tried[:2] == [3, 1] and 1 in tried
    limit = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        as_on_a_gpu(extractor, [photos[0]] * 3)


def test_bad_and_blank_photos_among_others(full_weights_path, photos, as_on_a_gpu, tmp_path):
    blank = np.full((60, 70, 3), 200, np.uint8)
    items = [photos[0], tmp_path / "absent.jpg", blank, photos[1], 7, *([photos[2]] * 5), blank]
    extractor = make(full_weights_path)
    got = as_on_a_gpu(extractor, items)
    kinds = [type(result) for result in got]
    assert (
        kinds
        == [LocalFeatures, PhotoError, LocalFeatures, LocalFeatures, PhotoError]
        + [LocalFeatures] * 6
    )
    assert len(got[2]) == len(got[-1]) == 0 and got[2].image_size == (70, 60)
    for i in (0, 3, 5, 9):
        assert_close(got[i], extractor.transform([items[i]])[0])
    assert as_on_a_gpu(extractor, []) == []


def test_a_bug_stops_the_stream(full_weights_path, photos, as_on_a_gpu, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("out of order")

    extractor = make(full_weights_path)
    monkeypatch.setattr(extractor, "_read", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        as_on_a_gpu(extractor, photos)


def test_what_is_read_ahead_is_bounded(full_weights_path, photos, as_on_a_gpu, monkeypatch):
    monkeypatch.setattr(batches_module, "_MAX_WINDOW_PIXELS", 1)
    extractor = make(full_weights_path, scales=(0.5,))
    ahead, yielded = [], 0

    def endless():
        for n in range(60):
            ahead.append(n - yielded)
            yield photos[0]

    for _ in as_on_a_gpu.lazily(extractor, endless()):
        yielded += 1
    assert yielded == 60 and max(ahead) <= 12


def test_windows_without_anything(full_weights_path, photos, as_on_a_gpu, tmp_path):
    blank = np.full((60, 70, 3), 200, np.uint8)
    extractor = make(full_weights_path)
    assert [len(f) for f in as_on_a_gpu(extractor, [blank] * 4)] == [0] * 4
    [error] = as_on_a_gpu(extractor, [tmp_path / "absent.jpg"])
    assert isinstance(error, PhotoError)
