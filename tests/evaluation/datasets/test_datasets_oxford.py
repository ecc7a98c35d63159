"""Oxford5k and Paris6k: what is written is read, whatever the order of files; damage is named."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

import PIL.Image
import pytest
from evaluation.datasets.trees import QueryFiles, write_oxford, write_paris, write_photos
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets import (
    PARIS6K_UNREADABLE,
    read_oxford5k,
    read_paris6k,
)

BOX = (136.5, 34.1, 648.5, 955.7)
NAMES = ("all_souls_000013", "all_souls_000026", "oxford_002985", "keble_000245", "keble_000028")
QUERIES = {
    "all_souls_1": QueryFiles(NAMES[0], BOX, NAMES[:2], (NAMES[2],), (NAMES[3],)),
    "all_souls_2": QueryFiles(NAMES[2], BOX, NAMES[:2], (NAMES[2],), (NAMES[3],)),
    "keble_10": QueryFiles(NAMES[3], (0.0, 1.0, 2.0, 3.0), (NAMES[3],), (NAMES[4],)),
    "keble_9": QueryFiles(NAMES[4], (0.0, 1.0, 2.0, 3.0), NAMES[3:]),
}


@pytest.fixture
def oxford(tmp_path) -> Path:
    return write_oxford(tmp_path / "ox", NAMES, QUERIES)


def test_oxford_is_read(oxford):
    dataset = read_oxford5k(oxford)
    assert dataset.name == "oxford5k" and dataset.root == oxford
    assert dataset.database == tuple(sorted(NAMES))
    assert dataset.paths["keble_000028"] == oxford / "oxbuild_images" / "keble_000028.jpg"
    first = dataset.queries[0]
    assert first.id == "all_souls_1" and first.photo == "all_souls_000013"
    assert first.path == oxford / "oxbuild_images" / "all_souls_000013.jpg"
    assert first.box == BOX and first.scene == "all_souls"
    assert first.positives == frozenset(NAMES[:3]) and first.junk == {NAMES[3]}
    # The ninth query comes before the tenth.
    assert [q.id for q in dataset.queries] == ["all_souls_1", "all_souls_2", "keble_9", "keble_10"]
    assert dataset.labels == {
        **dict.fromkeys(NAMES[:3], "all_souls"),
        **dict.fromkeys(NAMES[3:], "keble"),
    }
    assert dataset.notes == (
        "5062 photos in the published set, 5 here",
        "55 queries in the published set, 4 here",
    )
    assert dataset.absent_photos() == ()


def test_own_photos_count_as_published_or_are_ignored(oxford):
    published = read_oxford5k(oxford)
    assert published.exclude_self is False
    assert all(q.photo in q.positives for q in published.queries)
    ignored = read_oxford5k(oxford, exclude_self=True)
    assert ignored.exclude_self is True
    for before, after in zip(published.queries, ignored.queries):
        assert after.positives == before.positives - {after.photo}
        assert after.junk == before.junk | {after.photo}


def test_paris_is_read_from_folders_of_landmarks_or_one(tmp_path):
    names = ("paris_defense_000605", "paris_general_002985", "paris_triomphe_000369")
    queries = {
        "triomphe_5": QueryFiles("paris_defense_000605", BOX, names[:1], names[2:], names[1:2])
    }
    nested = read_paris6k(write_paris(tmp_path / "nested", names, queries))
    assert nested.database == names
    assert nested.paths[names[1]] == (
        tmp_path / "nested" / "paris" / "general" / "paris_general_002985.jpg"
    )
    flat = tmp_path / "flat"
    write_photos(flat / "jpg", [f"{name}.jpg" for name in names])
    read = read_paris6k(flat, truth=tmp_path / "nested" / "paris_120310")
    assert read.database == names
    assert [dataclasses.replace(q, path=Path()) for q in read.queries] == [
        dataclasses.replace(q, path=Path()) for q in nested.queries
    ]


def test_photos_and_truth_may_lie_anywhere(oxford, tmp_path):
    (oxford / "oxbuild_images").rename(tmp_path / "my photos")
    (oxford / "gt_files_170407").rename(tmp_path / "wahrheit")
    read = read_oxford5k(tmp_path, photos=tmp_path / "my photos", truth=tmp_path / "wahrheit")
    assert len(read.queries) == 4
    with pytest.raises(DatasetError, match="no photo"):
        read_oxford5k(oxford)


def test_all_in_one_folder(tmp_path):
    write_photos(tmp_path, [f"{name}.jpg" for name in NAMES])
    write_oxford(tmp_path / "x", (), QUERIES)
    for file in (tmp_path / "x" / "gt_files_170407").iterdir():
        file.rename(tmp_path / file.name)
    assert read_oxford5k(tmp_path).database == tuple(sorted(NAMES))


def test_no_photo_is_opened(oxford, monkeypatch):
    def opened(*_, **__):
        raise AssertionError("a photo was opened")

    monkeypatch.setattr(PIL.Image, "open", opened)
    assert len(read_oxford5k(oxford).database) == 5


def test_windows_lines_blank_lines_and_a_byte_order_mark(oxford):
    truth = oxford / "gt_files_170407"
    (truth / "keble_9_good.txt").write_bytes(
        b"\xef\xbb\xbf" + "\r\n".join([*NAMES[3:], "", " "]).encode()
    )
    (truth / "README.txt").write_text("not ground truth")
    assert read_oxford5k(oxford).queries[2].positives == frozenset(NAMES[3:])


def test_what_is_absent_is_named_with_where_to_get_it(oxford, tmp_path):
    with pytest.raises(DatasetError, match=r"does not exist; get the Oxford Buildings Dataset"):
        read_oxford5k(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"no photo \(\*\.jpg\).*get the Paris Dataset"):
        (tmp_path / "none").mkdir()
        read_paris6k(tmp_path / "none")
    (oxford / "gt_files_170407" / "keble_9_junk.txt").unlink()
    with pytest.raises(DatasetError, match=r"keble_9 lacks the file keble_9_junk\.txt"):
        read_oxford5k(oxford)
    with pytest.raises(DatasetError, match=r"no ground truth files .*get the Oxford"):
        read_oxford5k(tmp_path, photos=oxford / "oxbuild_images")
    with pytest.raises(DatasetError, match="is a file"):
        read_oxford5k(oxford / "gt_files_170407" / "keble_9_good.txt")


def test_truth_that_names_absent_photos(oxford):
    (oxford / "oxbuild_images" / f"{NAMES[3]}.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 photo.* 'keble_000245'; get .*missing='drop'"):
        read_oxford5k(oxford)
    kept = read_oxford5k(oxford, missing="drop")
    # keble_10 asks with the absent photo.
    assert [q.id for q in kept.queries] == ["all_souls_1", "all_souls_2", "keble_9"]
    assert kept.queries[0].junk == frozenset()
    assert any("'keble_10'" in note for note in kept.notes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "oxc1_all_souls_000013",
        "oxc1_all_souls_000013 1 2 3",
        "oxc1_all_souls_000013 1 2 3 4 5",
        "oxc1_all_souls_000013 1 2 3 x",
        "oxc1_all_souls_000013 1 2 nan 4",
        "oxc1_all_souls_000013 1 2 1 4",
        "oxc1_all_souls_000013 1 9 3 4",
        "oxc1_all_souls_000013 1 2 3 4\noxc1_all_souls_000026 1 2 3 4",
    ],
)
def test_a_malformed_query_file_is_named(oxford, text):
    (oxford / "gt_files_170407" / "all_souls_1_query.txt").write_text(text)
    with pytest.raises(DatasetError, match=r"all_souls_1_query\.txt must have one line"):
        read_oxford5k(oxford)


def test_malformed_truth_is_refused(oxford):
    truth = oxford / "gt_files_170407"
    (truth / "keble_9_good.txt").write_text("")
    with pytest.raises(DatasetError, match="'keble_9' have none"):
        read_oxford5k(oxford)
    (truth / "keble_9_good.txt").write_text(NAMES[3])
    (truth / "keble_9_junk.txt").write_text(NAMES[3])
    with pytest.raises(DatasetError, match="both in positives and junk; 'keble_000245'"):
        read_oxford5k(oxford)
    (truth / "keble_9_junk.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DatasetError, match=r"keble_9_junk\.txt must be UTF-8"):
        read_oxford5k(oxford)


def test_two_photos_of_one_name_are_refused(tmp_path):
    write_photos(tmp_path / "paris", ["eiffel/paris_a_1.jpg", "general/paris_a_1.jpg"])
    with pytest.raises(DatasetError, match=r"unique; .*eiffel/paris_a_1.jpg.*general/paris_a_1"):
        read_paris6k(tmp_path)


def test_a_file_name_that_is_not_utf8_is_refused(oxford):
    name = os.fsencode(oxford / "oxbuild_images") + b"/caf\xe9.jpg"
    try:
        with open(name, "wb"):
            pass
    except OSError:  # macOS and Windows keep only Unicode names
        return
    with pytest.raises(DatasetError, match=r"UTF-8; 'caf.*udce9\.jpg'.*Rename"):
        read_oxford5k(oxford)


def test_the_unreadable_photos_of_paris():
    assert len(PARIS6K_UNREADABLE) == 20
    assert "paris_triomphe_000867" in PARIS6K_UNREADABLE


LANDMARKS = ("keble", "all_souls", "christ_church")


@st.composite
def truths(draw):
    """Names and query files: every photo is good, ok, junk or bad for every landmark."""
    names = [f"oxford_{i:06d}" for i in range(draw(st.integers(3, 9)))]
    queries = {}
    for landmark in draw(st.lists(st.sampled_from(LANDMARKS), unique=True, min_size=1)):
        kinds = draw(st.lists(st.sampled_from("gojb"), min_size=len(names), max_size=len(names)))
        kinds[draw(st.integers(0, len(names) - 1))] = "g"
        of = {k: tuple(n for n, kind in zip(names, kinds) if kind == k) for k in "goj"}
        for number in draw(st.lists(st.integers(1, 12), unique=True, min_size=1, max_size=3)):
            x0, y0 = draw(st.floats(0, 500)), draw(st.floats(0, 500))
            box = (x0, y0, x0 + draw(st.floats(1, 500)), y0 + draw(st.floats(1, 500)))
            files = QueryFiles(draw(st.sampled_from(of["g"])), box, of["g"], of["o"], of["j"])
            queries[f"{landmark}_{number}"] = files
    return names, queries


@given(truths(), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read_and_the_order_of_files_changes_nothing(truth, random):
    names, queries = truth
    read = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            order = list(queries)
            random.shuffle(order)
            random.shuffle(names)
            root = write_oxford(Path(folder), names, {query: queries[query] for query in order})
            dataset = read_oxford5k(root)
            read.append(
                (
                    dataset.database,
                    [dataclasses.replace(q, path=Path()) for q in dataset.queries],
                    dataset.labels,
                    dataset.notes,
                )
            )
            assert {q.id for q in dataset.queries} == set(queries)
            for query in dataset.queries:
                files = queries[query.id]
                assert query.positives == {*files.good, *files.ok}
                assert query.junk == set(files.junk)
                assert (query.box, query.photo) == (files.box, files.photo)
    assert read[0] == read[1]
