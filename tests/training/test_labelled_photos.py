from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from delfsearch.errors import DatasetError
from delfsearch.training import (
    LabelledPhotos,
    photos_from_csv,
    photos_from_google_landmarks,
    photos_from_image_folder,
    photos_from_library_folder,
    read_photos,
)


def named(**classes: int) -> LabelledPhotos:
    names = [name for name, count in classes.items() for _ in range(count)]
    return LabelledPhotos.from_names([f"{i}.jpg" for i in range(len(names))], names)


def test_classes_are_sorted_and_labels_point_at_them():
    photos = LabelledPhotos.from_names(["a.jpg", "b.jpg", "c.jpg"], ["tower", "bridge", "tower"])
    assert photos.classes == ("bridge", "tower")
    assert photos.labels.tolist() == [1, 0, 1] and photos.labels.dtype == np.int64
    assert photos.counts.tolist() == [1, 2]
    assert not photos.varied.any()
    assert photos.file(0) == Path("a.jpg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("a", "b"), [0], ("x",)), "one entry per photo"),
        ((("a",), [1], ("x",)), "labels must lie in 0"),
        ((("a",), [-1], ("x",)), "labels must lie in 0"),
        ((("a", "b"), [0, 0], ("x", "x")), "different names"),
        ((("a",), [0], ("x", "y")), "class 'y' must have a photo"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelledPhotos(*arguments)


def test_lengths_of_names_must_agree():
    with pytest.raises(ValueError, match="names must have one entry per photo"):
        LabelledPhotos.from_names(["a"], [])


def test_selecting_drops_the_classes_that_are_left_empty():
    photos = named(a=2, b=1, c=2)
    some = photos.select(np.array([True, True, False, False, True]))
    assert some.classes == ("a", "c")
    assert [some.classes[label] for label in some.labels] == ["a", "a", "c"]
    assert photos.select([4, 0]).paths == ("4.jpg", "0.jpg")


def test_small_classes_are_named_with_the_remedy():
    photos = named(a=3, lonely=1, alone=1, b=2)
    with pytest.raises(DatasetError, match=r"2 of 4 classes.*'alone' \(1\), 'lonely' \(1\)") as e:
        photos.with_enough()
    assert "small_classes='drop'" in str(e.value)
    assert photos.with_enough(small_classes="drop").classes == ("a", "b")
    varied = photos.with_enough(small_classes="vary")
    assert varied.classes == photos.classes
    assert [photos.classes[i] for i in varied.labels[varied.varied]] == ["lonely", "alone"]
    assert varied.with_enough() is varied  # varied photos are enough by themselves


def test_many_small_classes_are_counted_not_all_listed():
    photos = named(**{f"c{i:02d}": 1 for i in range(30)})
    with pytest.raises(DatasetError, match=r"c04' \(1\), \.\.\. \(30 in all\)"):
        photos.with_enough()


def test_one_class_is_not_enough():
    with pytest.raises(DatasetError, match="at least two classes"):
        named(a=5).with_enough()
    with pytest.raises(DatasetError, match="1 with enough photos"):
        named(a=5, b=1).with_enough(small_classes="drop")


def test_joining_merges_classes_of_one_name():
    one = LabelledPhotos.from_names(["1.jpg"], ["a"], root="/x")
    other = LabelledPhotos.from_names(
        ["1.jpg", "2.jpg"], ["a", "b"], root="/y", varied=[False, True]
    )
    both = one.joined(other)
    assert both.classes == ("a", "b") and both.labels.tolist() == [0, 0, 1]
    assert both.file(1) == Path("/y/1.jpg") and both.varied.tolist() == [False, False, True]


def test_fingerprint_is_of_names_and_labels_not_of_the_place():
    photos = named(a=2, b=2)
    moved = LabelledPhotos(photos.paths, photos.labels, photos.classes, root=Path("/elsewhere"))
    assert moved.fingerprint() == photos.fingerprint()
    others = [
        named(a=2, c=2),
        named(a=1, b=3),
        photos.select([0, 2, 1, 3]),
        LabelledPhotos(photos.paths, photos.labels, photos.classes, varied=np.ones(4, bool)),
    ]
    assert len({p.fingerprint() for p in (photos, *others)}) == 5


def test_image_folder(miniature, tmp_path):
    photos = photos_from_image_folder(miniature["training"] / "landmarks_full")
    assert photos.classes == ("000", "001", "002") and photos.counts.tolist() == [5, 5, 5]
    assert all(photos.file(row).is_file() for row in range(len(photos)))
    with pytest.raises(DatasetError, match="does not exist"):
        photos_from_image_folder(tmp_path / "none")
    with pytest.raises(DatasetError, match="a subfolder of photos for each class"):
        photos_from_image_folder(tmp_path)


def test_photos_beside_the_subfolders_have_no_class(tmp_path, caplog):
    for name in ("a/x/1.png", "b/1.png", "loose.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    photos = photos_from_image_folder(tmp_path)
    assert photos.paths == ("a/x/1.png", "b/1.png")
    assert "left out 1 photos" in caplog.text


def test_csv(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("label,path,licence\nb,1.jpg,x\na,sub/2.jpg,\nb,/abs/3.jpg,\n")
    photos = photos_from_csv(table)
    assert photos.classes == ("a", "b") and photos.labels.tolist() == [1, 0, 1]
    assert photos.file(1) == tmp_path / "sub/2.jpg" and photos.file(2) == Path("/abs/3.jpg")
    assert photos_from_csv(table, root=tmp_path.parent).file(0) == tmp_path.parent / "1.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\n1.jpg\n", "column"),
        ("path,label\n1.jpg,\n", "line 2: path and label must not be empty"),
        ("path,label\n1.jpg,a\n1.jpg,b\n", "line 3: '1.jpg' is there already"),
        ("path,label\n", "lists no photo"),
    ],
)
def test_malformed_tables_are_refused(tmp_path, text, message):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        photos_from_csv(tmp_path / "bad.csv")


def test_google_landmarks(miniature):
    root = miniature["google_landmarks"]
    photos = photos_from_google_landmarks(root)
    assert photos.classes == ("7", "8", "9") and photos.counts.tolist() == [3, 3, 3]
    assert all(photos.file(row).is_file() for row in range(len(photos)))
    assert photos_from_google_landmarks(root, clean=True).counts.tolist() == [2, 2, 2]


def test_library_folder(miniature):
    root = miniature["library"]
    photos = photos_from_library_folder(root)
    assert photos.classes == ("scene 0", "scene 1", "scene 2", "scene 3", "scene none")
    assert photos.counts.tolist() == [3, 3, 3, 3, 1]
    kept = photos_from_library_folder(root, without_scenes=["scene 1", "scene none"])
    assert kept.classes == ("scene 0", "scene 2", "scene 3")
    assert not any("scenes/1/" in path for path in kept.paths)
    only = photos_from_library_folder(root, scenes=["scene 1", "scene 3"])
    assert only.classes == ("scene 1", "scene 3")
    assert photos_from_library_folder(root, subsets=["landmarks"]).classes == ("scene 0", "scene 1")
    without = photos_from_library_folder(root, without_photos=["scenes/0/00.jpg"])
    assert set(photos.paths) - set(without.paths) == {"scenes/0/00.jpg"}


def test_distractors_are_classes_of_their_own(miniature):
    root = miniature["library"]
    every = photos_from_library_folder(root, distractors="all")
    assert every.varied.sum() == 6 and len(every.classes) == 5 + 6
    assert all(path.startswith("distractors/") for path in np.array(every.paths)[every.varied])
    others = photos_from_library_folder(root, distractors="no_queries")
    assert set(np.array(others.paths)[others.varied]) == {"distractors/4.jpg", "distractors/5.jpg"}


@pytest.mark.parametrize("name", ["scenes", "without_scenes", "without_photos", "subsets"])
def test_unknown_names_are_refused(miniature, name):
    with pytest.raises(DatasetError, match=f"{name} must be in .*'nowhere' is not"):
        photos_from_library_folder(miniature["library"], **{name: ["nowhere"]})
    with pytest.raises(TypeError, match="one string"):
        photos_from_library_folder(miniature["library"], **{name: "nowhere"})


def test_formats_are_told_by_what_is_there(miniature, tmp_path):
    assert "landmarks_clean" in read_photos(miniature["training"] / "landmarks_clean").source
    assert "scenes" in read_photos(miniature["library"]).source
    assert "Google" in read_photos(miniature["google_landmarks"]).source
    table = tmp_path / "t.csv"
    table.write_text("path,label\n1.jpg,a\n")
    assert "table" in read_photos(table).source
    with pytest.raises(ValueError, match="format"):
        read_photos(table, format="zip")
