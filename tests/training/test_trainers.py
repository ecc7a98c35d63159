from __future__ import annotations

import csv
import dataclasses
import errno
import shutil

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from training.small import OPTIMIZATION, RUN, VIEWS, same, stop_after

from delfsearch import DelfExtractor
from delfsearch.errors import DatasetError, WeightsError
from delfsearch.extraction.weights import load_weights
from delfsearch.training import (
    AttentionTrainer,
    CheckpointError,
    ContrastiveTrainer,
    DescriptorTrainer,
    JointTrainer,
    LabelledPhotos,
    Optimization,
    PairViews,
    ReductionTrainer,
    RunOptions,
    Views,
    photos_from_image_folder,
)
from delfsearch.training import results as results_module
from delfsearch.training.batches import PhotoBatches, Plan
from delfsearch.training.models import DescriptorModel
from delfsearch.training.photo_store import PhotoStore
from delfsearch.training.trunk import TrainableTrunk

OPTIONS = {"views": VIEWS, "optimization": OPTIMIZATION, "precision": "fp32", "run": RUN}


def test_attention_leaves_trunk_and_pca_bit_by_bit(weights_path, photos, tmp_path):
    trainer = AttentionTrainer(weights_path, output=tmp_path, **OPTIONS).fit(photos)
    before, after = load_weights(weights_path), load_weights(tmp_path / "weights.safetensors")
    assert same(before.tensors, after.tensors)
    assert all(np.array_equal(before.pca[name], after.pca[name]) for name in before.pca)
    assert not before.attention and len(after.attention) == 4
    assert same(trainer.weights_.attention, after.attention)
    assert after.sha256 == trainer.weights_.sha256
    started = AttentionTrainer(
        weights_path,
        views=VIEWS,
        optimization=dataclasses.replace(OPTIMIZATION, learning_rate=1e-12),
        precision="fp32",
        run=RUN,
    ).fit(photos)
    assert not same(started.weights_.attention, after.attention)  # it has learned something


def test_the_joint_trunk_is_the_descriptors_to_the_last_bit(weights_path, photos):
    joint = JointTrainer(weights_path, **OPTIONS).fit(photos)
    alone = DescriptorTrainer(weights_path, **OPTIONS).fit(photos)
    assert same(joint.weights_.tensors, alone.weights_.tensors)
    assert np.array_equal(joint.curves_["loss"], alone.curves_["loss"])
    assert not same(joint.weights_.tensors, load_weights(weights_path).tensors)
    assert joint.weights_.attention and not alone.weights_.attention
    assert {"attention_loss", "attention_accuracy"} <= joint.curves_.keys()


@pytest.mark.parametrize("trainer", [DescriptorTrainer, JointTrainer, ContrastiveTrainer])
def test_half_precision_beside_a_frozen_part(weights_path, photos, trainer):
    options = {**OPTIONS, "precision": "bf16", "trainable": "layer3"}
    if trainer is ContrastiveTrainer:
        options |= {"views": PairViews(side=64, max_side=80), "n_components": 6}
    trained = trainer(weights_path, **options).fit(photos)
    exact = trainer(weights_path, **{**options, "precision": "fp32"}).fit(photos)
    assert trained.curves_["loss"] == pytest.approx(exact.curves_["loss"], rel=0.1)
    assert not np.array_equal(trained.curves_["loss"], exact.curves_["loss"])


@pytest.mark.parametrize("trainable", ["layer3", "layer2+"])
@pytest.mark.parametrize("batch_norm", ["frozen", "trained"])
def test_what_is_frozen_stays_bit_by_bit(weights_path, photos, trainable, batch_norm):
    trainer = DescriptorTrainer(
        weights_path, trainable=trainable, batch_norm=batch_norm, **OPTIONS
    ).fit(photos)
    before = load_weights(weights_path).tensors
    moved = {n for n, t in trainer.weights_.tensors.items() if not torch.equal(t, before[n])}
    parts = {"layer3": ("layer3",), "layer2+": ("layer2", "layer3")}[trainable]
    may_move = {n for n in before if n.startswith(parts)}
    if batch_norm == "frozen":
        may_move -= {n for n in before if n.endswith(("running_mean", "running_var"))}
    assert moved == may_move


