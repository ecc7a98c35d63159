"""Extractors as folders, and from anybody's files."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from tensor_bundles import write_bundle

from delfsearch import DelfExtractor, WeightsError
from delfsearch.extraction import weights as weights_module
from delfsearch.extraction.weights import load_weights, save_weights
from delfsearch.extraction.weights_conversion import convert_weights

from .conftest import META, attention_tensors, pca_arrays, texture
from .tensorflow_networks import head_variables, slim_variables

SETTINGS = {
    "scales": (0.5, 1.0),
    "max_features": 40,
    "n_components": 12,
    "precision": "fp32",
    "device": "cpu",
    "n_jobs": 1,
}
PHOTOS = [texture(96, 80, seed) for seed in range(3)]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a network connection was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(weights_module, "fetch_archive", refuse)


def features_of(extractor):
    return [
        b"".join(
            getattr(f, name).tobytes()
            for name in ("keypoints_xy", "descriptors", "scores", "scales")
        )
        for f in extractor.transform(PHOTOS)
    ]


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("fitted", [False, True])
def test_round_trip(full_weights_path, tmp_path, no_network, fitted, whiten):
    extractor = DelfExtractor(full_weights_path, whiten=whiten, score_threshold=0.01, **SETTINGS)
    if fitted:
        extractor.fit(PHOTOS)
    folder = tmp_path / "Ordner mit Leerzeichen"
    extractor.save_pretrained(folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    again = DelfExtractor.from_pretrained(folder, device="cpu", n_jobs=1)
    assert features_of(again) == features_of(extractor)
    kept = {"scales", "max_features", "n_components", "whiten", "score_threshold", "precision"}
    for name in kept:
        assert getattr(again, name) == getattr(extractor, name)
    # And once more from there: nothing is rounded on the way.
    again.save_pretrained(tmp_path / "second")
    models = [folder / "model.safetensors", tmp_path / "second/model.safetensors"]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_half_precision_folder(full_weights_path, tmp_path):
    extractor = DelfExtractor(full_weights_path, **SETTINGS)
    extractor.save_pretrained(tmp_path / "half", dtype="float16")
    extractor.save_pretrained(tmp_path / "whole")
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("half", "whole")]
    assert sizes[0] < 0.51 * sizes[1]
    ours = extractor.transform(PHOTOS)
    for mine, theirs in zip(
        ours, DelfExtractor.from_pretrained(tmp_path / "half", device="cpu").transform(PHOTOS)
    ):
        assert len(mine.scores) == len(theirs.scores)
        assert np.sort(theirs.scores) == pytest.approx(np.sort(mine.scores), rel=0.02)


def test_the_card_says_what_matters(full_weights_path, tmp_path):
    folder = tmp_path / "model"
    DelfExtractor(full_weights_path, **SETTINGS).save_pretrained(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for words in (
        "random numbers",  # the provenance
        "## Licence\nnone",
        "291 px, stride 16, padding 145",
        "(123.68, 116.779, 103.939)",
        "library_name: delfsearch",
        "16 components",
        config["weights_sha256"],
    ):
        assert words in card
    assert set(config["extractor"]).isdisjoint({"weights", "device", "n_jobs", "verbose"})
    recipe = {**META, "recipe": {"epochs": 3}}
    save_weights(tmp_path / "w.safetensors", load_weights(full_weights_path).to_arrays(), recipe)
    DelfExtractor(tmp_path / "w.safetensors", **SETTINGS).save_pretrained(folder)
    assert '"epochs": 3' in (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_counts_the_photos_and_the_metadata_name_them(full_weights_path, tmp_path):
    photos = [f"scenes/a rather long name of a scene/{i:04}.jpg" for i in range(1500)]
    before = {"mode": "contrastive", "trained_photos": photos, "scales": [0.25, 0.5, 1.0]}
    meta = {
        **META,
        "score_meaning": "share of inliers",
        "recipe": {"before": before, "trained_photos": photos},
    }
    path, folder = tmp_path / "w.safetensors", tmp_path / "model"
    save_weights(path, load_weights(full_weights_path).to_arrays(), meta)
    DelfExtractor(path, **SETTINGS).save_pretrained(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert len(card) < 4000 and "0001.jpg" not in card
    assert card.count('"trained_photos": "1500 entries"') == 2 and "0.25" in card
    assert "| score | attention: share of inliers |" in card
    assert "metadata of `model.safetensors`" in card
    assert load_weights(folder).recipe == meta["recipe"]
    assert load_weights(folder).score_meaning == "share of inliers"


def test_from_weights_files(full_weights_path, tmp_path, tensors, no_network):
    from_file = DelfExtractor.from_pretrained(full_weights_path, **SETTINGS)
    assert features_of(from_file) == features_of(DelfExtractor(full_weights_path, **SETTINGS))
    prefix = write_bundle(tmp_path / "tf/model", slim_variables(tensors, head_variables()))
    official = DelfExtractor.from_pretrained(prefix, **{**SETTINGS, "n_components": None})
    assert official.transform(PHOTOS[:1])[0].descriptors.shape[1] == 1024
    with pytest.raises(NotFittedError, match="come without a PCA"):
        DelfExtractor.from_pretrained(prefix, **SETTINGS).transform(PHOTOS)
    # A folder with our model file alone.
    convert_weights(full_weights_path, tmp_path / "bare/model.safetensors")
    bare = DelfExtractor.from_pretrained(tmp_path / "bare", **SETTINGS)
    assert features_of(bare) == features_of(from_file)


def test_overrides(full_weights_path, tmp_path):
    DelfExtractor(full_weights_path, **SETTINGS).save_pretrained(tmp_path / "m")
    other = DelfExtractor.from_pretrained(tmp_path / "m", max_features=7, n_components=3, n_jobs=1)
    features = other.transform(PHOTOS[:1])[0]
    assert features.descriptors.shape == (7, 3) and other.scales == (0.5, 1.0)
    with pytest.raises(TypeError, match="weights cannot be overridden"):
        DelfExtractor.from_pretrained(tmp_path / "m", weights="other")
    with pytest.raises(ValueError, match="unknown parameter 'colour'"):
        DelfExtractor.from_pretrained(tmp_path / "m", colour=1)


def test_nothing_is_fetched(no_network, tmp_path):
    with pytest.raises(WeightsError, match="Nothing is downloaded"):
        DelfExtractor.from_pretrained("somebody/delf-on-the-hub")
    with pytest.raises(WeightsError, match="not in the cache, and from_pretrained fetches nothing"):
        DelfExtractor.from_pretrained("resnet50-imagenet")


def test_folders_that_do_not_fit(full_weights_path, weights_path, tmp_path):
    folder = tmp_path / "m"
    DelfExtractor(full_weights_path, **SETTINGS).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())

    def refuse(change, words):
        (folder / "config.json").write_text(
            change if isinstance(change, str) else json.dumps({**config, **change})
        )
        with pytest.raises(WeightsError, match=words):
            DelfExtractor.from_pretrained(folder)

    refuse("{", "not readable JSON")
    refuse({"library": "timm"}, "not the configuration of a DelfExtractor")
    refuse({"format": 2}, "has the format 2, this version reads 1: update")
    refuse({"extractor": None}, "lacks 'extractor'")
    refuse({"weights_sha256": "0" * 64}, "have sha256 .*, but")
    (folder / "config.json").write_text(json.dumps(config))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        DelfExtractor.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        DelfExtractor.from_pretrained(folder)
    with pytest.raises(NotFittedError, match="come without a PCA"):
        DelfExtractor(weights_path, **SETTINGS).save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="got the file"):
        DelfExtractor(full_weights_path, **SETTINGS).save_pretrained(weights_path)


def test_a_pca_without_variances_does_not_whiten(tmp_path, tensors):
    pca = {**pca_arrays(), "pca.explained_variance": np.zeros(16, np.float32)}
    save_weights(tmp_path / "w.safetensors", {**tensors, **pca}, META)
    extractor = DelfExtractor(tmp_path / "w.safetensors", **SETTINGS)
    assert len(extractor.transform(PHOTOS)) == 3
    with pytest.raises(WeightsError, match="without variances, which cannot whiten"):
        extractor.set_params(whiten=True).transform(PHOTOS)


def test_conversion(full_weights_path, tmp_path, tensors):
    torch.save({k: torch.from_numpy(a) for k, a in tensors.items()}, tmp_path / "w.pth")
    converted = convert_weights(
        tmp_path / "w.pth",
        tmp_path / "new/w.safetensors",
        dtype="bfloat16",
        layout="keras",
        bn_eps=1e-3,
        input_mean=(1, 2, 3),
        input_std=(4, 5, 6),
        score_scale=0.5,
        provenance="mine",
        licence="MIT",
    )
    assert converted.to_meta() == {
        "layout": "keras",
        "bn_eps": 1e-3,
        "input_mean": [1.0, 2.0, 3.0],
        "input_std": [4.0, 5.0, 6.0],
        "score_scale": 0.5,
        "score_meaning": "",
        "provenance": "mine",
        "licence": "MIT",
        "recipe": {},
    }
    again = convert_weights(full_weights_path, tmp_path / "same.safetensors")
    original = load_weights(full_weights_path)
    assert again.sha256 == original.sha256 and again.to_meta() == original.to_meta()
    # A score of another scale no longer means what it meant.
    told = load_weights(full_weights_path)
    meaning = {**told.to_meta(), "score_meaning": "share of inliers"}
    save_weights(tmp_path / "told.safetensors", told.to_arrays(), meaning)
    again = convert_weights(tmp_path / "told.safetensors", tmp_path / "same.safetensors")
    assert again.score_meaning == "share of inliers"
    for scale, left in ((told.score_scale, "share of inliers"), (0.5, "")):
        target = tmp_path / "scaled.safetensors"
        scaled = convert_weights(tmp_path / "told.safetensors", target, score_scale=scale)
        assert scaled.score_meaning == left
    with pytest.raises(ValueError, match=r"target must end in \.safetensors"):
        convert_weights(full_weights_path, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="score_scale must be 1 positive"):
        convert_weights(full_weights_path, tmp_path / "no.safetensors", score_scale=0)
    assert not (tmp_path / "no.safetensors").exists()
    assert attention_tensors().keys() <= again.to_arrays().keys()
