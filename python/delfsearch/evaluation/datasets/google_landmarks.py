"""Google Landmarks v2: retrieval among the index photos, recognition by the training photos.

Photos lie in train, index and test, each in folders of the first three characters of its id:
index/0/1/2/0123456789abcdef.jpg. The tables (train.csv, train_clean.csv, index.csv,
index_image_to_landmark.csv, recognition_solution_v2.1.csv, retrieval_solution_v2.1.csv) lie beside
these folders, in them, or in metadata, meta or ground_truth. Ids are the set's own.

Retrieval: the database is the index; a test photo's positives are the index photos its row lists.
Recognition: the database is the training set, labels its landmarks; a test photo's positives are
the training photos of the landmarks its row lists, and a test photo without landmark is a
distractor query, as is one whose landmarks the training set lacks. Rows marked Ignored are left
out.

Tables are read row by row; of a row only what is needed is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from sys import intern
from typing import NamedTuple

from delfsearch._validation import check_choice
from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets.base import Dataset, Query
from delfsearch.evaluation.datasets.missing import settle_missing
from delfsearch.evaluation.datasets.photo_paths import PhotoPaths
from delfsearch.evaluation.datasets.reading import PathLike, csv_rows, existing_folder, first_file

TASKS = ("retrieval", "recognition")
SPLITS = ("private", "public", "all")
_KEY = "google_landmarks"
_PLACES = ("", "metadata/", "meta/", "ground_truth/", "train/", "index/", "test/")
_VERSIONS = ("_v2.1", "_v2", "")


def read_google_landmarks(
    root: PathLike,
    *,
    task: str = "retrieval",
    split: str = "private",
    clean: bool = False,
    check_files: bool = True,
    missing: str = "error",
) -> Dataset:
    """Read Google Landmarks v2.

    root : folder that holds train, index and test, and the tables (see the module).
    task : "retrieval" (against the index) or "recognition" (against the training set).
    split : test photos "private", "public" or "all" of the two; figures in print are private.
    clean : recognition against train_clean.csv instead of train.csv.
    check_files : look whether every photo is there.
    missing : "error", or "drop" to do without absent photos.
    Raises DatasetError with the file and line of what is absent or malformed.
    """
    check_choice(task, "task", TASKS)
    check_choice(split, "split", SPLITS)
    base = existing_folder(root, _KEY, _KEY)
    if task == "retrieval":
        photos, labels = _index(base)
        part = "index"
    else:
        photos, labels = _train_clean(base) if clean else _train(base)
        part = "train"
    by_landmark: dict[str, list[str]] = {}
    if task == "recognition":
        for photo, landmark in labels.items():
            by_landmark.setdefault(landmark, []).append(photo)
    queries: list[Query] = []
    unanswered: list[Query] = []
    shared: dict[str, frozenset[str]] = {}  # one set for all the queries of the same landmarks
    for row in _solution(base, task, split):
        if row.truth not in shared:
            ids = row.truth.split()
            if task == "recognition":
                ids = [photo for landmark in ids for photo in by_landmark.get(landmark, ())]
            shared[row.truth] = frozenset(ids)
        query = Query(
            id=row.id,
            path=base / _place("test", row.id),
            positives=shared[row.truth],
            scene=row.truth if task == "recognition" else "",
            subset=row.usage,
        )
        (queries if query.positives else unanswered).append(query)
    names = {photo: _place(part, photo) for photo in photos}
    dataset = Dataset(
        name=f"gldv2-{task}",
        root=base,
        database=tuple(photos),
        queries=tuple(queries),
        distractor_queries=tuple(unanswered),
        paths=PhotoPaths(base, names),
        labels=labels,
    )
    if not check_files:
        return dataset.check()
    return settle_missing(dataset, missing, source=_KEY)


class _Row(NamedTuple):
    """One test photo: truth is ids of index photos or of landmarks, spaces between; usage."""

    id: str
    truth: str
    usage: str


def _solution(root: Path, task: str, split: str) -> Iterator[_Row]:
    column = "images" if task == "retrieval" else "landmarks"
    file = _table(root, *(f"{task}_solution{version}.csv" for version in _VERSIONS))
    wanted = {"private", "public"} if split == "all" else {split}
    for line, (photo, truth, usage) in csv_rows(file, ("id", column, "Usage")):
        usage = usage.lower()
        if usage not in ("private", "public", "ignored"):
            raise DatasetError(
                f"{file}, line {line}: Usage must be Private, Public or Ignored; got {usage!r}"
            )
        if usage in wanted:
            yield _Row(_id(photo, file, line), "" if truth == "None" else truth, usage)


def _index(root: Path) -> tuple[list[str], dict[str, str]]:
    """Return the index photos, and their landmarks where that table is there."""
    file = _table(root, "index.csv")
    photos = [_id(photo, file, line) for line, (photo,) in csv_rows(file, ("id",))]
    labels: dict[str, str] = {}
    for place in _PLACES:
        table = root / f"{place}index_image_to_landmark.csv"
        if table.is_file():
            known = set(photos)
            for _, (photo, landmark) in csv_rows(table, ("id", "landmark_id")):
                if photo in known:
                    labels[photo] = intern(landmark)
            break
    return photos, labels


def _train(root: Path) -> tuple[list[str], dict[str, str]]:
    file = _table(root, "train.csv")
    photos: list[str] = []
    labels: dict[str, str] = {}
    for line, (photo, landmark) in csv_rows(file, ("id", "landmark_id")):
        photos.append(_id(photo, file, line))
        labels[photo] = intern(landmark)
    return photos, labels


def _train_clean(root: Path) -> tuple[list[str], dict[str, str]]:
    file = _table(root, "train_clean.csv")
    photos: list[str] = []
    labels: dict[str, str] = {}
    for line, (landmark, ids) in csv_rows(file, ("landmark_id", "images")):
        for photo in ids.split():
            photos.append(_id(photo, file, line))
            labels[photo] = intern(landmark)
    return photos, labels


def _table(root: Path, *names: str) -> Path:
    places = [f"{place}{name}" for name in names for place in _PLACES]
    try:
        return first_file(root, places, _KEY, _KEY)
    except DatasetError:
        # All places would make a long line; the table's name is what one looks for.
        return first_file(root, names[:1], _KEY, _KEY)


def _id(photo: str, file: Path, line: int) -> str:
    if len(photo) < 3 or not (photo.isascii() and photo.isalnum()):
        raise DatasetError(
            f"{file}, line {line}: an id must be at least three letters and digits; got {photo!r}"
        )
    return photo


def _place(part: str, photo: str) -> str:
    return f"{part}/{photo[0]}/{photo[1]}/{photo[2]}/{photo}.jpg"
