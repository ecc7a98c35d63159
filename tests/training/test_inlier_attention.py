from __future__ import annotations

import collections
import dataclasses
import errno
import resource

import numpy as np
import pytest
import torch
from PIL import Image
from training.small import RUN, Apart, same, save_small_weights, stop_after

from delfsearch import DelfExtractor
from delfsearch.errors import DatasetError, WeightsError
from delfsearch.evaluation.selection import matched_cells
from delfsearch.extraction.weights import load_weights
from delfsearch.training import (
    CheckpointError,
    InlierAttentionTrainer,
    LabelledPhotos,
    MatchedPhotos,
    Optimization,
    photos_from_image_folder,
)
from delfsearch.training import inlier_attention as trainer_module
from delfsearch.training import matched_cells as cells_module
from delfsearch.training.inlier_attention import InlierHead, _logistic
from delfsearch.training.matched_cells import MatchedCells, all_cells_of, match_cells

OPTIONS = {
    "n_cells": 60,
    "min_inliers": 5,
    "optimization": Optimization(epochs=3, batch_size=2, optimizer="adamw", learning_rate=1e-3),
    "precision": "fp32",
    "run": RUN,
}


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> LabelledPhotos:
    """Two classes of three photos whose left half is the same and whose right half is not."""
    root = tmp_path_factory.mktemp("halves")
    rng = np.random.default_rng(3)
    for name in ("a", "b"):
        (root / name).mkdir()
        shared = _texture(rng, 96, 96)
        for i in range(3):
            photo = np.concatenate([shared, _texture(rng, 96, 96)], axis=1)
            Image.fromarray(photo).save(root / name / f"{i}.png")
    return photos_from_image_folder(root)


def _texture(rng, height, width):
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))


def pairs_of(photos: LabelledPhotos, pairs) -> MatchedPhotos:
    n = len(pairs)
    return MatchedPhotos(
        photos.paths,
        np.array(pairs, np.int64),
        np.tile(np.float32([192, 96, 192, 96]), (n, 1)),
        np.ones(n, np.float32),
        np.arange(n + 1),
        np.ones((n, 4), np.float32),
    )


ALL_PAIRS = ((0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5))


@pytest.fixture(scope="module")
def matched(halves) -> MatchedPhotos:
    return pairs_of(halves, ALL_PAIRS)


def extractor_of(weights_path, **options):
    return all_cells_of(
        weights_path, scales=(0.5, 1.0), precision="fp32", device="cpu", n_jobs=1, **options
    )


def cells_of(photos, pairs, weights_path, **options):
    options = {"n_cells": 500, "min_inliers": 5, "random_state": 0, **options}
    pca = load_weights(weights_path).pca
    return match_cells(photos, pairs, extractor_of(weights_path), pca, **options)


def test_shares_are_those_of_the_verified_pairs(halves, weights_path):
    pairs = [(0, 1), (0, 2), (3, 4), (0, 3)]
    found = cells_of(halves, pairs, weights_path)
    # Slowly: each pair by itself, with an extractor that reduces on its own.
    whole = DelfExtractor(
        weights_path,
        scales=(0.5, 1.0),
        score="l2",
        max_features=10**6,
        n_components=8,
        precision="fp32",
        n_jobs=1,
    )
    features = whole.transform([halves.file(row) for row in range(5)])
    # In the same order, which RANSAC draws by.
    features = [f[np.lexsort((*f.keypoints_xy.T, -f.scales))] for f in features]
    counts = {row: np.zeros(len(features[row])) for row in range(5)}
    n_pairs = dict.fromkeys(range(5), 0)
    for a, b in pairs:
        masks = matched_cells(features[a], features[b], min_inliers=5)
        if masks[0].any():
            for row, mask in zip((a, b), masks):
                counts[row] += mask
                n_pairs[row] += 1
    assert n_pairs[0] >= 2
    assert sorted(found.rows.tolist()) == [row for row in range(5) if n_pairs[row]]
    assert found.n_verified == sum(n_pairs.values()) / 2
    for row, cells, shares in zip(found.rows.tolist(), found.features, found.shares):
        n = len(features[row])
        assert (shares[:n] >= 0).all() and (shares[n:] == -1).all() and not cells[n:].any()
        expected = np.sort(counts[row] / n_pairs[row]).astype(np.float32)
        assert np.array_equal(np.sort(shares[:n]), expected)
        norms = np.linalg.norm(cells[:n].astype(np.float32), axis=1)
        assert np.allclose(np.sort(norms), np.sort(features[row].scores), rtol=2e-3)


