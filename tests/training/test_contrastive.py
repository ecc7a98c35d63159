from __future__ import annotations

import dataclasses
import errno

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training.small import RUN, same, save_small_weights, stop_after

from delfsearch import DelfExtractor
from delfsearch.errors import DatasetError
from delfsearch.extraction.weights import load_weights
from delfsearch.training import (
    CheckpointError,
    ContrastiveTrainer,
    LabelledPhotos,
    MatchedPhotos,
    Optimization,
    PairViews,
)
from delfsearch.training.contrastive_model import (
    ContrastiveModel,
    Reduction,
    first_reduction,
)
from delfsearch.training.trunk import TrainableTrunk

VIEWS = PairViews(side=64, max_side=96)
OPTIMIZATION = Optimization(
    epochs=2, batch_size=4, optimizer="adamw", learning_rate=1e-4, clip_norm=5.0
)
OPTIONS = {
    "views": VIEWS,
    "optimization": OPTIMIZATION,
    "precision": "fp32",
    "run": RUN,
    "n_components": 6,
    "n_negatives": 300,
}


def matched_of(photos: LabelledPhotos, rows=((0, 1), (4, 5))) -> MatchedPhotos:
    rng = np.random.default_rng(0)
    points = rng.uniform(5, 55, (30 * len(rows), 4)).astype(np.float32)
    return MatchedPhotos(
        photos.paths,
        np.array(rows, np.int64),
        np.tile(np.float32([80, 64, 80, 64]), (len(rows), 1)),
        np.ones(len(rows), np.float32),
        np.arange(len(rows) + 1) * 30,
        points,
    )


@pytest.fixture(scope="module")
def model(weights_path) -> ContrastiveModel:
    weights = load_weights(weights_path)
    trunk = TrainableTrunk(weights, trainable="layer3", batch_norm="frozen")
    torch.manual_seed(0)
    reduction = Reduction(torch.rand(1024) * 0.02, torch.randn(6, 1024))
    return ContrastiveModel(
        trunk, reduction, side=64, n_negatives=300, temperature=0.1, exclusion=1.5
    )


def slow_loss(model, views, points, pair_of, classes, queue, queue_classes):
    """The definition, a point at a time."""
    maps = model.trunk(views).detach().double().numpy()
    b = len(classes)
    reduction = model.reduction
    mean, components = (t.detach().double().numpy() for t in (reduction.mean, reduction.components))

    def descriptor(view, xy):
        cells = (np.asarray(xy, float) - model._offset) / model._stride
        cells = cells.clip(0, maps.shape[-1] - 1)
        low = np.minimum(np.floor(cells).astype(int), maps.shape[-1] - 2)
        dx, dy = cells - low
        x, y = low
        f = maps[view]
        v = (1 - dy) * ((1 - dx) * f[:, y, x] + dx * f[:, y, x + 1]) + dy * (
            (1 - dx) * f[:, y + 1, x] + dx * f[:, y + 1, x + 1]
        )
        z = components @ (v / np.linalg.norm(v) - mean)
        return z / np.linalg.norm(z)

    first = [descriptor(p, xy[:2]) for p, xy in zip(pair_of, points)]
    second = [descriptor(b + p, xy[2:]) for p, xy in zip(pair_of, points)]
    total, right = 0.0, 0.0
    present = sorted(set(pair_of))
    for anchors, others, xy in ((first, second, points[:, 2:]), (second, first, points[:, :2])):
        for p in present:
            mine = [i for i in range(len(points)) if pair_of[i] == p]
            for i in mine:
                logits = [anchors[i] @ others[i] / 0.1]
                for j in range(len(points)):
                    near = np.linalg.norm(xy[i] - xy[j]) < 1.5 * 16
                    if j == i or (classes[p] == classes[pair_of[j]] and (pair_of[j] != p or near)):
                        continue
                    logits.append(anchors[i] @ others[j] / 0.1)
                for z, c in zip(queue, queue_classes):
                    if c >= 0 and c not in classes:
                        logits.append(anchors[i] @ z / 0.1)
                logits = np.array(logits)
                loss = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[0]
                total += loss / len(mine) / len(present) / 2
                right += (logits.argmax() == 0) / len(mine) / len(present) / 2
    return total, right


