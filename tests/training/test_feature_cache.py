from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import pytest
import torch
from training.small import OPTIMIZATION, RUN, VIEWS, Apart

from delfsearch.errors import WeightsError
from delfsearch.extraction.weights import load_weights
from delfsearch.training import AttentionTrainer, CheckpointError, feature_cache
from delfsearch.training.batches import Plan
from delfsearch.training.draws import Purpose, generator
from delfsearch.training.feature_cache import FeatureCache, cached_gammas
from delfsearch.training.models import FrozenTrunk, half
from delfsearch.training.photo_store import PhotoStore
from delfsearch.training.processes import Processes
from delfsearch.training.views import make_view

GAMMAS = (0.5, 1.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def trunk(weights_path):
    weights = load_weights(weights_path)
    return FrozenTrunk(weights, dtype=torch.float32, device=torch.device("cpu"))


def a_store(photos):
    store = PhotoStore([photos.file(i) for i in range(len(photos))], [54] * len(photos))
    store.keep("ram", None)
    return store


def a_cache(folder, photos, key="k", gammas=GAMMAS):
    return FeatureCache(folder, photos, VIEWS, gammas=gammas, random_state=4, key={"of": key})


def fill(cache, photos, trunk, **options):
    cache.fill(trunk, a_store(photos), Processes("cpu"), n_threads=1, **options)
    return cache


def test_batches_are_what_the_trunk_says_of_the_crops(tmp_path, photos, trunk):
    cache = fill(a_cache(tmp_path, photos), photos, trunk)
    plan = Plan(photos.labels, batch_size=5, sampling="photos", random_state=4)
    make = cache.batches(plan)
    store = a_store(photos)
    drawn = set()
    for step in range(12):
        batch = make(step)
        rows = plan.step(step)[2]
        round_ = int(generator(4, Purpose.ROUND, step).integers(4))
        drawn.add(round_)
        assert batch.gamma == GAMMAS[round_] and batch.weights.tolist() == [1.0] * 5
        assert batch.labels.tolist() == photos.labels[rows].tolist()
        views = [
            make_view(
                store.pixels(row),
                VIEWS,
                generator(4, Purpose.CACHED_VIEW, round_, row),
                gamma=batch.gamma,
            )
            for row in rows.tolist()
        ]
        expected = trunk(torch.from_numpy(np.stack(views)))
        assert batch.inputs.dtype == torch.float16
        torch.testing.assert_close(batch.inputs.float(), expected, rtol=2e-3, atol=2e-3)
    assert drawn == {0, 1, 2, 3}


def test_every_photo_has_several_crops_at_each_scale(tmp_path, photos, trunk):
    fill(a_cache(tmp_path, photos), photos, trunk)
    rounds = [np.load(tmp_path / f"round-{r:04d}.npy") for r in range(4)]
    for one, other in ((0, 2), (1, 3)):
        assert rounds[one].shape == rounds[other].shape
        different = (rounds[one] != rounds[other]).any(axis=(1, 2))
        assert different.sum() >= len(photos) - 2  # two crops may fall on one place


def test_rounds_that_are_there_are_not_computed_again(tmp_path, photos, trunk):
    class Stop(Exception):
        pass

    def stop(what, done, total):
        assert (what, total) == ("features", 4 * 12)
        if done == 12 * 2 + 8:
            raise Stop

    with pytest.raises(Stop):
        fill(a_cache(tmp_path, photos), photos, trunk, progress=stop)
    assert len(list(tmp_path.glob("round-*.npy"))) == 2 and not list(tmp_path.glob("*.part"))
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("round-*.npy")}
    done = []
    fill(a_cache(tmp_path, photos), photos, trunk, progress=lambda w, d, t: done.append(d))
    assert done == [32, 36, 44, 48]
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())
    whole = fill(a_cache(tmp_path / "whole", photos), photos, trunk)
    for r in range(4):
        name = f"round-{r:04d}.npy"
        assert np.array_equal(np.load(tmp_path / name), np.load(whole.folder / name))


def test_features_of_something_else_are_thrown_away(tmp_path, photos, trunk):
    fill(a_cache(tmp_path, photos), photos, trunk)
    before = np.load(tmp_path / "round-0000.npy")
    np.save(tmp_path / "round-0000.npy", np.zeros_like(before))
    fill(a_cache(tmp_path, photos), photos, trunk)  # the same key: kept as it is
    assert not np.load(tmp_path / "round-0000.npy").any()
    fill(a_cache(tmp_path, photos, key="other"), photos, trunk)
    assert np.array_equal(np.load(tmp_path / "round-0000.npy"), before)
    fill(a_cache(tmp_path, photos, key="other", gammas=(1.0, 1.0)), photos, trunk)
    assert len(list(tmp_path.glob("round-*.npy"))) == 2
    assert json.loads((tmp_path / "features.json").read_text())["gammas"] == [1.0, 1.0]