def test_matched_cells_lie_where_photos_are_the_same(halves, weights_path):
    found = cells_of(halves, ALL_PAIRS, weights_path)
    extractor = extractor_of(weights_path)
    for row, shares in zip(found.rows.tolist(), found.shares):
        (features,) = extractor.transform([halves.file(row)])
        x, y = features.keypoints_xy.T
        x = x[np.lexsort((x, y, -features.scales))]
        shares = shares[: len(x)]
        assert shares[x < 70].mean() > 2 * shares[x > 120].mean()


def test_cells_are_kept_for_the_same_key_alone(halves, weights_path, tmp_path, monkeypatch):
    folder = tmp_path / "cells"
    options = {"n_cells": 30, "folder": folder}
    first = cells_of(halves, ALL_PAIRS, weights_path, key={"a": (1, 2)}, **options)
    free = cells_of(halves, ALL_PAIRS, weights_path, n_cells=30)
    for one, other in zip(first, free):
        assert np.array_equal(np.asarray(one, object), np.asarray(other, object))
    with monkeypatch.context() as patch:
        patch.setattr(cells_module, "_finished", None)
        again = cells_of(halves, ALL_PAIRS, weights_path, key={"a": (1, 2)}, **options)
        assert np.array_equal(first.shares, again.shares)
        assert np.array_equal(first.features, again.features)
        with pytest.raises(TypeError):
            cells_of(halves, ALL_PAIRS, weights_path, key={"a": 3}, **options)
    # A file that was cut short is made anew.
    (folder / "features.f2").unlink()  # first maps it
    (folder / "features.f2").write_bytes(b"\0" * 100)
    again = cells_of(halves, ALL_PAIRS, weights_path, key={"a": (1, 2)}, **options)
    assert np.array_equal(first.features, free.features) or len(again.rows) == len(free.rows)
    assert np.array_equal(again.features, free.features)


def test_the_space_for_cells_is_checked_before_they_are_made(
    halves, weights_path, tmp_path, monkeypatch, caplog
):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(cells_module.shutil, "disk_usage", lambda path: usage(0, 0, 10**5))
    monkeypatch.setattr(cells_module, "matched_cells", None)  # nothing is matched
    message = "cells of 6 photos take up to 0.0 GB in .*: free some space, or ask for fewer n_cells"
    with caplog.at_level("INFO"), pytest.raises(CheckpointError, match=message):
        cells_of(halves, ALL_PAIRS, weights_path, folder=tmp_path / "cells", n_cells=30)
    assert "cells of matched photos: up to 0.0 GB" in caplog.text
    assert not list((tmp_path / "cells").iterdir())