def test_the_loss_is_what_it_is_said_to_be(model):
    rng = np.random.default_rng(1)
    views = torch.from_numpy(rng.integers(0, 256, (6, 64, 64, 3), np.uint8))
    points = rng.uniform(8, 56, (14, 4)).astype(np.float32)
    pair_of = np.array([0] * 5 + [2] * 9)
    classes = np.array([3, 3, 7])
    queue = F.normalize(torch.from_numpy(rng.standard_normal((300, 6))), dim=1).float()
    queue_classes = torch.from_numpy(rng.integers(-1, 9, 300))
    model.queue.copy_(queue)
    model.queue_classes.copy_(queue_classes)
    model.eval()
    loss, accuracy = model(views, *map(torch.from_numpy, (points, pair_of, classes)))
    expected = slow_loss(
        model, views, points, pair_of, classes, queue.double().numpy(), queue_classes.numpy()
    )
    assert float(loss.detach()) == pytest.approx(expected[0], rel=1e-4)
    assert float(accuracy) == pytest.approx(expected[1], abs=1e-6)
    assert torch.equal(model.queue, queue)  # only training changes it


def test_the_queue_takes_the_newest_and_loses_the_oldest(model):
    rng = np.random.default_rng(2)
    model.queue.copy_(torch.full((300, 6), 5.0))
    model.queue_classes.fill_(8)
    model.train()
    views = torch.from_numpy(rng.integers(0, 256, (2, 64, 64, 3), np.uint8))
    points = torch.from_numpy(rng.uniform(8, 56, (10, 4)).astype(np.float32))
    model(views, points, torch.zeros(10, dtype=torch.long), torch.tensor([2]))
    assert (model.queue_classes[:10] == 2).all() and (model.queue_classes[10:] == 8).all()
    assert torch.allclose(model.queue[:10].norm(dim=1), torch.ones(10), atol=1e-5)
    assert (model.queue[10:] == 5.0).all()


def test_a_batch_without_points_has_no_loss_and_no_gradient(model):
    views = torch.zeros((2, 64, 64, 3), dtype=torch.uint8)
    none = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.long)
    loss, accuracy = model(views, *none, torch.tensor([0]))
    loss.backward()
    assert float(loss.detach()) == 0 and float(accuracy) == 0
    gradients = [p.grad for p in model.trunk.parameters() if p.grad is not None]
    assert gradients and all(not g.any() for g in gradients)
    model.zero_grad()


def test_turning_the_projection_changes_no_distance_and_orders_the_components(model):
    rng = np.random.default_rng(3)
    stretch = torch.from_numpy(np.diag([3.0, 0.1, 1.0, 2.0, 0.5, 0.2])).float()
    model.queue.copy_(
        F.normalize(torch.from_numpy(rng.standard_normal((300, 6))).float() @ stretch)
    )
    model.queue_classes.fill_(1)
    turned = model.reduction_tensors()
    x = torch.from_numpy(rng.random((20, 1024)).astype(np.float32))
    before = model.reduction(x).detach()
    after = Reduction(turned["pca.mean"], turned["pca.components"])(x).detach()
    assert torch.allclose(before @ before.T, after @ after.T, atol=1e-5)
    variances = turned["pca.explained_variance"]
    assert (variances[:-1] >= variances[1:]).all() and variances[0] > 2 * variances[-1]


def test_training_leaves_what_is_frozen_and_gives_weights_that_extract(
    weights_path, photos, tmp_path
):
    trainer = ContrastiveTrainer(
        weights_path, output=tmp_path, matched=matched_of(photos), **OPTIONS
    ).fit(photos)
    before, after = load_weights(weights_path), load_weights(tmp_path / "weights.safetensors")
    moved = {n for n, t in after.tensors.items() if not torch.equal(t, before.tensors[n])}
    assert moved and all(name.startswith("layer3") for name in moved)
    assert after.pca["pca.components"].shape == (6, 1024) and not after.attention
    assert after.recipe["mode"] == "contrastive" and after.recipe["n_negatives"] == 300
    assert trainer.n_steps_ == 6 and np.isfinite(trainer.curves_["loss"]).all()
    extractor = DelfExtractor(
        tmp_path / "weights.safetensors", n_components=6, scales=(1.0,), precision="fp32"
    )
    features = extractor.transform([photos.file(0)])[0]
    assert features.descriptors.shape[1] == 6