def test_training_lowers_the_loss(weights_path, photos):
    longer = Optimization(epochs=12, batch_size=12, learning_rate=5e-4, optimizer="adamw")
    trainer = DescriptorTrainer(
        weights_path,
        trainable="layer3",
        views=VIEWS,
        optimization=longer,
        precision="fp32",
        run=RUN,
    ).fit(photos)
    losses = trainer.curves_["loss"]
    assert losses[-3:].mean() < 0.7 * losses[:3].mean()
    assert trainer.curves_["accuracy"][-3:].mean() > 0.8


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_first_loss_is_smoothed_cross_entropy_written_out(weights_path, photos, smoothing):
    settings = dataclasses.replace(OPTIMIZATION, label_smoothing=smoothing)
    trainer = DescriptorTrainer(
        weights_path, views=VIEWS, optimization=settings, precision="fp32", run=RUN
    ).fit(photos)
    plan = Plan(photos.labels, batch_size=4, sampling="photos", random_state=0)
    store = PhotoStore([photos.file(i) for i in range(12)], [54] * 12)
    batch = PhotoBatches(plan, photos, store, VIEWS, random_state=0)(0)
    trunk = TrainableTrunk(load_weights(weights_path), trainable="all", batch_norm="frozen")
    with torch.no_grad():
        (logits,) = DescriptorModel(trunk, 3, random_state=0)(batch.inputs)
    shares = np.exp(logits.double().numpy())
    shares /= shares.sum(1, keepdims=True)
    target = np.full((4, 3), smoothing / 3)
    target[np.arange(4), batch.labels] += 1 - smoothing
    expected = -(target * np.log(shares)).sum(1).mean()
    assert trainer.curves_["loss"][0] == pytest.approx(expected, rel=1e-4)
    right = (shares.argmax(1) == batch.labels.numpy()).mean()
    assert trainer.curves_["accuracy"][0] == right


def test_weights_are_ready_for_extraction(weights_path, photos, tmp_path):
    trainer = JointTrainer(weights_path, head_batch_norm=True, **OPTIONS).fit(photos)
    path = trainer.save(tmp_path / "joint.safetensors")
    photo = photos.file(0)
    extractor = DelfExtractor(
        path, n_components=None, scales="1", precision="fp32", device="cpu", n_jobs=1
    )
    features = extractor.transform([photo])[0]
    assert len(features) and extractor.score_map(photo)[0].scores.min() > 0
    reduction = ReductionTrainer(
        path, n_components=5, n_photos=4, scales="1", precision="fp32", device="cpu", n_jobs=1
    ).fit(photos)
    reduced = reduction.save(tmp_path / "reduced.safetensors")
    extractor = DelfExtractor(
        reduced, n_components=5, scales="1", precision="fp32", device="cpu", n_jobs=1
    )
    again = extractor.transform([photo])[0]
    assert again.dimension == 5
    expected = reduction.pca_.transform(features.descriptors)
    np.testing.assert_allclose(again.descriptors, expected, atol=2e-5)
    assert same(load_weights(reduced).attention, trainer.weights_.attention)


