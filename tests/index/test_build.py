"""DelfIndex.build: photos that come one by one, in parts, interrupted or not."""

from __future__ import annotations

import numpy as np
import pytest
from search_helpers import files_of, make_collection, same_matches

from delfsearch.features import LocalFeatures
from delfsearch.index import builder as builder_module
from delfsearch.index import segment_set as segment_set_module
from delfsearch.index import settings as settings_module
from delfsearch.index.builder import IndexBuilder
from delfsearch.index.delf_index import DelfIndex
from delfsearch.index.engines import ListEngine
from delfsearch.index.segment import build_segment, rows_in
from delfsearch.storage import arrays as arrays_module
from delfsearch.storage.catalog import Catalog

LISTS = {"method": "ivf", "code": "4x5", "n_lists": 3, "n_probe": 3}


@pytest.fixture
def photos() -> list[LocalFeatures]:
    return [photo for seed in range(4) for photo in make_collection(seed=seed)]


@pytest.fixture(params=[30, 10**6])
def part_rows(request, monkeypatch) -> int:
    monkeypatch.setattr(segment_set_module, "_RAM_ROWS", 100)
    monkeypatch.setattr(ListEngine, "part_rows", request.param)
    monkeypatch.setattr(builder_module, "_COMMIT_ROWS", request.param)
    return request.param


@pytest.mark.parametrize("postings", ["features", "photos"])
@pytest.mark.parametrize("trained", [True, False])
def test_it_is_what_fit_makes(tmp_path, photos, part_rows, postings, trained):
    params = {**LISTS, "postings": postings}
    metadata = [{"label": str(i % 3), "path": f"{i}.jpg"} for i in range(len(photos))]
    index = DelfIndex(**params)
    training = photos if trained else None
    built = index.build(tmp_path / "i", iter(photos), metadata=iter(metadata), training=training)
    fitted = DelfIndex(**params).fit(photos, metadata=metadata)
    assert built is index and built.path == tmp_path / "i" and built.check() == []
    assert len(built) == len(photos) and built.n_descriptors == fitted.n_descriptors
    assert [r for r in built.images()] == [r for r in fitted.images()]
    for photo in photos[::3]:
        for max_leaves in (None, 1):
            ours = built.query(photo, k=7, max_leaves=max_leaves, where={"label": "1"})
            theirs = fitted.query(photo, k=7, max_leaves=max_leaves, where={"label": "1"})
            assert same_matches(ours, theirs)
    assert len(list((tmp_path / "i").glob("segment-*"))) == 1
    assert len(list((tmp_path / "i").glob("codes-*"))) == 1
    assert not list((tmp_path / "i").glob("chunk-*"))
    added = built.add(photos[:2])
    assert added.tolist() == [len(photos), len(photos) + 1]


@pytest.mark.parametrize("postings", ["features", "photos"])
@pytest.mark.parametrize("trained", [True, False])
def test_an_interrupted_build_gives_the_same_bytes(
    tmp_path, photos, part_rows, trained, postings, monkeypatch
):
    """Wherever its parts begin, also where lists have many leaves."""
    training = photos if trained else None
    params = {**LISTS, "n_lists": 1, "postings": postings, "leaf_size": 64}

    def breaks_at(n: int):
        yield from photos[:n]
        raise KeyboardInterrupt

    whole = DelfIndex(**params).build(tmp_path / "whole", photos, training=training)
    for n in (0, 3, 9, len(photos)):
        with pytest.raises(KeyboardInterrupt):
            DelfIndex(**params).build(tmp_path / "i", breaks_at(n), training=training)
        monkeypatch.setattr(builder_module, "_COMMIT_ROWS", part_rows + 7 * n)
    DelfIndex(**params).build(tmp_path / "i", photos, training=training)
    assert files_of(tmp_path / "i") == files_of(whole.path)