def test_training_lowers_the_loss(weights_path, photos):
    longer = dataclasses.replace(OPTIMIZATION, epochs=14, learning_rate=1e-3, batch_size=12)
    gentle = dataclasses.replace(
        VIEWS, colour=0.0, zoom=1.1, turn=3.0, corner_shift=0.03, shift=0.05
    )
    options = {**OPTIONS, "optimization": longer, "n_negatives": 0, "views": gentle}
    losses = ContrastiveTrainer(weights_path, **options).fit(photos).curves_["loss"]
    assert losses[-3:].mean() < 0.8 * losses[:3].mean()


def test_a_run_that_stopped_goes_on_to_the_last_bit(weights_path, photos, tmp_path):
    options = {**OPTIONS, "matched": matched_of(photos)}
    whole = ContrastiveTrainer(weights_path, output=tmp_path / "whole", **options).fit(photos)
    for stop in (1, 4):
        folder = tmp_path / str(stop)
        run = dataclasses.replace(RUN, checkpoint_every=1)
        parts = {**options, "run": run}
        with pytest.raises(KeyboardInterrupt):
            ContrastiveTrainer(weights_path, output=folder, **parts).fit(
                photos, progress=stop_after(stop)
            )
        gone_on = ContrastiveTrainer(weights_path, output=folder, **parts).fit(photos)
        assert same(whole.weights_.tensors, gone_on.weights_.tensors)
        assert all(
            np.array_equal(whole.weights_.pca[name], gone_on.weights_.pca[name])
            for name in whole.weights_.pca
        )
        assert np.array_equal(whole.curves_["loss"], gone_on.curves_["loss"])


def test_weights_without_a_pca_begin_with_that_of_the_first_batch(photos, tmp_path):
    path = save_small_weights(tmp_path / "bare.safetensors")
    options = {**OPTIONS, "reduction_factor": 0.0}
    trainer = ContrastiveTrainer(path, **options).fit(photos)
    components = torch.from_numpy(trainer.weights_.pca["pca.components"])
    assert torch.allclose(components @ components.T, torch.eye(6), atol=1e-4)
    rng = np.random.default_rng(0)
    X = torch.from_numpy(rng.random((50, 1024)).astype(np.float32))
    mean, first = first_reduction(X, 5)
    rows = (F.normalize(X.double(), dim=1) - mean.double()).numpy()
    _, _, right = np.linalg.svd(rows, full_matrices=False)
    assert np.allclose(np.abs((first.double().numpy() * right[:5]).sum(1)), 1, atol=1e-4)


@pytest.mark.parametrize("n_negatives", [0, 10])
def test_few_negatives_leave_the_components_in_order(weights_path, photos, n_negatives):
    rng = np.random.default_rng(1)
    views = torch.from_numpy(rng.integers(0, 256, (6, 64, 64, 3), np.uint8))
    points = torch.from_numpy(rng.uniform(8, 56, (40, 4)).astype(np.float32))
    pair_of = torch.from_numpy(np.repeat([0, 1, 2], [10, 10, 20]))
    trunk = TrainableTrunk(load_weights(weights_path), trainable="layer3", batch_norm="frozen")
    torch.manual_seed(0)
    reduction = Reduction(torch.rand(1024) * 0.02, torch.randn(6, 1024))
    few, none = (
        ContrastiveModel(
            trunk, reduction, side=64, n_negatives=n, temperature=0.1, exclusion=1.5
        ).train()
        for n in (n_negatives, 0)
    )
    for step in range(3):
        classes = torch.arange(3) + 3 * step
        losses = [float(m(views, points, pair_of, classes)[0].detach()) for m in (few, none)]
        # What is kept for the axes alone is no negative.
        assert (losses[0] > losses[1]) == bool(step and n_negatives)
        assert losses[0] == losses[1] or (step and n_negatives)
    turned = few.reduction_tensors()
    variances = turned["pca.explained_variance"]
    assert variances.min() > 0 and (variances[:-1] >= variances[1:]).all()


def test_matched_photos_of_other_photos_are_refused(weights_path, photos):
    other = dataclasses.replace(matched_of(photos), names=tuple("abcdefghijkl"))
    with pytest.raises(DatasetError, match="none of 2 matched pairs is of the 12 photos"):
        ContrastiveTrainer(weights_path, **OPTIONS, matched=other).fit(photos)