def test_saved_weights_tell_where_they_come_from(weights_path, photos, tmp_path):
    trainer = DescriptorTrainer(weights_path, **OPTIONS).fit(photos)
    whole = load_weights(trainer.save(tmp_path / "whole.safetensors"))
    half = load_weights(trainer.save(tmp_path / "half.safetensors", half=True))
    before = load_weights(weights_path)
    for weights in (whole, half):
        assert weights.layout == before.layout and weights.input_std == before.input_std
        assert weights.provenance.startswith(before.provenance)
        assert "12 photos of 3 classes (image folder landmarks_clean)" in weights.provenance
        assert weights.recipe["optimization"]["epochs"] == 2
        assert weights.recipe["photos"]["fingerprint"] == photos.fingerprint()
        assert not weights.pca  # the old one does not fit the new features
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("whole", "half")]
    assert sizes[1] < 0.52 * sizes[0]
    kernel = "layer3.0.conv2.weight"
    torch.testing.assert_close(whole.tensors[kernel], half.tensors[kernel], rtol=1e-3, atol=1e-6)


def test_weights_that_cannot_be_written_are_written_by_the_next_run(
    weights_path, photos, tmp_path, monkeypatch
):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(results_module, "save_weights", full)
        with pytest.raises(CheckpointError, match="the last checkpoint is there"):
            AttentionTrainer(weights_path, output=tmp_path, **OPTIONS).fit(photos)
    trainer = AttentionTrainer(weights_path, output=tmp_path, **OPTIONS).fit(photos)
    written = load_weights(tmp_path / "weights.safetensors")
    assert same(written.attention, trainer.weights_.attention)


def test_epochs_are_logged(weights_path, photos, caplog):
    with caplog.at_level("INFO", logger="delfsearch"):
        trainer = AttentionTrainer(weights_path, **OPTIONS).fit(photos)
    last = trainer.curves_["loss"][3:].mean()
    assert "epoch 1 of 2" in caplog.text
    assert f"epoch 2 of 2: loss {last:.4f}" in caplog.text


