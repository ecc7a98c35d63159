"""Where labelled photos come from: folders, tables, Google Landmarks v2, the library's own format.

No photo is opened here; those that prove unreadable are left out, and named, when training begins.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from delfsearch._validation import check_choice
from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets import google_landmarks
from delfsearch.evaluation.datasets.reading import (
    PathLike,
    check_unicode,
    csv_rows,
    existing_folder,
    list_photos,
)
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.training.labelled import LabelledPhotos

logger = logging.getLogger("delfsearch")

FORMATS = ("auto", "image_folder", "csv", "google_landmarks", "library")
DISTRACTORS = ("none", "no_queries", "all")


def read_photos(source: PathLike, *, format: str = "auto") -> LabelledPhotos:
    """Read labelled photos in any of the formats, with their default options.

    source : a folder or a CSV table. format : one of FORMATS; "auto" looks: a file is a table, a
        folder with photos.csv and ground_truth.json is the library's own, one with train.csv (or
        train/train.csv) is Google Landmarks, any other has a subfolder for each class.
    Raises DatasetError that names what is absent or malformed.
    """
    check_choice(format, "format", FORMATS)
    path = Path(source)
    if format == "auto":
        if path.is_file():
            format = "csv"
        elif PhotoFolder.is_one(path):
            format = "library"
        elif (path / "train.csv").is_file() or (path / "train" / "train.csv").is_file():
            format = "google_landmarks"
        else:
            format = "image_folder"
    readers = {
        "csv": photos_from_csv,
        "google_landmarks": photos_from_google_landmarks,
        "library": photos_from_library_folder,
        "image_folder": photos_from_image_folder,
    }
    return readers[format](path)  # type: ignore[operator, no-any-return]


def photos_from_image_folder(root: PathLike) -> LabelledPhotos:
    """Read a folder with a subfolder for each class; deeper levels belong to the first.

    Photos that lie beside the subfolders have no class and are left out; the log says how many.
    Raises DatasetError where the folder is absent or no subfolder holds a photo.
    """
    base = existing_folder(root, "image_folder")
    photos = list_photos(base)
    inside = [photo for photo in photos if "/" in photo]
    if not inside:
        raise DatasetError(
            f"{str(base)!r} must have a subfolder of photos for each class; it has {len(photos)} "
            "photo(s) and no subfolder with one"
        )
    if len(inside) < len(photos):
        logger.warning(
            "left out %d photos of %s that are in no subfolder, thus of no class",
            len(photos) - len(inside),
            base,
        )
    names = [photo.partition("/")[0] for photo in inside]
    return LabelledPhotos.from_names(inside, names, root=base, source=f"image folder {base.name}")


def photos_from_csv(table: PathLike, *, root: PathLike | None = None) -> LabelledPhotos:
    """Read a CSV table with the columns path and label; other columns are passed over.

    root : folder that relative paths start from; None means that of the table.
    Raises DatasetError with the file and line of an empty or repeated value.
    """
    file = Path(table)
    base = file.parent if root is None else existing_folder(root, "csv")
    names: dict[str, str] = {}
    for line, (path, label) in csv_rows(file, ("path", "label")):
        if not path or not label:
            raise DatasetError(f"{file}, line {line}: path and label must not be empty")
        if path in names:
            raise DatasetError(f"{file}, line {line}: {path!r} is there already")
        names[path] = label
    if not names:
        raise DatasetError(f"{file} lists no photo")
    return LabelledPhotos.from_names(
        list(names), list(names.values()), root=base, source=f"table {file.name}"
    )


def photos_from_google_landmarks(root: PathLike, *, clean: bool = False) -> LabelledPhotos:
    """Read the training photos of Google Landmarks v2.

    root : folder that holds train (train/0/1/2/012....jpg) and the table, see docs/datasets.md.
    clean : train_clean.csv instead of train.csv.
    Raises DatasetError with the file and line of what is absent or malformed.
    Source: Sec. 5.1. Differs: the set that the paper's authors published after it.
    """
    base = existing_folder(root, "google_landmarks", "google_landmarks")
    read = google_landmarks._train_clean if clean else google_landmarks._train
    photos, labels = read(base)
    names = [labels[photo] for photo in photos]
    paths = [google_landmarks._place("train", photo) for photo in photos]
    table = "train_clean.csv" if clean else "train.csv"
    return LabelledPhotos.from_names(
        paths, names, root=base, source=f"Google Landmarks v2, {table}"
    )


def photos_from_library_folder(
    root: PathLike,
    *,
    scenes: Collection[str] | None = None,
    without_scenes: Collection[str] = (),
    subsets: Collection[str] | None = None,
    distractors: str = "none",
    without_photos: Collection[str] = (),
) -> LabelledPhotos:
    """Read a folder with photos.csv and ground_truth.json; a class is a scene.

    scenes : those to take, None takes all. without_scenes : those to leave out, so that what is
        tested is not trained on. subsets : of photos.csv, to take scenes of; None takes all.
    distractors : photos of role distractor, each a class of its own in strongly varied views:
        "none"; "no_queries", those that are no distractor query of ground_truth.json; "all".
    without_photos : paths to leave out, of scenes or distractors.
    Raises DatasetError for a scene or a path that the folder does not have.
    """
    check_choice(distractors, "distractors", DISTRACTORS)
    try:
        folder = PhotoFolder.read(root, check_files=False)
    except ValueError as error:
        raise DatasetError(str(error)) from None
    labels = folder.labels
    _check_known(scenes or (), labels.values(), "scenes", folder.root)
    _check_known(without_scenes, labels.values(), "without_scenes", folder.root)
    _check_known(subsets or (), folder.subsets.values(), "subsets", folder.root)
    _check_known(without_photos, folder.paths, "without_photos", folder.root)
    taken = set(labels.values() if scenes is None else scenes) - set(without_scenes)
    gone = set(without_photos)
    queries = set(folder.distractor_queries)
    paths: list[str] = []
    names: list[str] = []
    varied: list[bool] = []
    for path in folder.paths:
        check_unicode(path, os.fspath(folder.root))
        alone = folder.roles.get(path) == "distractor"
        if path in gone or (alone and distractors == "none"):
            continue
        if alone:
            if distractors == "no_queries" and path in queries:
                continue
        elif labels.get(path) not in taken:
            continue
        elif subsets is not None and folder.subsets.get(path) not in subsets:
            continue
        paths.append(path)
        names.append(path if alone else labels[path])
        varied.append(alone)
    if not paths:
        raise DatasetError(f"{folder.root} has no photo of the scenes that were asked for")
    source = (
        f"scenes{' and distractor photos' if any(varied) else ''} of {folder.root.resolve().name}"
    )
    return LabelledPhotos.from_names(
        paths, names, root=folder.root, varied=np.array(varied), source=source
    )


def _check_known(asked: Iterable[str], known: Iterable[str], name: str, root: Path) -> None:
    if isinstance(asked, str):
        raise TypeError(f"{name} must be a collection of names; got one string {asked!r}")
    if unknown := sorted(set(asked) - set(known)):
        raise DatasetError(
            f"{name} must be in {root}; {unknown[0]!r} is not ({len(unknown)} in all)"
        )
