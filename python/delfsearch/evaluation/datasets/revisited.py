"""Revisited Oxford and Paris: a pickle says what is easy, hard and junk for each of 70 queries.

gnd_roxford5k.pkl and gnd_rparis6k.pkl hold a dict: imlist, the names of the database photos;
qimlist, those of the query photos, which are not in the database; gnd, for each query bbx (the box
x0, y0, x1, y1) and easy, hard and junk (positions in imlist). The pickle is read as plain data only
(``plain_pickle``).

Three protocols follow from it: Easy (positives easy; hard and junk ignored), Medium (easy and
hard; junk ignored) and Hard (hard; easy and junk ignored). The reader returns Medium;
``with_difficulty`` gives the others. A query with no positive in a protocol has no part in it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from delfsearch._validation import check_choice
from delfsearch.boxes import Box, check_box
from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets.base import Dataset, Query, listed
from delfsearch.evaluation.datasets.missing import settle_missing
from delfsearch.evaluation.datasets.oxford import OXFORD5K, PARIS6K, find_photos_by_name
from delfsearch.evaluation.datasets.photo_paths import PhotoPaths
from delfsearch.evaluation.datasets.plain_pickle import load_plain_pickle
from delfsearch.evaluation.datasets.reading import (
    JPEG,
    PathLike,
    by_stem,
    existing_folder,
    first_file,
    list_photos,
)

NAMES = ("roxford5k", "rparis6k")
DIFFICULTIES = ("easy", "medium", "hard")
_LAYOUTS = {"roxford5k": OXFORD5K, "rparis6k": PARIS6K}


def read_revisited(
    root: PathLike,
    name: str,
    *,
    photos: PathLike | None = None,
    truth: PathLike | None = None,
    missing: str = "error",
) -> Dataset:
    """Read Revisited Oxford or Paris under the Medium protocol.

    root : folder that holds the pickle, and the photos in jpg or as Oxford5k and Paris6k unpack;
        or a folder that holds such a folder of this name.
    name : "roxford5k" or "rparis6k".
    photos, truth : the photo folder and the pickle, where they lie elsewhere.
    missing : "error", or "drop" to do without photos that are absent.
    Returns queries with easy and hard beside positives (their union) and junk. exclude_self is
    true: queries are not in the database.
    Raises DatasetError where something is absent, malformed, or a pickle of more than plain data.
    """
    check_choice(name, "name", NAMES)
    base = existing_folder(root, name, name)
    file = (
        Path(truth)
        if truth is not None
        else first_file(base, (f"gnd_{name}.pkl", f"{name}/gnd_{name}.pkl"), name, name)
    )
    if not file.is_file():
        raise DatasetError(f"{name}: the ground truth {str(file)!r} is no file")
    database, queries = _read_truth(file, name)
    layout = _LAYOUTS[name]
    if photos is None:
        extra = (f"{name}/jpg", name, "jpg")
        folder, names = find_photos_by_name(base, layout, name, name, extra)
    else:
        folder = existing_folder(photos, name, name)
        names = by_stem(list_photos(folder, levels=layout.levels, suffixes=JPEG), name, folder)
    dataset = Dataset(
        name=name,
        root=base,
        database=tuple(database),
        queries=tuple(
            dataclasses.replace(query, path=folder / names.get(query.photo, f"{query.photo}.jpg"))
            for query in queries
        ),
        paths=PhotoPaths(folder, {photo: names[photo] for photo in database if photo in names}),
        exclude_self=True,
    )
    return settle_missing(dataset, missing, source=name, look=False)


def with_difficulty(dataset: Dataset, difficulty: str) -> Dataset:
    """Return a revisited set under the Easy, Medium or Hard protocol.

    difficulty : "easy", "medium" or "hard".
    Returns the set without the queries that have no positive in it (notes says which).
    Raises DatasetError where a query has neither easy nor hard positives.
    """
    check_choice(difficulty, "difficulty", DIFFICULTIES)
    queries = []
    for query in dataset.queries:
        if not query.easy | query.hard:
            raise DatasetError(
                f"{dataset.name}: with_difficulty is for the revisited sets; query {query.id!r} "
                "has neither easy nor hard positives"
            )
        # Junk of the set itself: under any protocol, what is neither easy nor hard.
        junk = query.junk - query.easy - query.hard
        if difficulty == "easy":
            positives, junk = query.easy, junk | query.hard
        elif difficulty == "hard":
            positives, junk = query.hard, junk | query.easy
        else:
            positives = query.easy | query.hard
        queries.append(dataclasses.replace(query, positives=positives, junk=junk))
    empty = [query.id for query in queries if not query.positives]
    notes = (f"{len(empty)} query(ies) have no {difficulty} positive: {listed(empty)}",)
    return dataclasses.replace(
        dataset,
        queries=tuple(query for query in queries if query.positives),
        headline=tuple(name for name in dataset.headline if name not in set(empty)),
        notes=dataset.notes + (notes if empty else ()),
    ).check()


def _read_truth(file: Path, name: str) -> tuple[list[str], list[Query]]:
    content = load_plain_pickle(file)

    def malformed(what: str) -> DatasetError:
        return DatasetError(f"{file} is not the ground truth of {name}: {what}")

    if not isinstance(content, dict) or not {"imlist", "qimlist", "gnd"} <= content.keys():
        raise malformed("it must be a dict with imlist, qimlist and gnd")
    database, photos, truths = (content[key] for key in ("imlist", "qimlist", "gnd"))
    for key in ("imlist", "qimlist"):
        names = content[key]
        if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
            raise malformed(f"{key} must be a list of names")
        if repeated := [item for item, count in Counter(names).items() if count > 1]:
            raise malformed(f"{key} must hold every name once; {listed(repeated)} is repeated")
    if not isinstance(truths, list) or len(truths) != len(photos):
        raise malformed(f"gnd must be a list of {len(photos)}, one for each of qimlist")
    queries = []
    for photo, truth in zip(photos, truths):
        try:
            parts = {key: _ids(truth[key], database) for key in ("easy", "hard", "junk")}
            box = _box(truth["bbx"])
        except (KeyError, TypeError, ValueError) as error:
            raise malformed(f"query {photo!r}: {type(error).__name__}: {error}") from None
        queries.append(
            Query(
                id=photo,
                path=Path(),
                box=box,
                positives=parts["easy"] | parts["hard"],
                junk=parts["junk"],
                easy=parts["easy"],
                hard=parts["hard"],
            )
        )
    return database, queries


def _ids(positions: Any, database: list[str]) -> frozenset[str]:
    if not isinstance(positions, (list, tuple)):
        raise TypeError(f"must have lists of positions; got {type(positions).__name__}")
    for position in positions:
        whole = isinstance(position, int) or (isinstance(position, float) and position.is_integer())
        if not whole or isinstance(position, bool) or not 0 <= position < len(database):
            raise ValueError(
                f"positions must be whole numbers in 0 ... {len(database) - 1} (of imlist); got "
                f"{str(position)[:40]}"
            )
    ids = frozenset(database[int(position)] for position in positions)
    if len(ids) != len(positions):
        raise ValueError("a position is there twice")
    return ids


def _box(corners: Any) -> Box:
    if isinstance(corners, list) and len(corners) == 1:  # of a (1, 4) array
        corners = corners[0]
    if not isinstance(corners, (list, tuple)) or len(corners) != 4:
        raise ValueError("bbx must be four numbers")
    return check_box(corners)