def test_unreadable_photos_have_no_weight_in_later_runs_either(tmp_path, miniature, trunk):
    from delfsearch.training import photos_from_image_folder

    shutil.copytree(miniature["training"] / "landmarks_clean", tmp_path / "photos")
    (tmp_path / "photos" / "001" / "2.jpg").write_bytes(b"no photo")
    photos = photos_from_image_folder(tmp_path / "photos")
    store = PhotoStore([photos.file(i) for i in range(12)], [54] * 12)
    plan = Plan(photos.labels, batch_size=12, sampling="photos", random_state=0)
    for _ in range(2):
        cache = a_cache(tmp_path / "cache", photos)
        cache.fill(trunk, store, Processes("cpu"), n_threads=2)
        batch = cache.batches(plan)(0)
        assert (batch.weights == 0).tolist() == (plan.step(0)[2] == 6).tolist()
        assert "2.jpg" in str(store.unreadable[6])
        store = PhotoStore([], [])  # the second run needs no photo


@pytest.mark.parametrize("fails", ["space", "write"])
def test_too_little_space_is_said_and_leaves_no_half_round(
    tmp_path, photos, trunk, monkeypatch, fails
):
    if fails == "space":
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(
            feature_cache.shutil, "disk_usage", lambda path: usage._replace(free=1000)
        )
        match = "are free: ask for fewer cached_crops"
    else:

        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(feature_cache.os, "fsync", full)
        match = "No space left on device"
    with pytest.raises(CheckpointError, match=match):
        fill(a_cache(tmp_path, photos), photos, trunk)
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".json"] == []


def test_features_beyond_half_precision_are_refused(tmp_path, photos, trunk, monkeypatch):
    class Large(FrozenTrunk):
        def __init__(self):
            self.name = "large.safetensors"
            self.device = torch.device("cpu")

        def __call__(self, photos):
            return trunk(photos) * 1e6

    message = r"weights 'large\.safetensors' go up to .*65504: train without cached_crops"
    with pytest.raises(WeightsError, match=message):
        fill(a_cache(tmp_path, photos), photos, Large())


def test_half_precision_holds_what_it_can_hold():
    kept = half(torch.tensor([[65504.0, -65504.0, 1e-3]]), weights="w", instead="none")
    assert kept.dtype == np.float16 and kept[0, :2].tolist() == [65504.0, -65504.0]
    assert half(torch.zeros(0, 1024), weights="w", instead="none").shape == (0, 1024)
    for value in (65520.0, -1e6, float("inf"), float("nan")):
        with pytest.raises(WeightsError, match=r"'w' go up to .*: none"):
            half(torch.tensor([[0.0, value]]), weights="w", instead="none")


def test_processes_that_share_no_folder_share_no_work(tmp_path, photos, trunk):
    cache = a_cache(tmp_path, photos)
    message = r"do not find the same in .*\(process 0: features\.json\)"
    with pytest.raises(CheckpointError, match=message):
        cache.fill(trunk, a_store(photos), Apart(), n_threads=1)
    assert not list(tmp_path.glob("round-*"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path, photos, trunk):
    (tmp_path / "file").write_text("no folder")
    message = r"features cannot be written to .*file.features\.json \(.*\); put that right and run"
    with pytest.raises(CheckpointError, match=message):
        fill(a_cache(tmp_path / "file", photos), photos, trunk)


def test_scales_of_the_rounds():
    assert cached_gammas((0.5, 1.0), 3, 0.25, 0) == (0.5, 1.0) * 3
    drawn = cached_gammas("uniform", 4, 0.25, 0)
    assert len(drawn) == 20 == len(set(drawn)) and 0.25 <= min(drawn) < max(drawn) <= 1
    assert drawn != cached_gammas("uniform", 4, 0.25, 1)


@pytest.mark.parametrize("gammas", [(0.5, 1.0), "uniform"])
def test_training_from_a_cache(weights_path, photos, tmp_path, gammas):
    trainer = AttentionTrainer(
        weights_path,
        output=tmp_path,
        gammas=gammas,
        cached_crops=2,
        views=VIEWS,
        optimization=OPTIMIZATION,
        precision="fp32",
        run=RUN,
    ).fit(photos)
    n_rounds = 4 if gammas != "uniform" else 10
    assert len(list((tmp_path / "features").glob("round-*.npy"))) == n_rounds
    assert np.isfinite(trainer.curves_["loss"]).all() and trainer.weights_.attention