def test_a_build_that_stops_while_it_merges_goes_on(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(ListEngine, "part_rows", 30)
    monkeypatch.setattr(builder_module, "_COMMIT_ROWS", 30)
    whole = DelfIndex(**LISTS).build(tmp_path / "whole", photos)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(builder_module, "merge_stored", fails)
        with pytest.raises(OSError, match="No space"):
            DelfIndex(**LISTS).build(tmp_path / "i", photos)
    DelfIndex(**LISTS).build(tmp_path / "i", photos)
    assert files_of(tmp_path / "i") == files_of(whole.path)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("fails_at", ["coarse", "image_ids", "lists.blocks", "catalog"])
def test_a_build_that_dies_while_it_writes_goes_on(
    tmp_path, photos, monkeypatch, trained, fails_at
):
    """After every kind of folder; once right before the commit that would name them."""
    monkeypatch.setattr(ListEngine, "part_rows", 30)
    monkeypatch.setattr(builder_module, "_COMMIT_ROWS", 30)
    training = photos if trained else None
    whole = DelfIndex(**LISTS).build(tmp_path / "whole", photos, training=training)
    write_array, commits = arrays_module.write_array, Catalog.commit

    def write(path, array):
        if path.stem == fails_at:
            raise OSError(28, "No space left on device")
        return write_array(path, array)

    def commit(self):
        if list((tmp_path / "i").glob("codes-*")):
            raise KeyboardInterrupt
        return commits(self)

    with monkeypatch.context() as context:
        context.setattr(arrays_module, "write_array", write)
        if fails_at == "catalog":
            context.setattr(Catalog, "commit", commit)
        with pytest.raises((OSError, KeyboardInterrupt)):
            DelfIndex(**LISTS).build(tmp_path / "i", photos, training=training)
    DelfIndex(**LISTS).build(tmp_path / "i", photos, training=training)
    assert files_of(tmp_path / "i") == files_of(whole.path)


def test_what_waits_for_long_is_made_safe(tmp_path, photos, monkeypatch):
    """Whatever a commit's number of features: an extractor may take a second a photo."""
    monkeypatch.setattr(builder_module, "_COMMIT_SECONDS", -1.0)
    for training in (photos, None):
        folder = tmp_path / ("trained" if training else "plain")

        def breaks():
            yield from photos[:5]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            DelfIndex(**LISTS).build(folder, breaks(), training=training)
        builder = builder_module.IndexBuilder(DelfIndex(**LISTS), folder)
        assert builder.n_photos == 5
        builder.close()
        with pytest.raises(ValueError, match="holds 5 of an interrupted build; got 3"):
            DelfIndex(**LISTS).build(folder, photos[:3], training=training)
        built = DelfIndex(**LISTS).build(folder, photos, training=training)
        assert len(built) == len(photos)


def test_one_descriptor_out_of_range_does_not_spoil_a_build(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(builder_module, "_COMMIT_ROWS", 1)
    huge = LocalFeatures(
        keypoints_xy=np.zeros((1, 2), np.float32),
        scores=np.ones(1, np.float32),
        scales=np.ones(1, np.float32),
        descriptors=np.full((1, 8), 1e17, np.float32),
    )
    with pytest.raises(ValueError, match=r"descriptors of features must lie within \+-1e\+16"):
        DelfIndex(**LISTS).build(tmp_path / "i", [*photos[:3], huge])
    assert len(DelfIndex(**LISTS).build(tmp_path / "i", photos)) == len(photos)


def test_a_build_without_features_leaves_its_folder_empty(tmp_path, photos):
    with pytest.raises(ValueError, match="features must hold at least one photo; got none"):
        DelfIndex(**LISTS).build(tmp_path / "i", [], training=photos)
    assert list((tmp_path / "i").iterdir()) == []
    assert len(DelfIndex(**LISTS).build(tmp_path / "i", photos)) == len(photos)


def test_what_was_learned_stays_where_the_first_photos_have_no_features(tmp_path, photos):
    empty = LocalFeatures.empty(8)
    index = DelfIndex(**LISTS).build(tmp_path / "i", [empty, empty], training=photos)
    index.add(photos)
    assert [p.name for p in (tmp_path / "i").glob("codes-*")] == ["codes-000001"]
    whole = DelfIndex(**LISTS).build(tmp_path / "whole", photos, training=photos)
    ours, theirs = index.query(photos[3], k=5), whole.query(photos[3], k=5)
    assert ours.image_ids.tolist() == (theirs.image_ids + 2).tolist()
    with pytest.raises(ValueError, match="columns"):
        index.add(
            [
                LocalFeatures(
                    keypoints_xy=np.zeros((1, 2), np.float32),
                    scores=np.ones(1, np.float32),
                    scales=np.ones(1, np.float32),
                    descriptors=np.ones((1, 12), np.float32),
                )
            ]
        )


def test_a_build_in_parts_goes_on_with_its_own_parameters_only(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(ListEngine, "part_rows", 30)
    monkeypatch.setattr(builder_module, "_COMMIT_ROWS", 30)
    add_part, n_parts = IndexBuilder._add_part, 0

    def dies(self, *arguments):
        nonlocal n_parts
        n_parts += 1
        if n_parts == 3:
            raise KeyboardInterrupt
        add_part(self, *arguments)

    with monkeypatch.context() as context:
        context.setattr(IndexBuilder, "_add_part", dies)
        with pytest.raises(KeyboardInterrupt):
            DelfIndex(**LISTS).build(tmp_path / "i", photos)
    with pytest.raises(ValueError, match="training must be given from the first photo on"):
        DelfIndex(**LISTS).build(tmp_path / "i", photos, training=photos)
    for other in ({"code": "2x6"}, {"method": "kdtree"}, {"postings": "photos"}):
        with pytest.raises(ValueError, match="was begun with"):
            DelfIndex(**{**LISTS, **other}).build(tmp_path / "i", photos)
    rows_of_parts = []

    def counted(chunks, *arguments):
        rows_of_parts.append(sum(map(rows_in, chunks)))
        return build_segment(chunks, *arguments)

    monkeypatch.setattr(builder_module, "build_segment", counted)
    more = [*photos, photos[0]]
    assert len(DelfIndex(**LISTS).build(tmp_path / "i", more)) == len(more)
    # Chunks that were left are encoded as they would have been, not all at once.
    assert max(rows_of_parts) < 30 + max(map(len, photos))


def test_more_features_than_lists_hold_are_refused_at_once(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(builder_module, "MAX_ROWS", 40)
    taken = []

    def counted():
        for photo in photos:
            taken.append(photo)
            yield photo

    with pytest.raises(ValueError, match="at most 40 where an index is built"):
        DelfIndex(**LISTS).build(tmp_path / "i", counted())
    assert len(taken) < len(photos)
    monkeypatch.setattr(segment_set_module, "MAX_ROWS", 40)
    index = DelfIndex(**LISTS, merge_factor=100.0).fit(photos[:3])
    for photo in photos[3:9]:
        index.add([photo])
    assert len(index) == 9
    with pytest.raises(ValueError, match="merge needs at most 40 features"):
        index.merge()


def test_what_it_refuses(tmp_path, photos, monkeypatch):
    with pytest.raises(ValueError, match='training is for method="ivf"; got "kdtree"'):
        DelfIndex(method="kdtree").build(tmp_path / "i", photos, training=photos)
    with pytest.raises(ValueError, match="at least one photo with features"):
        DelfIndex(**LISTS).build(tmp_path / "i", photos, training=[LocalFeatures.empty(8)])
    with pytest.raises(TypeError, match="features must be LocalFeatures; got int"):
        DelfIndex(**LISTS).build(tmp_path / "j", [1])
    monkeypatch.setattr(builder_module, "_COMMIT_ROWS", 30)

    def breaks():
        yield from photos[:9]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DelfIndex(**LISTS).build(tmp_path / "k", breaks(), training=photos)
    other = DelfIndex(**{**LISTS, "n_lists": 4})
    with pytest.raises(ValueError, match="begun with n_lists=3; got 4"):
        other.build(tmp_path / "k", photos, training=photos)
    with pytest.raises(ValueError, match="begun with n_lists=3; got 4"):
        other.build(tmp_path / "k", photos)
    built = DelfIndex(**LISTS).build(tmp_path / "k", photos, training=photos)
    with pytest.raises(FileExistsError, match="already holds an index"):
        DelfIndex(**LISTS).build(built.path, photos)


def test_a_tree_is_built_so_too(tmp_path, photos):
    built = DelfIndex(method="kdtree").build(tmp_path / "i", photos)
    fitted = DelfIndex(method="kdtree").fit(photos)
    for photo in photos[::4]:
        assert same_matches(built.query(photo, k=5), fitted.query(photo, k=5))
    assert np.array_equal(built.ids, fitted.ids)


@pytest.mark.parametrize("ram_rows", [0, 10**6])
@pytest.mark.parametrize("method", ["kdtree", "ivf"])
def test_merged_segments_are_seen_after_the_commit(tmp_path, photos, monkeypatch, ram_rows, method):
    monkeypatch.setattr(segment_set_module, "_RAM_ROWS", ram_rows)
    params = {**LISTS, "method": method, "merge_factor": 0}
    index = DelfIndex(**params).fit(photos[:9]).save(tmp_path / "i")
    index.add(photos[9:])
    index.remove([2])
    expected = [index.query(photo, k=5) for photo in photos[::4]]
    index.merge()
    before = DelfIndex.load(tmp_path / "i", verify=True)
    assert len(before) == 9 and len(index) == len(photos) - 1
    for photo, answer in zip(photos[::4], expected):
        assert same_matches(index.query(photo, k=5), answer)
    index.save()
    after = DelfIndex.load(tmp_path / "i", verify=True)
    assert len(list((tmp_path / "i").glob("segment-*"))) == 1
    for photo, answer in zip(photos[::4], expected):
        assert same_matches(after.query(photo, k=5), answer)


def test_what_the_parts_name_is_kept_to_the_end(tmp_path, photos, monkeypatch):
    """postings="auto" cannot know, when the first part is made, how many descriptors come."""
    monkeypatch.setattr(builder_module, "_COMMIT_ROWS", 30)
    monkeypatch.setattr(settings_module, "AUTO_PHOTOS_FROM", 100)
    built = DelfIndex(**LISTS).build(tmp_path / "i", photos, training=photos)
    fitted = DelfIndex(**LISTS, postings="features").fit(photos)
    assert built.n_descriptors > 100 and built.postings_ == "features"
    for photo in photos[::5]:
        assert same_matches(built.query(photo, k=7), fitted.query(photo, k=7))
    many = DelfIndex(**LISTS).build(tmp_path / "j", photos)
    assert many.postings_ == "photos"


@pytest.mark.parametrize("n", [3, 99])
def test_metadata_of_another_length_is_refused(tmp_path, photos, n):
    with pytest.raises(ValueError, match="metadata must have one entry per photo"):
        DelfIndex(**LISTS).build(tmp_path / "i", photos, metadata=[None] * n)
