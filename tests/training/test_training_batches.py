from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from delfsearch.training import LabelledPhotos, Views
from delfsearch.training.batches import PhotoBatches, Plan, prepared
from delfsearch.training.photo_store import PhotoStore


def plan(labels, batch_size=4, **more):
    options = {"sampling": "photos", "random_state": 0, **more}
    return Plan(np.asarray(labels, np.int64), batch_size=batch_size, **options)


@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_an_epoch_shows_each_photo_at_most_once(n, batch_size, seed):
    p = plan(np.zeros(n), batch_size, random_state=seed)
    assert p.batch_size == min(n, batch_size)
    assert p.steps_per_epoch == max(1, n // batch_size)
    for epoch in range(2):
        first = epoch * p.steps_per_epoch
        shown = [p.step(first + s) for s in range(p.steps_per_epoch)]
        rows = np.concatenate([r for _, _, r in shown])
        assert len(set(rows.tolist())) == len(rows) == p.steps_per_epoch * p.batch_size
        assert {e for e, _, _ in shown} == {epoch}
        places = np.concatenate([q for _, q, _ in shown])
        assert places.tolist() == list(range(len(rows)))


def test_what_an_epoch_leaves_out_changes():
    p = plan(np.zeros(10), 4)
    left = [set(range(10)) - set(p.order(epoch)[:8].tolist()) for epoch in range(20)]
    assert len(set.union(*left)) > 6


def test_orders_depend_on_the_seed_and_the_epoch_alone():
    p, q = plan(np.zeros(30)), plan(np.zeros(30))
    q.step(100)  # another history
    assert np.array_equal(p.order(3), q.order(3))
    assert not np.array_equal(p.order(3), p.order(4))
    assert not np.array_equal(p.order(3), plan(np.zeros(30), random_state=1).order(3))


def test_classes_are_drawn_evenly_where_asked_for():
    labels = np.repeat([0, 1, 2], [1, 9, 90])
    p = plan(labels, 10, sampling="classes")
    drawn = np.concatenate([p.order(epoch) for epoch in range(60)])
    shares = np.bincount(labels[drawn]) / len(drawn)
    assert np.abs(shares - 1 / 3).max() < 0.03
    assert set(drawn.tolist()) == set(range(100))


@given(n=st.integers(8, 40), parts=st.integers(1, 4), size=st.integers(1, 3))
@settings(deadline=None)
def test_processes_share_a_batch(n, parts, size):
    whole = plan(np.zeros(n), parts * size)
    shares = [plan(np.zeros(n), parts * size, n_parts=parts, part=i) for i in range(parts)]
    if n >= parts * size:
        for step in range(whole.steps_per_epoch):
            rows = np.concatenate([share.step(step)[2] for share in shares])
            assert np.array_equal(rows, whole.step(step)[2])


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="multiple of the number of processes"):
        plan(np.zeros(10), 5, n_parts=2)
    with pytest.raises(ValueError, match="multiple of the number of processes"):
        plan(np.zeros(1), 4, n_parts=2)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_text("no photo")
    names = ["a", "a", "b", "b", "c", "c"]
    paths = [f"{i}.png" for i in range(6)]
    return LabelledPhotos.from_names(paths, names, root=tmp_path, varied=np.arange(6) > 3)


def batches(photos, **more):
    views = Views(resize_side=30, crop_side=24, flip=True)
    store = PhotoStore([photos.file(i) for i in range(6)], [30] * 4 + [45] * 2)
    p = plan(photos.labels, 3)
    return p, PhotoBatches(p, photos, store, views, random_state=5, **more)


def test_batches_are_a_function_of_the_step(photos):
    p, make = batches(photos)
    _, again = batches(photos)
    for step in (5, 0, 3, 3):
        batch = make(step)
        assert batch.inputs.shape == (3, 24, 24, 3) and batch.inputs.dtype == torch.uint8
        rows = p.step(step)[2]
        assert batch.labels.tolist() == photos.labels[rows].tolist()
        assert torch.equal(batch.inputs, again(step).inputs)
    views = [make(step).inputs[i] for step in range(10) for i in range(3)]
    assert len({v.numpy().tobytes() for v in views}) == 30 - 5 + 1  # the unreadable one is grey


def test_unreadable_photos_have_no_weight(photos):
    p, make = batches(photos)
    for step in range(4):
        batch = make(step)
        bad = p.step(step)[2] == 3
        assert batch.weights.tolist() == (~bad).astype(float).tolist()
        assert (batch.inputs[torch.from_numpy(bad)] == 128).all()


def test_scales_are_of_whole_batches(photos):
    _, make = batches(photos, gamma_of=lambda step: (1.0, 0.75)[step % 2])
    assert make(0).inputs.shape[1] == 24 and make(0).gamma == 1.0
    assert make(1).inputs.shape[1] == 18 and make(1).gamma == 0.75


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_prepared_items_come_in_order(n_threads):
    assert list(prepared(lambda step: step * 10, 3, 20, n_threads=n_threads)) == [
        step * 10 for step in range(3, 20)
    ]
    assert list(prepared(lambda step: step, 4, 4, n_threads=n_threads)) == []


def test_prepared_is_bounded_and_leaves_no_thread():
    before = threading.active_count()
    made = []
    items = prepared(lambda step: made.append(step) or step, 0, 1000, n_threads=2)
    assert next(items) == 0 and len(made) <= 5
    items.close()
    assert threading.active_count() == before


def test_errors_of_preparing_threads_arrive():
    def make(step):
        if step == 2:
            raise RuntimeError("broken")
        return step

    items = prepared(make, 0, 9, n_threads=2)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(RuntimeError, match="broken"):
        next(items)
