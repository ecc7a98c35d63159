"""INRIA Holidays: 1,491 holiday photos in 500 groups, the first of each group its query.

Photos lie in jpg and have six digits for a name: four for the group, two within it; 00 is the
query. The others of the group are right. The query's photo stays in the database, for it is a
wrong answer to the other queries, and is ignored in its own answers, as published.
Ids are the file names (100000.jpg).
"""

from __future__ import annotations

import re

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets.base import Dataset, Query, listed
from delfsearch.evaluation.datasets.missing import settle_missing
from delfsearch.evaluation.datasets.photo_paths import PhotoPaths
from delfsearch.evaluation.datasets.reading import JPEG, PathLike, existing_folder, list_photos
from delfsearch.evaluation.datasets.sources import advice

_PHOTO = re.compile(r"(?P<group>[0-9]{4})(?P<number>[0-9]{2})\.jpg")
_N_PHOTOS, _N_QUERIES = 1491, 500


def read_holidays(root: PathLike) -> Dataset:
    """Read INRIA Holidays.

    root : folder that holds jpg, or the photos themselves.
    Raises DatasetError where there is no photo, or a group lacks its query or its answers.
    """
    name = "holidays"
    base = existing_folder(root, name, name)
    folder = base / "jpg" if (base / "jpg").is_dir() else base
    groups: dict[str, list[str]] = {}
    for photo in list_photos(folder, levels=0, suffixes=JPEG):
        if match := _PHOTO.fullmatch(photo):
            groups.setdefault(match["group"], []).append(photo)
    if not groups:
        raise DatasetError(f"{name}: no photo named as 100000.jpg in {str(folder)!r}{advice(name)}")
    if headless := [photos[0] for group, photos in groups.items() if photos[0] != f"{group}00.jpg"]:
        raise DatasetError(
            f"{name}: every group must have its query, ending in 00; the groups of "
            f"{listed(headless)} lack it{advice(name)}"
        )
    database = tuple(photo for photos in groups.values() for photo in photos)
    queries = tuple(
        Query(
            id=photos[0],
            path=folder / photos[0],
            positives=frozenset(photos[1:]),
            junk=frozenset(photos[:1]),
            scene=group,
        )
        for group, photos in groups.items()
    )
    differs = (len(database), len(queries)) != (_N_PHOTOS, _N_QUERIES)
    dataset = Dataset(
        name=name,
        root=base,
        database=database,
        queries=queries,
        paths=PhotoPaths(folder, {photo: photo for photo in database}),
        labels={photo: photo[:4] for photo in database},
        notes=(
            f"{_N_PHOTOS} photos and {_N_QUERIES} queries in the published set, {len(database)} "
            f"and {len(queries)} here",
        )
        if differs
        else (),
    )
    return settle_missing(dataset, "error", source=name, look=False)