@pytest.mark.parametrize("crops", [None, 2])
@pytest.mark.parametrize("how", ["ram", "none"])
def test_unreadable_photos_are_named_and_left_out(
    miniature, weights_path, tmp_path, caplog, how, crops
):
    shutil.copytree(miniature["training"] / "landmarks_clean", tmp_path / "photos")
    (tmp_path / "photos" / "000" / "1.jpg").write_bytes(b"no photo")
    (tmp_path / "photos" / "002" / "3.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    photos = photos_from_image_folder(tmp_path / "photos")
    runs = [
        AttentionTrainer(
            weights_path,
            output=tmp_path / "out",
            views=VIEWS,
            optimization=OPTIMIZATION,
            precision="fp32",
            cached_crops=crops,
            run=dataclasses.replace(RUN, keep_photos=keep),
        ).fit(photos)
        for keep in (how, "ram")  # the second time there is nothing left to do
    ]
    trainer = runs[0]
    assert runs[1].left_out_ == trainer.left_out_
    assert [path for path, _ in trainer.left_out_] == ["000/1.jpg", "002/3.jpg"]
    assert "left out 2 of 12 photos that cannot be read" in caplog.text
    assert "1.jpg" in caplog.text
    with (tmp_path / "out" / "left_out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == ["path", "000/1.jpg", "002/3.jpg"]
    assert trainer.n_steps_ == 6
    assert np.isfinite(trainer.curves_["loss"]).all()


def test_what_was_left_out_is_known_to_a_run_that_goes_on(
    miniature, weights_path, tmp_path, caplog
):
    shutil.copytree(miniature["training"] / "landmarks_clean", tmp_path / "photos")
    (tmp_path / "photos" / "000" / "1.jpg").write_bytes(b"no photo")
    photos = photos_from_image_folder(tmp_path / "photos")
    run = dataclasses.replace(RUN, keep_photos="none", checkpoint_every=1)
    output = tmp_path / "out"
    options = {**OPTIONS, "run": run, "output": output}
    whole = AttentionTrainer(weights_path, **{**options, "output": None}).fit(photos)
    assert [path for path, _ in whole.left_out_] == ["000/1.jpg"]
    with pytest.raises(KeyboardInterrupt):
        AttentionTrainer(weights_path, **options).fit(photos, progress=stop_after(5))
    # Readable by now, and left out all the same: half a run without it is none with it.
    shutil.copy(photos.file(2), photos.file(1))
    for _ in range(2):  # the second time there is nothing left to do
        trainer = AttentionTrainer(weights_path, **options).fit(photos)
        assert trainer.left_out_ == whole.left_out_
        assert "000/1.jpg" in (output / "left_out.csv").read_text()
        assert np.array_equal(trainer.curves_["loss"], whole.curves_["loss"])
    # A new run in the same folder leaves out what it cannot read itself.
    for old in output.glob("checkpoint-*"):
        shutil.rmtree(old)
    trainer = AttentionTrainer(weights_path, **options).fit(photos)
    assert not trainer.left_out_ and not (output / "left_out.csv").exists()


@pytest.mark.parametrize("keep", ["none", "ram"])
def test_a_set_without_readable_photos_is_refused(miniature, weights_path, tmp_path, keep):
    shutil.copytree(miniature["training"] / "landmarks_clean", tmp_path / "photos")
    for file in (tmp_path / "photos").rglob("*.jpg"):
        if file.parent.name != "001":
            file.write_bytes(b"")
    options = {**OPTIONS, "run": dataclasses.replace(RUN, keep_photos=keep)}
    photos = photos_from_image_folder(tmp_path / "photos")
    with pytest.raises(DatasetError, match="8 cannot be read, which leaves 4 of 1 classes"):
        DescriptorTrainer(weights_path, output=tmp_path / "out", **options).fit(photos)
    for file in (tmp_path / "photos").rglob("*.jpg"):
        file.unlink()
    with pytest.raises(DatasetError, match="12 cannot be read, which leaves 0 of 0 classes"):
        ContrastiveTrainer(weights_path, run=options["run"]).fit(photos)


def test_a_folder_that_cannot_be_one_is_refused_before_the_work(weights_path, photos, tmp_path):
    (tmp_path / "file").write_text("no folder")
    seen = []
    with pytest.raises(CheckpointError, match=r"output folder .*file cannot be made.*give another"):
        DescriptorTrainer(weights_path, output=tmp_path / "file", **OPTIONS).fit(
            photos, progress=lambda *what: seen.append(what)
        )
    assert not seen
    options = {**OPTIONS, "run": dataclasses.replace(RUN, tensorboard=True)}
    with pytest.raises(ValueError, match="tensorboard=True needs output"):
        DescriptorTrainer(weights_path, **options).fit(photos)


def test_a_list_that_cannot_be_written_is_said(weights_path, miniature, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    shutil.copytree(miniature["training"] / "landmarks_clean", tmp_path / "photos")
    (tmp_path / "photos" / "000" / "1.jpg").write_bytes(b"no photo")
    monkeypatch.setattr(results_module, "_write_left_out", full)
    with pytest.raises(CheckpointError, match=r"left_out\.csv cannot be written.*No space"):
        AttentionTrainer(weights_path, output=tmp_path / "out", **OPTIONS).fit(
            photos_from_image_folder(tmp_path / "photos")
        )


def test_leftovers_of_killed_writers_are_removed(weights_path, photos, tmp_path):
    (tmp_path / "checkpoint-00000003.part").mkdir(parents=True)
    (tmp_path / "checkpoint-00000003.part" / "state.safetensors").write_bytes(b"half")
    (tmp_path / "weights.safetensors.123.part").write_bytes(b"half")
    AttentionTrainer(weights_path, output=tmp_path, **OPTIONS).fit(photos)
    assert not list(tmp_path.glob("*.part"))


def test_what_cannot_be_trained_is_refused_at_once(weights_path, photos, tmp_path):
    lonely = LabelledPhotos.from_names(["a.jpg", "b.jpg", "c.jpg"], ["x", "x", "y"])
    with pytest.raises(DatasetError, match=r"fewer than min_photos=2 photos: 'y' \(1\)"):
        DescriptorTrainer(weights_path).fit(lonely)
    with pytest.raises(TypeError, match="photos must be LabelledPhotos"):
        DescriptorTrainer(weights_path).fit(["a.jpg"])
    with pytest.raises(WeightsError):
        DescriptorTrainer(tmp_path / "absent.safetensors").fit(photos)
    for trainer, message in (
        (DescriptorTrainer(weights_path, trainable="layer4"), "trainable"),
        (DescriptorTrainer(weights_path, batch_norm="half"), "batch_norm"),
        (DescriptorTrainer(weights_path, random_state=-1), "random_state"),
        (DescriptorTrainer(weights_path, precision="fp8"), "precision"),
        (
            DescriptorTrainer(weights_path, precision="fp16", run=RUN),
            "needs a CUDA GPU; got device 'cpu'",
        ),
        (DescriptorTrainer(weights_path, views=Views(crop_side=999)), "resize_side"),
        (DescriptorTrainer(weights_path, optimization=Optimization(epochs=0)), "epochs"),
        (DescriptorTrainer(weights_path, run=RunOptions(keep_photos="x")), "keep_photos"),
        (AttentionTrainer(weights_path, gammas=(0.5, 1.5)), "gammas"),
        (AttentionTrainer(weights_path, gammas=()), "gammas"),
        (AttentionTrainer(weights_path, gammas="often"), "gammas"),
        (AttentionTrainer(weights_path, pooling="max"), "pooling"),
        (AttentionTrainer(weights_path, cached_crops=1, output=tmp_path), "cached_crops"),
        (AttentionTrainer(weights_path, cached_crops=2), "needs output"),
        (JointTrainer(weights_path, attention_factor=0), "attention_factor"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.fit(photos)
    with pytest.raises(TypeError, match="random_state"):
        DescriptorTrainer(weights_path, random_state=None).fit(photos)


@pytest.mark.parametrize(
    "kind", [DescriptorTrainer, JointTrainer, AttentionTrainer, ReductionTrainer]
)
def test_trainers_are_estimators(kind, tmp_path):
    trainer = kind("some-weights", random_state=3)
    assert clone(trainer).get_params() == trainer.get_params()
    assert trainer.set_params(precision="fp32").precision == "fp32"
    with pytest.raises(NotFittedError):
        trainer.save(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="must end in"):
        trainer.save(tmp_path / "x.pth")


def test_bf16_trains_where_the_processor_has_it(weights_path, photos):
    from delfsearch.extraction.runtime import processor_has_bf16

    options = {**OPTIONS, "precision": "bf16"}
    trainer = DescriptorTrainer(weights_path, trainable="layer3", **options)
    if not processor_has_bf16():
        with pytest.raises(ValueError, match="precision='bf16' needs"):
            trainer.fit(photos)
        return
    losses = trainer.fit(photos).curves_["loss"]
    exact = DescriptorTrainer(weights_path, trainable="layer3", **OPTIONS).fit(photos)
    assert np.abs(losses[0] - exact.curves_["loss"][0]) < 0.05
    assert trainer.weights_.recipe["precision"] == "bfloat16"


def test_varied_photos_are_kept_larger_and_shown_strongly(weights_path, photos):
    varied = LabelledPhotos(
        photos.paths, photos.labels, photos.classes, root=photos.root, varied=np.ones(12, bool)
    )
    one = DescriptorTrainer(weights_path, trainable="layer3", **OPTIONS).fit(varied)
    strong = {**OPTIONS, "views": dataclasses.replace(VIEWS, strong=True)}
    other = DescriptorTrainer(weights_path, trainable="layer3", **strong).fit(photos)
    plain = DescriptorTrainer(weights_path, trainable="layer3", **OPTIONS).fit(photos)
    assert np.array_equal(one.curves_["loss"], other.curves_["loss"])
    assert not np.array_equal(one.curves_["loss"], plain.curves_["loss"])
