"""The same on a GPU; skipped where there is none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from training.small import PCA, save_small_weights, stop_after

from delfsearch import DelfExtractor, PhotoError
from delfsearch.extraction.network import _CuDnn
from delfsearch.training import (
    AttentionTrainer,
    ContrastiveTrainer,
    DescriptorTrainer,
    InlierAttentionTrainer,
    MatchedPhotos,
    Optimization,
    PairViews,
    RunOptions,
    Views,
    photos_from_image_folder,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

RUN = RunOptions(n_jobs=4, device="cuda", checkpoint_every=2)
OPTIMIZATION = Optimization(epochs=2, batch_size=4, optimizer="adamw", learning_rate=1e-4)


def texture(width: int, height: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 8, 0), 8, 1)[:height, :width]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    rng = np.random.default_rng(4)
    head = {
        "attention.conv1.weight": rng.standard_normal((512, 1024, 1, 1), np.float32) / 32,
        "attention.conv1.bias": np.zeros(512, np.float32),
        "attention.conv2.weight": rng.standard_normal((1, 512, 1, 1), np.float32) / 23,
        "attention.conv2.bias": np.zeros(1, np.float32),
    }
    path = tmp_path_factory.mktemp("gpu-weights") / "small.safetensors"
    return save_small_weights(path, **PCA, **head)


@pytest.fixture(scope="module")
def images():
    sizes = [(330, 250), (200, 320), (330, 250), (257, 257), (330, 250)] * 9
    return [texture(*size, seed) for seed, size in enumerate(sizes)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from PIL import Image

    root = tmp_path_factory.mktemp("gpu-photos")
    for name in ("a", "b", "c"):
        (root / name).mkdir()
        for i in range(4):
            Image.fromarray(texture(96 + 8 * i, 90, ord(name) * 10 + i // 2)).save(
                root / name / f"{i}.png"
            )
    return photos_from_image_folder(root)


def make(weights, device, precision, **options):
    options = {"n_components": 8, "max_features": 200, "scales": "0.25-1", **options}
    return DelfExtractor(weights, device=device, precision=precision, **options)


@pytest.mark.parametrize("options", [{}, {"iou_threshold": 0.6}, {"score": "l2"}])
def test_features_in_fp32_are_those_of_a_processor(weights, images, options):
    expected = make(weights, "cpu", "fp32", **options).transform(images[:6])
    for got, other in zip(make(weights, "cuda", "fp32", **options).transform(images[:6]), expected):
        assert got.image_size == other.image_size and abs(len(got) - len(other)) <= 2
        here = {(*xy, s): i for i, (xy, s) in enumerate(zip(got.keypoints_xy, got.scales))}
        there = {(*xy, s): i for i, (xy, s) in enumerate(zip(other.keypoints_xy, other.scales))}
        common = sorted(here.keys() & there.keys())
        # Ranks near the last may change places where scores are nearly equal.
        assert len(common) >= 0.97 * len(other)
        a, b = ([rows[key] for key in common] for rows in (here, there))
        np.testing.assert_allclose(got.scores[a], other.scores[b], rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(got.descriptors[a], other.descriptors[b], atol=2e-3)


def test_bf16_is_near(weights, images):
    exact, near = (make(weights, "cuda", p)._runtime() for p in ("fp32", "bf16"))
    a, b = (r.dense(images[0]).float().flatten(0, 1) for r in (exact, near))
    assert torch.nn.functional.cosine_similarity(a, b).min() > 0.98
    assert near.trunk.fused is _CuDnn and near.dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_operators_compute_the_same(weights, images, precision):
    runtime = make(weights, "cuda", precision)._runtime()
    fused = runtime.dense(images[0]).float()
    runtime.trunk.fused = None
    plain = runtime.dense(images[0]).float()
    error = torch.linalg.vector_norm(fused - plain) / torch.linalg.vector_norm(plain)
    assert error < (1e-4 if precision == "fp32" else 2e-2)


def test_stream_keeps_order_and_names_bad_photos(weights, images, tmp_path):
    items = [*images[:3], tmp_path / "absent.jpg", *images[3:]]
    extractor = make(weights, "cuda", "bf16", n_jobs=4)
    results = list(extractor.stream(items))
    assert [photo is item for (photo, _), item in zip(results, items)] == [True] * len(items)
    assert isinstance(results[3][1], PhotoError)
    alone = extractor.transform([images[40]])[0]
    among = results[41][1]
    shared = {tuple(xy) for xy in alone.keypoints_xy} & {tuple(xy) for xy in among.keypoints_xy}
    assert len(shared) >= 0.9 * len(alone)


def test_too_little_memory_for_a_batch(weights, images, monkeypatch):
    extractor = make(weights, "cuda", "bf16")
    expected = extractor.transform(images[:4])
    runtime = extractor._runtime()
    whole = runtime.dense_batch

    def little(rgb):
        if len(rgb) > 1:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        return whole(rgb)

    monkeypatch.setattr(runtime, "dense_batch", little)
    for got, other in zip(extractor.transform(images[:4]), expected):
        assert abs(len(got) - len(other)) <= 4


def test_windows_without_anything(weights, tmp_path):
    extractor = make(weights, "cuda", "bf16")
    blank = np.full((90, 100, 3), 200, np.uint8)
    assert [len(f) for f in extractor.transform([blank, blank])] == [0, 0]
    with pytest.raises(PhotoError):
        extractor.transform([tmp_path / "absent.jpg"])


def test_estimate_and_score_map(weights, images):
    extractor = make(weights, "cuda", "auto")
    assert 0 < extractor.estimate_seconds(10, image_size=(640, 480)) < 60
    levels = extractor.score_map(images[0])
    assert len(levels) == 5 and all(np.isfinite(level.scores).all() for level in levels)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_descriptor_training(weights, folder, tmp_path, precision):
    options = {"views": Views(resize_side=54, crop_side=48), "optimization": OPTIMIZATION}
    trainer = DescriptorTrainer(
        weights, output=tmp_path / "d", precision=precision, run=RUN, **options
    ).fit(folder)
    assert np.isfinite(trainer.curves_["loss"]).all() and trainer.n_steps_ == 6


def test_attention_training(weights, folder, tmp_path):
    trainer = AttentionTrainer(
        weights,
        output=tmp_path / "a",
        views=Views(resize_side=90, crop_side=80),
        optimization=OPTIMIZATION,
        cached_crops=2,
        run=RUN,
    ).fit(folder)
    assert np.isfinite(trainer.curves_["loss"]).all()


def test_contrastive_training_and_attention_by_inliers_resume(weights, folder, tmp_path):
    pairs = np.array([(0, 1), (4, 5), (8, 9)], np.int64)
    rng = np.random.default_rng(0)
    matched = MatchedPhotos(
        folder.paths,
        pairs,
        np.tile(np.float32([96, 90, 96, 90]), (3, 1)),
        np.ones(3, np.float32),
        np.arange(4) * 30,
        np.tile(rng.uniform(5, 80, (90, 2)), 2).astype(np.float32),
    )
    options = {
        "matched": matched,
        "views": PairViews(side=64, max_side=96),
        "optimization": OPTIMIZATION,
        "n_components": 8,
        "n_negatives": 300,
    }
    often = dataclasses.replace(RUN, checkpoint_every=1)
    whole = ContrastiveTrainer(weights, output=tmp_path / "w", run=RUN, **options).fit(folder)
    with pytest.raises(KeyboardInterrupt):
        ContrastiveTrainer(weights, output=tmp_path / "c", run=often, **options).fit(
            folder, progress=stop_after(3)
        )
    again = ContrastiveTrainer(weights, output=tmp_path / "c", run=often, **options).fit(folder)
    assert 0 < len(again.curves_["loss"]) <= len(whole.curves_["loss"])
    np.testing.assert_allclose(
        again.curves_["loss"][-1], whole.curves_["loss"][-1], rtol=0.05, atol=0.02
    )
    attention = InlierAttentionTrainer(
        tmp_path / "w" / "weights.safetensors",
        matched=matched,
        output=tmp_path / "i",
        scales=(1.0,),
        n_cells=30,
        min_inliers=3,
        optimization=OPTIMIZATION,
        run=RUN,
    ).fit(folder)
    assert np.isfinite(attention.curves_["loss"]).all() and attention.weights_.attention
