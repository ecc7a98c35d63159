from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from training.small import CONGAS, RUN, same
from training.test_contrastive import OPTIMIZATION, VIEWS

from delfsearch import cli
from delfsearch.errors import DatasetError
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.evaluation.report.fold_weights import read_folds
from delfsearch.evaluation.scene_folds import held_out_scenes, trained_photos
from delfsearch.extraction.weights import load_weights
from delfsearch.training import (
    MATCHERS,
    CheckpointError,
    MatchedPhotos,
    Optimization,
    photos_from_library_folder,
)
from delfsearch.training import recipe as recipe_module
from delfsearch.training.recipe import train_recipe

OPTIONS = {
    "n_folds": 2,
    "matchers": (dataclasses.replace(CONGAS, min_inliers=6),),
    "views": VIEWS,
    "optimization": dataclasses.replace(OPTIMIZATION, epochs=2),
    "precision": "fp32",
    "run": RUN,
    "n_components": 6,
    "n_negatives": 50,
    "attention_options": {
        "n_cells": 60,
        "min_inliers": 4,
        "optimization": Optimization(epochs=2, batch_size=2),
    },
}


@pytest.fixture(scope="module")
def library(miniature):
    return miniature["library"]


@pytest.fixture(scope="module")
def made(library, weights_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    return folder, train_recipe(library, folder, weights=weights_path, **OPTIONS)


def test_the_recipe_trains_on_all_scenes_and_on_all_but_each_fold(made, library):
    _, written = made
    names = ["weights.safetensors", "fold-0.safetensors", "fold-1.safetensors"]
    assert [path.name for path in written] == names
    truth = PhotoFolder.read(library)
    scenes = set(truth.labels.values())
    final, *folds = map(load_weights, written)
    held = [held_out_scenes(weights) for weights in folds]
    assert held_out_scenes(final) is None
    assert held[0] | held[1] == scenes and not held[0] & held[1]
    trained = [trained_photos(weights) for weights in (final, *folds)]
    own = {path for path in truth.paths if truth.labels.get(path)}
    free = set(truth.paths) - own - set(truth.distractor_queries)
    assert trained[0] == own | free
    for photos, scenes_held in zip(trained[1:], held):
        assert photos == {p for p in own if truth.labels[p] not in scenes_held} | free
    assert not same(final.tensors, folds[0].tensors)
    assert all(weights.attention and len(weights.pca) == 3 for weights in (final, *folds))
    assert all(path.stat().st_size < 20e6 for path in written)


def test_what_was_finished_is_found_again(made, library, weights_path, monkeypatch):
    folder, written = made
    before = [load_weights(path).sha256 for path in written]
    monkeypatch.setattr(recipe_module, "match_photos", None)  # its file is there
    again = train_recipe(library, folder, weights=weights_path, **OPTIONS)
    assert [load_weights(path).sha256 for path in again] == before


def test_where_nothing_is_verified_there_is_no_attention(
    made, library, weights_path, tmp_path, caplog
):
    shutil.copy(made[0] / "matched.npz", tmp_path)
    options = {**OPTIONS, "n_folds": 0, "attention_options": {"min_inliers": 10**6}}
    (path,) = train_recipe(library, tmp_path, weights=weights_path, **options)
    assert "weights without attention" in caplog.text
    weights = load_weights(path)
    assert not weights.attention and weights.recipe["mode"] == "contrastive"
    assert trained_photos(weights)


def test_an_interrupted_recipe_ends_with_the_same_weights(made, library, weights_path, tmp_path):
    _, written = made
    seen = []

    def progress(what, done, total):
        seen.append(what)
        if what == "fold-0: steps" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(library, tmp_path, weights=weights_path, progress=progress, **OPTIONS)
    assert {"matching: photos", "final: steps", "fold-0: steps"} <= set(seen)
    gone_on = train_recipe(library, tmp_path, weights=weights_path, **OPTIONS)
    hashes = [[load_weights(path).sha256 for path in paths] for paths in (written, gone_on)]
    assert hashes[0] == hashes[1]


def test_the_report_reads_the_folds(made, library):
    folder, _ = made
    folds = read_folds(folder)
    assert len(folds) == 2


def test_without_matches_copies_alone_are_trained_on(library, weights_path, tmp_path, caplog):
    hopeless = (dataclasses.replace(CONGAS, min_inliers=9999),)
    options = {**OPTIONS, "matchers": hopeless, "n_folds": 0}
    (path,) = train_recipe(library, tmp_path, weights=weights_path, **options)
    assert "warped copies alone" in caplog.text
    assert load_weights(path).recipe["matched"] is None


def test_what_cannot_be_done_is_said(made, library, weights_path, tmp_path):
    with pytest.raises(ValueError, match="n_folds must be 0, or at least 2; got 1"):
        train_recipe(library, tmp_path, **{**OPTIONS, "n_folds": 1})
    with pytest.raises(DatasetError, match=r"photos\.csv"):
        train_recipe(tmp_path, tmp_path / "out", **OPTIONS)
    with pytest.raises(TypeError, match="temprature"):
        train_recipe(library, made[0], weights=weights_path, temprature=1, **OPTIONS)
    one = MatchedPhotos(
        ("elsewhere.jpg",),
        np.array([[0, 0]]),
        np.ones((1, 4), np.float32),
        np.ones(1, np.float32),
        np.array([0, 1]),
        np.zeros((1, 4), np.float32),
    )
    one.save(tmp_path / "matched.npz")
    with pytest.raises(DatasetError, match="of other photos"):
        train_recipe(library, tmp_path, weights=weights_path, **OPTIONS)


def test_what_was_matched_otherwise_is_refused(made, library, weights_path, tmp_path):
    folder, written = made
    before = [path.read_bytes() for path in written]
    for other, message in (
        ({"matchers": (CONGAS,)}, r"was matched with matchers=.*min_inliers=6.*got .*=15"),
        ({"random_state": 1}, r"matched\.npz was matched with random_state=0; got 1: go on with"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train_recipe(library, folder, weights=weights_path, **{**OPTIONS, **other})
    assert [path.read_bytes() for path in written] == before
    matched = MatchedPhotos.load(folder / "matched.npz")
    dataclasses.replace(matched, key=None).save(tmp_path / "matched.npz")
    with pytest.raises(CheckpointError, match="does not say what it was matched with"):
        train_recipe(library, tmp_path, weights=weights_path, **OPTIONS)


def test_a_fold_without_matched_pairs_is_said(made, library, caplog):
    matched = MatchedPhotos.load(made[0] / "matched.npz")
    scenes = PhotoFolder.read(library).labels
    rest = photos_from_library_folder(
        library, without_scenes={scenes[name] for name in matched.names}, distractors="all"
    )
    assert recipe_module._of_these("fold-0", matched, rest) is None
    assert "fold-0: training on warped copies alone, without attention: none of" in caplog.text
    assert recipe_module._of_these("all", matched, photos_from_library_folder(library)) is matched


def test_from_the_command_line(made, library, weights_path, tmp_path, capsys):
    matched = MatchedPhotos.load(made[0] / "matched.npz")
    key = {**matched.key, "matchers": [repr(matcher) for matcher in MATCHERS]}
    dataclasses.replace(matched, key=key).save(tmp_path / "matched.npz")
    command = ["train", "recipe", library, "--out", tmp_path, "--weights", weights_path]
    command += "--folds 0 --components 6 --negatives 50 --side 64 --max-side 96 --epochs 1".split()
    command += "--batch-size 4 --learning-rate 1e-4 --precision fp32 --threads 1".split()
    assert cli.main([*map(str, command), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    weights = load_weights(tmp_path / "weights.safetensors")
    assert f"tensors {weights.sha256}" in out
    assert weights.recipe["mode"] == "contrastive" and weights.recipe["optimization"]["epochs"] == 1