def test_what_hinders_writing_is_said_with_the_file(halves, weights_path, tmp_path, monkeypatch):
    options = {"folder": tmp_path / "cells", "n_cells": 30}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the system itself refuses
    try:
        message = (
            r"cells .*features\.f2 \(File too large\); free some space, or ask for fewer n_cells,"
        )
        with pytest.raises(CheckpointError, match=message):
            cells_of(halves, ALL_PAIRS, weights_path, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (tmp_path / "cells" / "shares.f4").mkdir()
    with pytest.raises(CheckpointError, match=r"\(.*\); put that right and run again") as caught:
        cells_of(halves, ALL_PAIRS, weights_path, **options)
    assert "space" not in str(caught.value)

    def stream(self, photos):
        raise OSError(errno.EMFILE, "Too many open files")
        yield

    # What hinders reading does not pass for that.
    (tmp_path / "cells" / "shares.f4").rmdir()
    monkeypatch.setattr(DelfExtractor, "stream", stream)
    with pytest.raises(OSError, match="Too many open files"):
        cells_of(halves, ALL_PAIRS, weights_path, **options)


def test_features_over_half_precision_are_refused(halves, tmp_path):
    gain = {"layer3.5.bn3.weight": np.full(1024, 1e8, np.float32)}
    path = save_small_weights(tmp_path / "huge.safetensors", **gain)
    message = r"weights '.*huge\.safetensors' go up to .*65504: use other weights"
    with pytest.raises(WeightsError, match=message):
        cells_of(halves, ALL_PAIRS, path)


@pytest.mark.parametrize(
    ("dtype", "precision"), [(None, "fp32"), (torch.float16, "fp32"), (torch.bfloat16, "bf16")]
)
def test_the_precision_of_the_cells(halves, matched, weights_path, monkeypatch, dtype, precision):
    class Seen(Exception):
        pass

    def seen(weights, **options):
        raise Seen(options["precision"])

    monkeypatch.setattr(trainer_module, "resolve_amp", lambda *_: dtype)
    monkeypatch.setattr(trainer_module, "all_cells_of", seen)
    with pytest.raises(Seen, match=precision):
        InlierAttentionTrainer(weights_path, matched=matched, **OPTIONS).fit(halves)


def test_processes_that_share_no_folder_match_nothing(
    halves, matched, weights_path, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer_module, "make_processes", lambda *_: Apart())
    monkeypatch.setattr(trainer_module, "match_cells", None)
    with pytest.raises(
        CheckpointError, match=r"do not find the same in .*cells \(process 0: nothing"
    ):
        InlierAttentionTrainer(weights_path, matched=matched, output=tmp_path, **OPTIONS).fit(
            halves
        )


def test_the_loss_is_the_cross_entropy_of_each_photo():
    head = InlierHead(random_state=0)
    rng = np.random.default_rng(0)
    cells = torch.from_numpy(rng.random((3, 20, 1024), np.float32)).half()
    shares = torch.from_numpy(rng.choice([0, 0, 0.5, 1], (3, 20)).astype(np.float32))
    loss, accuracy = head(cells, shares)
    losses, hits = [], []
    for photo, wanted in zip(cells, shares):
        logits = head.logits(photo).detach().double().numpy()
        chances = np.exp(logits) / np.exp(logits).sum()
        losses.append(-(wanted.numpy() / wanted.sum().item() * np.log(chances)).sum())
        n = int((wanted > 0).sum())
        best = np.argsort(-logits, kind="stable")[:n]
        hits.append((wanted.numpy()[best] > 0).mean())
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert accuracy.item() == pytest.approx(np.mean(hits))
    # What is no cell has no part in it, in value or in gradient.
    loss.backward()
    gradient = head.conv1.weight.grad.clone()
    head.zero_grad()
    more = torch.cat([cells, torch.full((3, 5, 1024), 9.0).half()], 1)
    padded, accuracy_padded = head(more, torch.cat([shares, torch.full((3, 5), -1.0)], 1))
    padded.backward()
    assert padded.item() == pytest.approx(loss.item(), rel=1e-5)
    assert accuracy_padded == accuracy
    assert torch.allclose(head.conv1.weight.grad, gradient, atol=1e-6)


def planted(n_photos=6, n_cells=80, seed=0) -> MatchedCells:
    """Cells of which those with a strong first half are matched, mostly."""
    rng = np.random.default_rng(seed)
    features = rng.random((n_photos, n_cells, 1024), np.float32)
    good = rng.random((n_photos, n_cells)) < 0.3
    features[good, :512] *= 1.3
    shares = np.where(good, rng.choice([0.5, 1.0], good.shape), 0.0).astype(np.float32)
    shares[:, -4:] = -1
    rows = np.arange(n_photos)
    return MatchedCells(rows, features.astype(np.float16), shares, n_photos // 2, ())


def test_a_head_learns_what_is_matched_and_says_its_share():
    cells, unseen = planted(), planted(seed=1)
    head = InlierHead(random_state=0)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    inputs, shares = (torch.from_numpy(x) for x in (cells.features, cells.shares))
    for _ in range(60):
        optimizer.zero_grad()
        head(inputs, shares)[0].backward()
        optimizer.step()
    assert head(*(torch.from_numpy(x) for x in (unseen.features, unseen.shares)))[1] > 0.8
    slope, constant = _logistic(head, cells, torch.device("cpu"))
    tensors = head.head_tensors(slope, constant)
    flat = inputs.float().reshape(-1, 1024)[shares.reshape(-1) >= 0]
    hidden = torch.relu(
        flat @ tensors["attention.conv1.weight"][:, :, 0, 0].T + tensors["attention.conv1.bias"]
    )
    logits = (
        hidden @ tensors["attention.conv2.weight"][0, :, 0, 0] + tensors["attention.conv2.bias"]
    ).detach()
    wanted = shares.reshape(-1)[shares.reshape(-1) >= 0]
    # Least cross-entropy: the residues are orthogonal to the constant and to the logits.
    residues = torch.sigmoid(logits) - wanted
    assert residues.mean().abs() < 1e-3
    assert (residues * logits).mean().abs() < 1e-2
    # softplus of logits, which scores.py computes, is -log(1 - p).
    p = torch.sigmoid(logits.double())
    assert torch.allclose(torch.nn.functional.softplus(logits.double()), -torch.log1p(-p))


@pytest.mark.parametrize("all_alike", [False, True])
def test_a_head_that_learned_nothing_keeps_its_order_and_meets_the_mean_share(all_alike, caplog):
    cells = planted()
    head = InlierHead(random_state=2)
    with torch.no_grad():
        logits = head.logits(torch.from_numpy(cells.features)).double().numpy()
    against = 0.3 if all_alike else logits.argsort(1).argsort(1)[:, ::-1] < 20
    if not all_alike:  # those of the lowest logits are the matched ones
        against = np.argsort(np.argsort(logits, 1), 1) < 20
    shares = np.where(cells.shares < 0, -1, against).astype(np.float32)
    if all_alike:
        head.conv2.weight.data.zero_()
        logits = np.zeros_like(logits)
    slope, constant = _logistic(head, cells._replace(shares=shares), torch.device("cpu"))
    there = shares >= 0
    p = 1 / (1 + np.exp(-(slope * logits + constant)))[there]
    assert slope == 1.0
    assert p.mean() == pytest.approx(shares[there].mean(), rel=1e-6)
    assert "ranks matched cells no better than others" in caplog.text


@pytest.fixture(scope="module")
def fitted(halves, matched, weights_path, tmp_path_factory):
    output = tmp_path_factory.mktemp("inliers")
    trainer = InlierAttentionTrainer(weights_path, matched=matched, output=output, **OPTIONS)
    return trainer.fit(halves), output


def test_all_but_the_head_stays_bit_by_bit(fitted, weights_path, halves):
    trainer, output = fitted
    before, after = load_weights(weights_path), trainer.weights_
    assert same(before.tensors, after.tensors)
    assert all(np.array_equal(before.pca[name], after.pca[name]) for name in before.pca)
    assert not before.attention and len(after.attention) == 4
    assert load_weights(output / "weights.safetensors").sha256 == after.sha256
    assert trainer.n_photos_ == 6 and trainer.n_pairs_ == 6
    assert trainer.n_steps_ == 9 == len(trainer.curves_["loss"])
    assert after.recipe["mode"] == "inlier attention"
    extractor = DelfExtractor(output / "weights.safetensors", n_components=8, n_jobs=1)
    (features,) = extractor.transform([halves.file(0)])
    assert (features.scores > 0).all()


def test_training_lowers_the_loss(halves, matched, weights_path):
    longer = dataclasses.replace(OPTIONS["optimization"], epochs=20, batch_size=6)
    options = {**OPTIONS, "optimization": longer}
    curves = InlierAttentionTrainer(weights_path, matched=matched, **options).fit(halves).curves_
    # The loss cannot fall under the logarithm of the number of matched cells.
    assert curves["loss"][-1] < curves["loss"][0]
    assert curves["accuracy"][-1] > 0.75 > curves["accuracy"][0]


def test_a_run_that_stopped_goes_on_to_the_last_bit(
    fitted, halves, matched, weights_path, tmp_path
):
    whole, _ = fitted
    run = dataclasses.replace(RUN, checkpoint_every=1)
    options = {**OPTIONS, "run": run, "matched": matched, "output": tmp_path}
    for stop in (1, 4, 8):
        with pytest.raises(KeyboardInterrupt):
            InlierAttentionTrainer(weights_path, **options).fit(halves, progress=stop_after(stop))
    gone_on = InlierAttentionTrainer(weights_path, **options).fit(halves)
    assert same(whole.weights_.attention, gone_on.weights_.attention)
    assert np.array_equal(whole.curves_["loss"], gone_on.curves_["loss"])


def test_another_run_in_the_same_folder_is_refused(fitted, halves, matched, weights_path):
    _, output = fitted
    kept = output / "cells" / "cells.json"
    before = kept.read_bytes()
    other = {**OPTIONS, "n_cells": 50, "matched": matched, "output": output}
    with pytest.raises(CheckpointError, match="n_cells"):
        InlierAttentionTrainer(weights_path, **other).fit(halves)
    assert kept.read_bytes() == before, "what was computed for the other run is gone"


def test_unreadable_photos_are_left_out(halves, matched, weights_path, tmp_path):
    for row, path in enumerate(halves.paths):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        data = halves.file(row).read_bytes()
        (tmp_path / path).write_bytes(data[:50] if row == 1 else data)
    damaged = photos_from_image_folder(tmp_path)
    trainer = InlierAttentionTrainer(weights_path, matched=matched, **OPTIONS).fit(damaged)
    assert [path for path, _ in trainer.left_out_] == [halves.paths[1]]
    assert trainer.n_photos_ == 5 and trainer.n_pairs_ == 4


def test_weights_without_a_pca_match_by_all_dimensions(halves, matched, tmp_path):
    bare = save_small_weights(tmp_path / "bare.safetensors")
    trainer = InlierAttentionTrainer(bare, matched=matched, **OPTIONS).fit(halves)
    assert trainer.weights_.attention and not trainer.weights_.pca


def test_what_cannot_be_done_is_said(halves, matched, weights_path, tmp_path, photos):
    with pytest.raises(TypeError, match=r"matched must be MatchedPhotos.*NoneType"):
        InlierAttentionTrainer(weights_path).fit(halves)
    with pytest.raises(TypeError, match=r"photos must be LabelledPhotos.*list"):
        InlierAttentionTrainer(weights_path, matched=matched).fit([])
    with pytest.raises(DatasetError, match="none of 6 matched pairs is of the 12 photos"):
        InlierAttentionTrainer(weights_path, matched=matched, **OPTIONS).fit(photos)
    with pytest.raises(DatasetError, match="none of 6 pairs of photos was verified with 5000"):
        options = {**OPTIONS, "min_inliers": 5000}
        InlierAttentionTrainer(weights_path, matched=matched, **options).fit(halves)
    with pytest.raises(ValueError, match="n_cells"):
        InlierAttentionTrainer(weights_path, matched=matched, n_cells=0).fit(halves)
    (tmp_path / "cells").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match="cells cannot be made"):
        InlierAttentionTrainer(weights_path, matched=matched, output=tmp_path, **OPTIONS).fit(
            halves
        )
