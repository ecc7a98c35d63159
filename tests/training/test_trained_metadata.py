"""What trained weights say of themselves: licences and the meaning of the score."""

from __future__ import annotations

import dataclasses

import pytest
from training import test_inlier_attention as inlier
from training import test_recipe as recipe_tests
from training.small import OPTIMIZATION, RUN, VIEWS

from delfsearch import cli
from delfsearch.cli import matching_commands
from delfsearch.extraction.weights import load_weights, save_weights
from delfsearch.training import (
    AttentionTrainer,
    DescriptorTrainer,
    InlierAttentionTrainer,
    ReductionTrainer,
)
from delfsearch.training import recipe as recipe_module

OPTIONS = {
    "views": VIEWS,
    "optimization": dataclasses.replace(OPTIMIZATION, epochs=1),
    "precision": "fp32",
    "run": RUN,
}
halves = inlier.halves  # the fixture


def attention(weights, **options):
    return AttentionTrainer(weights, gammas=(1.0,), **OPTIONS, **options)


def test_licences_of_base_and_photos_are_named_not_inherited(weights_path, photos, tmp_path):
    before = load_weights(weights_path)
    trained = DescriptorTrainer(weights_path, trainable="layer3", output=tmp_path, **OPTIONS)
    trained.fit(photos, licence=" CC BY 4.0 ")
    first = load_weights(tmp_path / "weights.safetensors").licence
    begun = f"started from small.safetensors: {before.licence}"
    assert first == f"{begun}; photos trained on: CC BY 4.0"
    # The next step says where all began, and each set of photos once.
    path = tmp_path / "weights.safetensors"
    assert attention(path).fit(photos, licence="CC BY 4.0").weights_.licence == first
    silent = attention(path).fit(photos).weights_.licence
    assert silent == f"{first}; photos trained on: not stated"
    reduction = ReductionTrainer(path, n_components=4, n_photos=3, scales="1", n_jobs=1)
    assert reduction.fit(photos, licence="CC0").weights_.licence == (
        f"{first}; photos trained on: CC0"
    )


def test_licence_of_the_command_line_and_of_the_recipe(
    weights_path, miniature, tmp_path, monkeypatch
):
    given = {}

    def record(*arguments, **options):
        given.update(options)
        return []

    with monkeypatch.context() as patch:
        patch.setattr(recipe_module, "train_recipe", record)
        patch.setattr(matching_commands, "_ensure_weights_of", lambda matchers: None)
        command = ["train", "recipe", str(miniature["library"]), "--out", str(tmp_path)]
        command += ["--weights", str(weights_path), "--licence", "CC BY 4.0"]
        assert cli.main(command) == 0 and given["licence"] == "CC BY 4.0"
    written = recipe_module.train_recipe(
        miniature["library"],
        tmp_path / "recipe",
        weights=weights_path,
        licence="CC BY 4.0",
        **{**recipe_tests.OPTIONS, "n_folds": 0},
    )
    begun = f"started from small.safetensors: {load_weights(weights_path).licence}"
    assert load_weights(written[0]).licence == f"{begun}; photos trained on: CC BY 4.0"
    photos = str(miniature["training"] / "landmarks_clean")
    target = tmp_path / "reduced.safetensors"
    command = ["train", "reduction", photos, "--out", str(target), "--weights", str(weights_path)]
    command += ["--components", "4", "--sample", "3", "--threads", "1", "--licence", "CC0"]
    assert cli.main(command) == 0
    assert load_weights(target).licence == f"{begun}; photos trained on: CC0"


@pytest.mark.parametrize("licence", ["", "  ", 4])
def test_licence_must_be_words(weights_path, photos, licence):
    with pytest.raises(ValueError, match="licence must say in words"):
        attention(weights_path).fit(photos, licence=licence)


def test_training_ends_what_the_score_meant_before(weights_path, photos, tmp_path):
    before = load_weights(weights_path)
    path = tmp_path / "w.safetensors"
    save_weights(path, before.to_arrays(), before.to_meta() | {"score_meaning": "share of inliers"})
    assert load_weights(path).score_meaning == "share of inliers"
    assert attention(path).fit(photos).weights_.score_meaning == ""


def test_attention_by_inliers_says_what_its_score_means(weights_path, halves, tmp_path):
    matched = inlier.pairs_of(halves, inlier.ALL_PAIRS)
    trainer = InlierAttentionTrainer(weights_path, matched=matched, **inlier.OPTIONS)
    trainer.fit(halves, licence="CC0")
    assert trainer.weights_.licence.endswith("; photos trained on: CC0")
    again = load_weights(trainer.save(tmp_path / "w.safetensors"))
    assert again.score_meaning == trainer.weights_.score_meaning
    assert again.score_meaning.startswith(
        "-log(1 - p), p the estimated share of a photo's verified"
    )