def test_one_class_will_do_whether_or_not_all_of_it_can_be_read(weights_path, photos, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    files = [*(str(photos.file(i)) for i in range(3)), str(tmp_path / "broken.jpg")]
    one = {**OPTIONS, "optimization": dataclasses.replace(OPTIMIZATION, epochs=1)}
    for n in (3, 4):
        alike = LabelledPhotos.from_names(files[:n], ["one"] * n)
        trainer = ContrastiveTrainer(weights_path, **one).fit(alike)
        assert [path for path, _ in trainer.left_out_] == files[3:n]
    alike = LabelledPhotos.from_names(files[2:], ["one"] * 2)
    with pytest.raises(DatasetError, match="at least two readable photos; of 2 photos 1 cannot"):
        ContrastiveTrainer(weights_path, **one).fit(alike)


def test_photos_of_one_class_each_and_unreadable_ones_do(weights_path, photos, tmp_path):
    names = [f"class {i}" for i in range(len(photos))]
    files = [str(photos.file(i)) for i in range(len(photos))]
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    alone = LabelledPhotos.from_names([*files, str(tmp_path / "broken.jpg")], [*names, "broken"])
    trainer = ContrastiveTrainer(weights_path, **OPTIONS).fit(alone)
    assert [path for path, _ in trainer.left_out_] == [str(tmp_path / "broken.jpg")]
    with pytest.raises(DatasetError, match="at least two photos; got 1"):
        ContrastiveTrainer(weights_path, **OPTIONS).fit(alone.select([0]))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"matched_share": 1.5}, "matched_share"),
        ({"n_components": 0}, "n_components"),
        ({"n_negatives": -1}, "n_negatives"),
        ({"trainable": "layer9"}, "trainable"),
        ({"matched": "pairs.npz"}, "matched must be MatchedPhotos"),
    ],
)
def test_arguments_that_make_no_sense(weights_path, photos, wrong, error):
    with pytest.raises((ValueError, TypeError), match=error):
        ContrastiveTrainer(weights_path, **{**OPTIONS, **wrong}).fit(photos)


# -- matched photos -----------------------------------------------------------------------------


def test_matched_photos_come_back_from_disk(photos, tmp_path):
    matched = matched_of(photos)
    matched.save(tmp_path / "pairs.npz")
    found = MatchedPhotos.load(tmp_path / "pairs.npz")
    assert found.fingerprint() == matched.fingerprint() and len(found) == 2
    assert np.array_equal(found.points_of(1), matched.points_of(1))
    with pytest.raises(DatasetError, match="not there"):
        MatchedPhotos.load(tmp_path / "none.npz")
    data = (tmp_path / "pairs.npz").read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"PK" + data[40:]):
        (tmp_path / "bad.npz").write_bytes(damaged)
        with pytest.raises(DatasetError, match="must be matched photos"):
            MatchedPhotos.load(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        matched.save(tmp_path / "pairs.json")


def test_matched_photos_are_written_whole_or_not_at_all(photos, tmp_path, monkeypatch):
    matched = dataclasses.replace(matched_of(photos), key={"random_state": 3})
    path = tmp_path / "not" / "there" / "pairs.npz"
    matched.save(path)
    assert MatchedPhotos.load(path).key == {"random_state": 3}
    assert matched.fingerprint() == matched_of(photos).fingerprint()
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(CheckpointError, match=r"pairs\.npz .No space left"):
        matched.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["pairs.npz"]
    assert path.read_bytes() == before


def test_matched_photos_of_the_first_version_are_read(photos, tmp_path):
    matched = matched_of(photos)
    fields = ("pairs", "sizes", "zooms", "offsets", "points")
    arrays = {name: getattr(matched, name) for name in fields}
    np.savez(tmp_path / "old.npz", names=np.array(matched.names), **arrays)
    found = MatchedPhotos.load(tmp_path / "old.npz")
    assert found.fingerprint() == matched.fingerprint() and found.key is None


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"pairs": np.array([[0, 99], [4, 5]])}, "pairs must hold rows"),
        ({"offsets": np.array([0, 0, 60])}, "offsets must rise"),
        ({"zooms": np.zeros(2, np.float32)}, "positive"),
        ({"zooms": np.full(2, np.nan, np.float32)}, "zooms must be finite"),
        ({"sizes": np.ones((2, 3), np.float32)}, "sizes must have shape"),
    ],
)
def test_matched_photos_that_make_no_sense(photos, change, error):
    with pytest.raises(ValueError, match=error):
        dataclasses.replace(matched_of(photos), **change)
