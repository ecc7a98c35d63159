"""ImageSearch over folders of photo files, with an extractor that needs no network."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from search_helpers import DIMENSION, PatchExtractor, files_of, make_features, make_photos
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from delfsearch.errors import IndexFormatError, PhotoError
from delfsearch.features import LocalFeatures
from delfsearch.index.delf_index import DelfIndex
from delfsearch.search import ImageSearch
from delfsearch.verification.verifier import Verifier
from delfsearch.where import Where

# Patches repeat nothing: a right answer has about a hundred inliers, a wrong one far fewer.
VERIFIER = Verifier(max_error=1.0, min_inliers=20)


def new_search(**parameters) -> ImageSearch:
    index = DelfIndex(k=5, max_leaves=1000)
    return ImageSearch(PatchExtractor(), index, VERIFIER, **parameters)


def load(path, **options) -> ImageSearch:
    return ImageSearch.load(path, extractor=PatchExtractor(), **options)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    make_photos(folder, 6)
    return folder


@pytest.fixture
def search(folder, tmp_path) -> ImageSearch:
    return new_search().fit(folder, index_path=tmp_path / "index")


def names(search: ImageSearch) -> list[str]:
    return [record.path for record in search.index_.images()]


def test_each_photo_finds_itself_and_nothing_else(search, folder, tmp_path):
    for found in (search, load(tmp_path / "index", verify=True)):
        assert len(found) == 6
        for name in names(found):
            (hit,) = found.query(folder / name)
            assert hit.path == name and hit.n_inliers >= 80
            np.testing.assert_allclose(hit.affine, [[1, 0, 0], [0, 1, 0]], atol=1e-6)
            assert found.path_of(hit) == folder / name
    stranger = np.random.default_rng(99).integers(0, 256, (72, 96), dtype=np.uint8)
    assert search.query(Image.fromarray(stranger)) == []


def test_names_are_relative_sorted_and_may_be_of_any_script(search):
    found = names(search)
    assert found == sorted(found)
    assert "été/фото-01.png" in found


def test_fit_in_ram_then_save_is_the_same_search(folder, tmp_path, search):
    other = new_search().fit(folder).save(tmp_path / "saved")
    assert other.index_.path == tmp_path / "saved"
    loaded = load(tmp_path / "saved")
    for name in names(search):
        assert str(loaded.query(folder / name)) == str(search.query(folder / name))
    assert loaded.get_params()["duplicates"] == "once"
    assert loaded.verifier_.get_params() == {**VERIFIER.get_params(), "n_jobs": None}


def test_progress_counts_every_photo(folder, tmp_path):
    calls = []
    new_search().fit(folder, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(i + 1, 6) for i in range(6)]
    assert all(seconds >= 0 and isinstance(path, str) for _, _, seconds, path in calls)


def test_unreadable_photos_are_listed_and_do_not_stop_the_rest(folder, tmp_path):
    (folder / "text.jpg").write_text("this is no photo")
    (folder / "empty.png").write_bytes(b"")
    whole = (folder / "фото-00.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dangling.png").symlink_to(folder / "absent.png")
    (folder / "notes.txt").write_text("not even a photo's ending")
    search = new_search().fit(folder, index_path=tmp_path / "index")
    assert len(search) == 6
    skipped = load(tmp_path / "index").skipped_
    assert [path for path, _ in skipped] == ["cut.png", "dangling.png", "empty.png", "text.jpg"]
    assert all(reason for _, reason in skipped)


def test_a_photo_without_features_is_indexed_and_never_found(folder):
    Image.new("L", (1, 1)).save(folder / "1x1.png")
    search = new_search().fit(folder)
    assert len(search) == 7 and search.skipped_ == []
    assert search.query(folder / "1x1.png") == []


def test_duplicates_are_noted_and_indexed_once(folder, tmp_path):
    shutil.copy(folder / "фото-00.png", folder / "copy.png")
    shutil.copy(folder / "фото-00.png", folder / "été" / "copy.png")
    (folder / "bad.png").write_text("bad")
    (folder / "bad-copy.png").write_text("bad")
    search = new_search().fit(folder, index_path=tmp_path / "index")
    assert len(search) == 6
    assert search.duplicates_ == [("été/copy.png", "copy.png"), ("фото-00.png", "copy.png")]
    assert [hit.path for hit in search.query(folder / "фото-00.png")] == ["copy.png"]
    assert [path for path, _ in search.skipped_] == ["bad-copy.png", "bad.png"]
    # Where the indexed one goes, its copies may come.
    search.remove(["copy.png"])
    assert search.duplicates_ == []
    (folder / "copy.png").unlink()
    assert search.add(folder) == [6]
    assert search.duplicates_ == [("фото-00.png", "été/copy.png")]
    everything = new_search(duplicates="all").fit(folder)
    assert len(everything) == 7 and everything.duplicates_ == []


def test_labels_by_path_or_in_order(folder, tmp_path):
    by_name = {"фото-00.png": "a", str(folder / "été" / "фото-01.png"): "b", "absent.png": "c"}
    search = new_search().fit(folder, labels=by_name, index_path=tmp_path / "index")
    labels = {record.path: record.label for record in search.index_.images()}
    assert labels.pop("фото-00.png") == "a" and labels.pop("été/фото-01.png") == "b"
    assert set(labels.values()) == {None}
    assert search.query(folder / "фото-00.png")[0].label == "a"
    paths = [folder / "фото-02.png", folder / "фото-00.png"]
    listed = new_search().fit(paths, labels=["x", None])
    assert [(r.path, r.label) for r in listed.index_.images()] == [
        ("фото-02.png", "x"),
        ("фото-00.png", None),
    ]
    with pytest.raises(ValueError, match=r"labels must have one entry per photo \(2\); got 1"):
        new_search().fit(paths, labels=["x"])
    with pytest.raises(ValueError, match=r"none fits, e\.g\. 'wrong\.png'"):
        new_search().fit(folder, labels={"wrong.png": "x"})


def test_a_folder_in_our_own_format_says_what_to_index(folder):
    rows = ["path,role,scene"]
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    for i, path in enumerate(files):
        rows.append(f"{path},{'query' if i == 0 else 'db'},{'' if i == 5 else f'scene {i}'}")
    (folder / "photos.csv").write_text("\n".join(rows), encoding="utf-8")
    paths = [row.split(",")[0] for row in rows[1:]]
    truth = {"queries": {paths[0]: {"positives": [paths[1]]}}, "database": paths[1:]}
    (folder / "ground_truth.json").write_text(json.dumps(truth), encoding="utf-8")
    search = new_search().fit(folder)
    assert names(search) == paths[1:]
    assert [r.label for r in search.index_.images()] == [f"scene {i}" for i in range(1, 5)] + [None]


def test_a_box_asks_for_a_part_and_answers_in_pixels_of_the_whole(search, folder):
    name = names(search)[2]
    (hit,) = search.query(folder / name, box=(16, 8, 90, 70), min_inliers=10)
    assert hit.path == name
    np.testing.assert_allclose(hit.affine, [[1, 0, 0], [0, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(hit.inliers[:, :2], hit.inliers[:, 2:], atol=1e-4)
    assert hit.inliers[:, 0].min() >= 16 and hit.inliers[:, 1].min() >= 8
    features = search.extractor_.transform([folder / name])[0]
    (by_features,) = search.query(features, box=(16, 8, 90, 70), min_inliers=10)
    assert by_features.path == name and by_features.inliers[:, 0].max() < 90
    # Partly outside is cut off; the array's and the path's answers agree.
    pixels = Image.open(folder / name)
    assert str(search.query(pixels, box=(16, 8, 900, 700))) == str(
        search.query(folder / name, box=(16, 8, 96, 72))
    )


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ((10, 10, 5, 20), "x0 < x1"),
        ((10, 10, 10, 20), "x0 < x1"),
        ((1, 2, 3), "four finite numbers"),
        ((1, 2, 3, float("nan")), "four finite numbers"),
        ("1,2,3,4", "four finite numbers"),
        ((100, 0, 120, 20), "box must lie in the photo of 96 x 72"),
        ((-9, -9, -1, -1), "box must lie in the photo"),
    ],
)
def test_bad_boxes_are_refused(search, folder, box, text):
    with pytest.raises(ValueError, match=text):
        search.query(folder / names(search)[0], box=box)


def test_top_and_min_inliers_and_excluded(search, folder):
    name = names(search)[0]
    assert len(search.query(folder / name, min_inliers=3, top=None)) > 1
    assert len(search.query(folder / name, min_inliers=3, top=2)) == 2
    assert search.query(folder / name, exclude_ids=[0]) == []
    assert search.query(folder / name, min_inliers=500) == []
    for bad in (0, -1):
        with pytest.raises(ValueError, match="top must be at least 1"):
            search.query(folder / name, top=bad)


def test_only_photos_that_satisfy_where_answer(folder, tmp_path, monkeypatch):
    search = new_search().fit(folder, labels={"фото-00.png": "a", "été/фото-01.png": "b"})
    first, second = names(search)[:2]
    asked = [folder / first, folder / second]
    assert [hit.path for hit in search.query(asked[0], where={"metadata": {"path": first}})] == [
        first
    ]
    assert search.query(asked[0], where={"metadata": {"path": second}}) == []
    everyone = search.query(folder / "фото-00.png", min_inliers=3, top=None)
    labelled = search.query(
        folder / "фото-00.png", min_inliers=3, top=None, where=Where(label=["a", "b"])
    )
    assert {hit.label for hit in labelled} == {"a", "b"} < {hit.label for hit in everyone}
    assert search.query(asked[0], where={"label": "no such"}) == []
    monkeypatch.setattr("delfsearch.search._QUERY_BATCH", 1)
    found = search.query_many(asked, where={"ids": [0]}, exclude_ids=[None, [0]])
    assert [[hit.id for hit in hits] for hits in found] == [[0], []]
    with pytest.raises(ValueError, match="no keys but ids"):
        search.query_many([], where={"path": first})


def test_query_many_gives_the_answers_of_query(search, folder, monkeypatch):
    monkeypatch.setattr("delfsearch.search._QUERY_BATCH", 4)
    photos = [folder / name for name in names(search)]
    photos.insert(1, search.extractor_.transform(photos[:1])[0])
    boxes = [None, (0, 0, 50, 50), (5, 5, 90, 70), None, None, None, None]
    answers = search.query_many(photos, boxes=boxes, min_inliers=10)
    for photo, box, answer in zip(photos, boxes, answers):
        assert str(answer) == str(search.query(photo, box=box, min_inliers=10))
    assert search.query_many([]) == []
    with pytest.raises(ValueError, match="boxes must have one entry per photo"):
        search.query_many(photos, boxes=[None])


def test_bad_queries_are_refused(search, folder, tmp_path):
    (folder / "text.jpg").write_text("no")
    with pytest.raises(PhotoError):
        search.query(folder / "text.jpg")
    with pytest.raises(PhotoError):
        search.query(folder / "absent.jpg", box=(0, 0, 5, 5))
    with pytest.raises(ValueError, match=rf"{DIMENSION} columns .as in fit.; got 3"):
        search.query(make_features(np.random.default_rng(0), 4, dimension=3))
    assert search.query(LocalFeatures.empty(DIMENSION)) == []


def test_add_takes_new_and_changed_photos_only(search, folder, tmp_path):
    assert search.add(folder) == []
    make_photos(folder, 8, seed=0)  # the same six and two more
    assert search.add(folder, labels={"фото-06.png": "new"}) == [6, 7]
    changed = folder / "фото-00.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (72, 96), dtype=np.uint8)).save(
        changed
    )
    before = search.index_.find(path="фото-00.png")[0]
    assert search.add([changed]) == [before.id]
    loaded = load(tmp_path / "index", verify=True)  # it is on disk already
    assert len(loaded) == 8
    (hit,) = loaded.query(changed)
    assert hit.id == before.id and hit.path == "фото-00.png"
    assert loaded.index_.find(path="фото-06.png")[0].label == "new"
    assert search.index_.image(before.id).content_hash != before.content_hash


def test_a_changed_photo_that_became_unreadable_keeps_its_old_features(search, folder):
    (folder / "фото-00.png").write_text("broken")
    assert search.add(folder) == []
    assert len(search) == 6 and [path for path, _ in search.skipped_] == ["фото-00.png"]


def test_photos_outside_the_root_keep_their_whole_path(search, tmp_path):
    outside = make_photos(tmp_path / "elsewhere", 8)[6:]
    assert search.add(outside) == [6, 7]
    assert names(search)[6] == outside[0].as_posix()
    (hit,) = search.query(outside[0])
    assert search.path_of(hit) == outside[0]
    assert search.remove([outside[0], 7]) == [6, 7]


def test_one_photo_where_a_list_is_meant_is_refused(search, folder):
    photo = folder / search.index_.image(0).path
    for one in (photo, str(photo), np.zeros((50, 50, 3), np.uint8)):
        with pytest.raises(TypeError, match=r"must be a list of photos; got one .* Pass \[photo\]"):
            search.query_many(one)
    for one in (photo, str(photo), 3, np.int64(3)):
        with pytest.raises(TypeError, match="must be a list of photos; got one"):
            search.remove(one)
    assert len(search) == 6


def test_remove_by_id_or_path_all_or_none(search, folder, tmp_path):
    name = names(search)[1]
    with pytest.raises(KeyError, match="no photo with id 77"):
        search.remove([name, 77])
    with pytest.raises(KeyError, match=r"no photo .*absent\.png"):
        search.remove([0, "absent.png"])
    assert len(search) == 6
    assert search.remove([folder / name, 5, "фото-00.png"]) == [1, 5, 3]
    assert len(load(tmp_path / "index", verify=True)) == 3
    assert search.query(folder / name) == []
    # What was removed and comes again gets a new id.
    assert sorted(search.add(folder)) == [6, 7, 8]


def test_moved_photos_are_found(search, folder, tmp_path):
    (hit,) = search.query(folder / names(search)[0])
    # Index and photos moved together: found by their relative place.
    (tmp_path / "new home").mkdir()
    shutil.move(folder, tmp_path / "new home" / "photos")
    shutil.move(tmp_path / "index", tmp_path / "new home" / "index")
    moved = load(tmp_path / "new home" / "index")
    assert moved.path_of(hit) == tmp_path / "new home" / "photos" / hit.path
    # The photos alone: they have to be told.
    shutil.move(tmp_path / "new home" / "photos", tmp_path / "pictures")
    with pytest.raises(FileNotFoundError, match="give photo_root"):
        moved.path_of(hit.id)
    told = load(tmp_path / "new home" / "index", photo_root=tmp_path / "pictures")
    assert told.path_of(hit.id) == tmp_path / "pictures" / hit.path
    assert told.add(tmp_path / "pictures") == []


def test_links_to_folders_are_followed_once(folder):
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "été" / "up").symlink_to(folder.parent, target_is_directory=True)
    search = new_search().fit(folder)
    assert len(search) == 6 and search.duplicates_ == []


def test_hidden_files_are_passed_over(folder):
    shutil.copy(folder / "фото-00.png", folder / "._x.png")
    (folder / ".thumbs").mkdir()
    shutil.copy(folder / "фото-00.png", folder / ".thumbs" / "x.png")
    assert new_search().fit(folder).duplicates_ == []


@pytest.mark.skipif(os.name == "nt", reason="names of bytes")
def test_a_name_that_is_no_unicode_is_skipped(folder, tmp_path):
    raw = os.fsencode(folder) + b"/\xff\xfe.png"
    shutil.copy(folder / "фото-00.png", raw)
    search = new_search().fit(folder, index_path=tmp_path / "index")
    assert search.skipped_ == [("\\udcff\\udcfe.png", "its name is not valid Unicode; rename it")]


def test_what_cannot_be_indexed_is_refused_and_leaves_no_index(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found none in"):
        new_search().fit(tmp_path / "empty", index_path=tmp_path / "index")
    with pytest.raises(ValueError, match="does not exist"):
        new_search().fit(tmp_path / "absent")
    with pytest.raises(ValueError, match="is one file"):
        new_search().fit(folder / "фото-00.png")
    with pytest.raises(ValueError, match="empty list"):
        new_search().fit([])
    with pytest.raises(TypeError, match="must be paths; got ndarray"):
        new_search().fit([np.zeros((4, 4))])
    assert not (tmp_path / "index").exists()
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.jpg").write_text("no")
    with pytest.raises(ValueError, match=r"at least one readable photo; none of 1 is:\n  a\.jpg: "):
        new_search().fit(bad, index_path=tmp_path / "index")
    with pytest.raises(IndexFormatError, match="is not an index"):
        load(tmp_path / "index")
    # Mended, the same call works.
    make_photos(bad, 3)
    assert len(new_search().fit(bad, index_path=tmp_path / "index")) == 3


def test_an_index_is_never_written_over(search, folder, tmp_path):
    before = files_of(tmp_path / "index")
    with pytest.raises(FileExistsError, match="already holds an index of 6 photos"):
        new_search().fit(folder, index_path=tmp_path / "index")
    with pytest.raises(FileExistsError, match="is not empty"):
        new_search().fit(folder, index_path=folder)
    assert files_of(tmp_path / "index") == before


def test_an_index_without_an_extractor_is_for_delf_index(tmp_path):
    DelfIndex().fit([make_features(np.random.default_rng(0), 5)]).save(tmp_path / "index")
    with pytest.raises(IndexFormatError, match=r"open it with DelfIndex\.load"):
        load(tmp_path / "index")


def test_the_extractor_is_frozen_with_the_index(search, folder, tmp_path):
    loaded = load(tmp_path / "index")
    np.testing.assert_array_equal(loaded.extractor_.basis_, search.extractor_.basis_)
    fitted = PatchExtractor().fit([folder / name for name in names(search)[:2]])
    kept = ImageSearch(fitted).fit(folder)
    assert kept.extractor_.basis_ is fitted.basis_
    machine = ImageSearch.load(tmp_path / "index", extractor=PatchExtractor(device="cpu"))
    assert machine.extractor_.device == "cpu"


def test_estimator_contract(search):
    assert clone(search).get_params()["duplicates"] == "once"
    for call in (
        lambda s: s.query(None),
        lambda s: s.add([]),
        lambda s: s.remove([]),
        lambda s: s.save(),
        lambda s: s.skipped_,
        lambda s: s.extractor_,
        lambda s: len(s),
    ):
        with pytest.raises(NotFittedError, match="call fit or load first"):
            call(ImageSearch())
    with pytest.raises(ValueError, match="duplicates must be one of"):
        new_search(duplicates="x").fit("x")
