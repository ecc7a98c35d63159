"""One system on one set: what it extracts, asks, keeps and goes on from."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from delfsearch.errors import PhotoError
from delfsearch.evaluation.datasets.base import Dataset, Query
from delfsearch.evaluation.running.feature_store import FeatureStore, StoredPhoto, key_of
from delfsearch.evaluation.running.protocol import (
    Effort,
    Runnable,
    SearchSettings,
    judge_answers,
    run_system,
)
from delfsearch.evaluation.unranked import pooled_curve
from delfsearch.extraction.photos import open_photo
from delfsearch.features import LocalFeatures
from delfsearch.index.delf_index import DelfIndex
from delfsearch.verification.verifier import Verifier

SIDE, CELL = 64, 8
EFFORTS = (Effort(2, 16), Effort(8, 4096))
SETTINGS = SearchSettings(n_jobs=1)


class Mosaic:
    """A local feature of its own: the mean colours of the quarters of every 8-pixel cell."""

    def __init__(self):
        self.sizes = []

    def stream(self, photos):
        for photo in photos:
            try:
                image = open_photo(photo).image
            except PhotoError as error:
                yield photo, error
                continue
            self.sizes.append(image.size)
            yield photo, describe(np.asarray(image, np.float32))


def describe(pixels):
    rows, columns = pixels.shape[0] // CELL, pixels.shape[1] // CELL
    cut = pixels[: rows * CELL, : columns * CELL]
    half = CELL // 2
    blocks = cut.reshape(rows, 2, half, columns, 2, half, 3).mean(axis=(2, 5))
    descriptors = blocks.transpose(0, 2, 1, 3, 4).reshape(rows * columns, 12) - 128
    y, x = np.mgrid[:rows, :columns].reshape(2, -1) * CELL + (CELL - 1) / 2
    return LocalFeatures(
        np.stack([x, y], axis=1).astype(np.float32),
        (descriptors / 512).astype(np.float32),
        image_size=(pixels.shape[1], pixels.shape[0]),
    )


class MeanColour:
    """A global vector: four by four mean colours, of length 1."""

    def __init__(self):
        self.n = 0

    def stream(self, photos):
        for photo in photos:
            try:
                image = open_photo(photo).image
            except PhotoError as error:
                yield photo, error
                continue
            self.n += 1
            pixels = np.asarray(image.resize((4, 4)), np.float32).ravel() - 128
            yield photo, (pixels / np.linalg.norm(pixels)).astype(np.float32)


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE // 4, SIDE // 4, 3), np.uint8)
    return np.repeat(np.repeat(pixels, 4, axis=0), 4, axis=1)


@pytest.fixture
def dataset(tmp_path):
    """Places a and b with two photos each, c alone, and a file that is no photo.

    Query a is a box in the first photo of a (its own photo counts); query b is the first photo of b
    (its own photo is junk); the distractor query shows nothing that is there.
    """
    paths = {}
    rng = np.random.default_rng(9)
    for seed, place in enumerate("abc"):
        for i in range(2 if place != "c" else 1):
            noise = rng.normal(0, 2, (SIDE, SIDE, 3)) if i else 0
            pixels = np.clip(picture(seed) + noise, 0, 255).astype(np.uint8)
            paths[f"{place}{i}"] = tmp_path / f"{place}{i}.png"
            Image.fromarray(pixels).save(paths[f"{place}{i}"])
    paths["bad"] = tmp_path / "bad.png"
    paths["bad"].write_text("no photo")
    far = tmp_path / "far.png"
    Image.fromarray(picture(77)).save(far)
    queries = (
        Query(
            "qa",
            paths["a0"],
            box=(8.0, 16.0, 56.0, 64.0),
            positives=frozenset({"a0", "a1"}),
            photo="a0",
        ),
        Query("b0", paths["b0"], positives=frozenset({"b1"}), junk=frozenset({"b0"})),
    )
    return Dataset(
        name="five",
        root=tmp_path,
        database=tuple(paths),
        queries=queries,
        distractor_queries=(Query("far", far), Query("worse", paths["bad"])),
        paths=paths,
        exclude_self=False,
    ).check()


def run_mosaic(dataset, folder, mosaic=None, settings=SETTINGS, **options):
    system = Mosaic() if mosaic is None else mosaic
    shelf = FeatureStore(folder / "features").shelf({"system": "mosaic"}, system.stream)
    return run_system(
        Runnable("local", "mosaic", shelf), dataset, EFFORTS, folder, settings=settings, **options
    )


def test_a_local_system_finds_what_is_there(dataset, tmp_path):
    mosaic = Mosaic()
    run = run_mosaic(dataset, tmp_path / "out", mosaic)
    assert (run.n_database, run.n_unreadable) == (5, 1)
    assert run.unreadable_queries == ("worse",)
    for answers in run.answers.values():
        assert [name for name, _ in answers["qa"]][:2] == ["a0", "a1"]
        assert answers["b0"][0][0] == "b1" and "b0" not in dict(answers["b0"])
        assert answers["worse"] == []
    # The box is cropped first: the system saw 48 x 48 pixels, once, and each whole photo once.
    assert sorted(mosaic.sizes) == [(48, 48)] + [(SIDE, SIDE)] * 6
    assert run.bytes_per_photo > 64 * 12 and run.seconds_per_photo > 0


def test_answers_are_those_of_index_and_verifier(dataset, tmp_path):
    run = run_mosaic(dataset, tmp_path / "out")
    names = [name for name in dataset.database if name != "bad"]

    def half(features):
        stored = features.descriptors.astype(np.float16).astype(np.float32)
        return dataclasses.replace(features, descriptors=stored)

    photos = [half(describe(np.asarray(Image.open(dataset.paths[n]), np.float32))) for n in names]
    index = DelfIndex(leaf_size=1).fit(photos)
    verifier = Verifier(min_inliers=3)
    part = np.asarray(Image.open(dataset.paths["a0"]), np.float32)[16:64, 8:56]
    query = half(describe(part))
    query = dataclasses.replace(
        query, keypoints_xy=query.keypoints_xy + np.array([8, 16], np.float32)
    )
    own = names.index("b0")
    for effort in EFFORTS:
        options = {"k": effort.k, "max_leaves": effort.max_leaves, "max_candidates": 500}
        hits = verifier.verify(index.query(query, **options))
        assert run.answers[effort]["qa"] == [(names[h.id], h.score) for h in hits]
        hits = verifier.verify(index.query(photos[own], **options, exclude_ids=[own]))
        assert run.answers[effort]["b0"] == [(names[h.id], h.score) for h in hits]


def test_posting_lists_may_take_the_place_of_the_tree(dataset, tmp_path):
    lists = {"n_lists": 4, "n_probe": 4, "code": "6x8"}
    settings = dataclasses.replace(SETTINGS, lists=lists)
    assert settings.key() != SETTINGS.key() and "lists" not in SETTINGS.key()
    run = run_mosaic(dataset, tmp_path / "out", settings=settings)
    for answers in run.answers.values():
        assert {"a0", "a1"} <= {name for name, _ in answers["qa"][:3]}
    trees = run_mosaic(dataset, tmp_path / "out")
    assert run.bytes_per_photo != trees.bytes_per_photo


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_global_system_is_exact_search(dataset, tmp_path, rounds):
    system = MeanColour()
    shelf = FeatureStore(tmp_path / "features").shelf({"system": "colour"}, system.stream)
    runnable = Runnable("global", "colours", shelf, query_expansion=rounds)
    run = run_system(runnable, dataset, (), tmp_path, settings=SETTINGS)
    names = [name for name in dataset.database if name != "bad"]

    def vector(photo):
        return next(MeanColour().stream([photo]))[1].astype(np.float64)

    matrix = np.stack([vector(dataset.paths[name]) for name in names])
    for query in dataset.all_queries:
        if query.id == "worse":
            assert run.answers[None]["worse"] == []
            continue
        image = Image.open(query.path)
        asked = vector(image if query.box is None else image.crop((8, 16, 56, 64)))
        allowed = [i for i, name in enumerate(names) if name not in query.junk]
        for _ in range(rounds):
            best = max(allowed, key=lambda i: matrix[i] @ asked)
            asked = asked + matrix[best]
            asked /= np.linalg.norm(asked)
        scores = {names[i]: matrix[i] @ asked for i in allowed}
        expected = sorted(scores, key=scores.get, reverse=True)
        found = run.answers[None][query.id]
        assert [name for name, _ in found] == expected
        assert np.allclose([score for _, score in found], sorted(scores.values())[::-1], atol=1e-5)
    run_system(runnable, dataset, (), tmp_path, settings=SETTINGS)
    assert system.n == 7


def test_nothing_is_done_twice(dataset, tmp_path):
    first, second = Mosaic(), Mosaic()
    expected = run_mosaic(dataset, tmp_path, first)
    stages = []
    run = run_mosaic(dataset, tmp_path, second, progress=lambda *what: stages.append(what[0]))
    assert second.sizes == []
    assert "answers" not in stages and "photos indexed" not in stages
    assert run.answers == expected.answers
    assert run.seconds_per_photo == expected.seconds_per_photo


def test_a_torn_answer_is_asked_again(dataset, tmp_path):
    expected = run_mosaic(dataset, tmp_path)
    for log in tmp_path.glob("answers/*/*.jsonl"):
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join(lines[:2]) + lines[2][:10])
    assert run_mosaic(dataset, tmp_path).answers == expected.answers
    for log in tmp_path.glob("answers/*/*.jsonl"):
        whole = [line for line in log.read_bytes().splitlines() if line.endswith(b"]]")]
        assert len({json.loads(line)[0] for line in whole}) == 4


def test_sets_with_other_queries_share_answers_and_a_changed_photo_does_not(dataset, tmp_path):
    run_mosaic(dataset, tmp_path)
    fewer = dataclasses.replace(dataset, distractor_queries=())
    mosaic = Mosaic()
    stages = []
    run_mosaic(fewer, tmp_path, mosaic, progress=lambda *what: stages.append(what[0]))
    assert mosaic.sizes == [] and "answers" not in stages
    Image.fromarray(picture(5)).resize((72, 72)).save(dataset.paths["c0"])
    run_mosaic(dataset, tmp_path, mosaic)
    assert mosaic.sizes == [(72, 72)]


def test_a_folder_that_was_copied_anew_keeps_its_features_and_answers(dataset, tmp_path):
    run_mosaic(dataset, tmp_path)
    for path in {Path(path) for path in dataset.paths.values()}:
        os.utime(path, (1, 1))
    mosaic, stages = Mosaic(), []
    run_mosaic(dataset, tmp_path, mosaic, progress=lambda *what: stages.append(what[0]))
    assert mosaic.sizes == [] and "answers" not in stages


def test_a_query_whose_file_changed_is_asked_again(dataset, tmp_path):
    before = run_mosaic(dataset, tmp_path).answers[EFFORTS[1]]["far"]
    Image.open(dataset.paths["c0"]).save(dataset.distractor_queries[0].path, compress_level=1)
    after = run_mosaic(dataset, tmp_path).answers[EFFORTS[1]]["far"]
    assert after[0][0] == "c0" and after != before


def test_local_systems_need_an_effort(dataset, tmp_path):
    shelf = FeatureStore(tmp_path).shelf({}, Mosaic().stream)
    with pytest.raises(ValueError, match="efforts must hold at least one"):
        run_system(Runnable("local", "", shelf), dataset, (), tmp_path, settings=SETTINGS)


def test_a_database_of_no_photos_is_refused(dataset, tmp_path):
    bad = dataclasses.replace(
        dataset, database=("bad",), queries=(), paths={"bad": dataset.paths["bad"]}
    )
    with pytest.raises(ValueError, match="readable photo"):
        run_mosaic(bad, tmp_path)
    shelf = FeatureStore(tmp_path / "f").shelf({}, MeanColour().stream)
    with pytest.raises(ValueError, match="five: no photo of the database can be read"):
        run_system(Runnable("global", "", shelf), bad, (), tmp_path, settings=SETTINGS)


def test_judging_counts_distractor_queries_up_to_q_d(dataset):
    answers = {"qa": [("a0", 9.0), ("c0", 5.0)], "b0": [], "far": [("c0", 7.0)], "worse": []}
    alone = pooled_curve(judge_answers(dataset, answers, n_distractor_queries=0))
    assert alone.precision.tolist() == [1.0, 0.5]
    assert alone.recall.tolist() == [1 / 3, 1 / 3]
    both = pooled_curve(judge_answers(dataset, answers, n_distractor_queries=2))
    assert both.precision.tolist() == [1.0, 0.5, 1 / 3]


def test_judging_by_the_25_km_rule(dataset):
    # 0.2 degrees of latitude are 22.2 km, 0.3 are 33.4 km.
    locations = {"a0": (48.0, 2.0), "a1": (48.2, 2.0), "b0": (48.3, 2.0), "b1": (0.0, 0.0)}
    located = dataclasses.replace(
        dataset,
        queries=(dataclasses.replace(dataset.queries[0], location=(48.0, 2.0)),),
        locations=locations,
        radius_km=25.0,
    )
    answers = {"qa": [("a1", 9.0), ("b0", 8.0), ("a0", 7.0)], "far": [("a0", 8.5)], "worse": []}
    judged = judge_answers(located, answers, n_distractor_queries=1)
    assert judged[0].n_positives == 2
    assert judged[0].correct.tolist() == [True, False, True]
    assert pooled_curve(judged).precision.tolist() == [1.0, 0.5, 1 / 3, 0.5]


# -- the store ----------------------------------------------------------------------------------


def test_a_box_selects_features_where_they_come_from_files(dataset, tmp_path):
    shelf = FeatureStore(tmp_path / "f").shelf({}, Mosaic().stream, crops=False)
    photo = StoredPhoto(dataset.paths["a0"], (8.0, 16.0, 56.0, 64.0))
    shelf.ensure([photo])
    xy = shelf.load(photo).keypoints_xy
    assert len(xy) == 36
    assert xy.min(axis=0).tolist() == [11.5, 19.5] and xy.max(axis=0).tolist() == [51.5, 59.5]


def test_a_box_in_a_file_that_is_no_photo(dataset, tmp_path):
    store = FeatureStore(tmp_path / "f")
    shelf = store.shelf({}, Mosaic().stream)
    good = [StoredPhoto(dataset.paths[name]) for name in ("a0", "b0")]
    bad = StoredPhoto(dataset.paths["bad"], (0.0, 0.0, 4.0, 4.0))
    shelf.ensure([bad, good[0], bad, good[1]])
    assert isinstance(shelf.load(bad), PhotoError)
    expected = describe(np.asarray(Image.open(dataset.paths["b0"]), np.float32))
    assert np.array_equal(shelf.load(good[1]).keypoints_xy, expected.keypoints_xy)
    assert np.allclose(shelf.load(good[1]).descriptors, expected.descriptors, atol=1e-3)
    assert store.n_extracted == 3


def test_entries_are_whole_or_absent(dataset, tmp_path):
    store = FeatureStore(tmp_path / "f")
    mosaic = Mosaic()
    shelf = store.shelf({}, mosaic.stream)
    photo = StoredPhoto(dataset.paths["a0"])
    with pytest.raises(KeyError, match="was not extracted: call ensure first"):
        shelf.load(photo)
    shelf.ensure([photo])
    (entry,) = tmp_path.glob("f/*/*/*.npz")
    entry.write_bytes(entry.read_bytes()[:100])
    shelf.ensure([photo])
    assert len(mosaic.sizes) == 2 and len(shelf.load(photo)) == 64
    assert not list(tmp_path.rglob("*.partial"))
    gone = StoredPhoto(Path(tmp_path / "gone.png"))
    shelf.ensure([gone])
    assert "is not there" in str(shelf.load(gone))


def test_a_shelf_is_made_from_another(dataset, tmp_path):
    store = FeatureStore(tmp_path / "f")
    first, second = Mosaic(), Mosaic()
    raw = store.shelf({"n": 0}, first.stream)
    photos = [StoredPhoto(dataset.paths[name]) for name in ("a0", "bad", "b0")]
    raw.ensure(photos[:2])
    few = store.shelf({"n": 1}, second.stream, made_from=(raw, lambda features: features[:5]))
    few.ensure(photos)
    assert len(second.sizes) == 1 and store.n_extracted == 3
    assert len(few.load(photos[0])) == 5
    assert isinstance(few.load(photos[1]), PhotoError)
    assert len(few.load(photos[2])) == 64


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_an_entry_comes_back_as_it_went_in(tmp_path, data):
    n, d = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 5))
    numbers = st.floats(-1e5, 1e5, width=32)
    descriptors = np.array(
        data.draw(st.lists(st.lists(numbers, min_size=d, max_size=d), min_size=n, max_size=n)),
        np.float32,
    ).reshape(n, d)
    given_ = LocalFeatures(
        np.full((n, 2), 1.5, np.float32), descriptors, np.arange(n), np.ones(n), (9, 7)
    )
    photo = tmp_path / "photo"
    photo.touch()
    store = FeatureStore(tmp_path / "f")
    shelf = store.shelf({"d": [d, *descriptors.tolist()]}, lambda ps: ((p, given_) for p in ps))
    shelf.ensure([StoredPhoto(photo)])
    found = shelf.load(StoredPhoto(photo))
    assert found.image_size == (9, 7) and found.descriptors.shape == (n, d)
    assert np.array_equal(found.scores, given_.scores)
    # float16 keeps 11 bits; what does not fit it is kept whole.
    assert np.allclose(found.descriptors, descriptors, rtol=2**-11, atol=2**-24)


def test_keys_do_not_depend_on_the_order_of_parameters():
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1}) != key_of({"a": 1, "b": [3]})
