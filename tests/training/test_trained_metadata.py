"""What trained weights say of themselves: licences and the meaning of the score."""

from __future__ import annotations

import dataclasses

import pytest
from training import test_inlier_attention as inlier
from training.small import OPTIMIZATION, RUN, VIEWS

from delfsearch.extraction.weights import load_weights, save_weights
from delfsearch.training import AttentionTrainer, DescriptorTrainer, InlierAttentionTrainer

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
    trainer = InlierAttentionTrainer(weights_path, matched=matched, **inlier.OPTIONS).fit(halves)
    again = load_weights(trainer.save(tmp_path / "w.safetensors"))
    assert again.score_meaning == trainer.weights_.score_meaning
    assert again.score_meaning.startswith(
        "-log(1 - p), p the estimated share of a photo's verified"
    )
