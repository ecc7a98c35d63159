"""Stanford Mobile Visual Search: clean reference photos, and camera phones' photos of the same.

A folder for each category (book_covers, landmarks, museum_paintings, ...), in it Reference and a
folder for each device. A photo of a device shows what the reference photo of the same number shows;
one whose number has no reference is a distractor query. The database is the references of all the
categories read. Ids are paths such as book_covers/Droid/001.jpg.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets.base import Dataset, Query, listed
from delfsearch.evaluation.datasets.missing import settle_missing
from delfsearch.evaluation.datasets.photo_paths import PhotoPaths
from delfsearch.evaluation.datasets.reading import PathLike, existing_folder, list_photos
from delfsearch.evaluation.datasets.sources import advice

REFERENCE = "Reference"
# "Query" is what some copies call the photos of one device.
DEVICES = ("5800", "Canon", "Droid", "E63", "Palm", "iPhone", "Query")


def read_smvs(
    root: PathLike,
    *,
    categories: Collection[str] | None = None,
    devices: Collection[str] | None = None,
) -> Dataset:
    """Read Stanford Mobile Visual Search.

    root : folder that holds a folder for each category, or one called mvs_images that does.
    categories : which to read; None means all that have a folder Reference.
    devices : which device folders; None means all of DEVICES that are there, and refuses others.
    Returns queries with the category as subset and the device as kind.
    Raises DatasetError where a folder or all photos are absent, or two references share a number.
    """
    name = "smvs"
    base = existing_folder(root, name, name)
    folder = base / "mvs_images" if (base / "mvs_images").is_dir() else base
    found = sorted(entry.name for entry in folder.iterdir() if (entry / REFERENCE).is_dir())
    wanted = found if categories is None else sorted(set(categories))
    if absent := sorted(set(wanted) - set(found)):
        raise DatasetError(
            f"{name}: {str(folder)!r} has no {listed(absent)} with a folder {REFERENCE}"
            f"{advice(name)}"
        )
    if not wanted:
        raise DatasetError(
            f"{name}: no category (a folder with a folder {REFERENCE}) in {str(folder)!r}"
            f"{advice(name)}"
        )
    labels: dict[str, str] = {}
    queries: list[Query] = []
    unanswered: list[Query] = []
    for category in wanted:
        references = _references(folder, category, name)
        labels |= {photo: f"{category}/{number}" for number, photo in references.items()}
        for device in _devices(folder / category, devices, name):
            for photo in list_photos(folder / category / device):
                number = _number(photo)
                answer = references.get(number)
                query = Query(
                    id=f"{category}/{device}/{photo}",
                    path=folder / category / device / photo,
                    positives=frozenset({answer} if answer else ()),
                    scene=f"{category}/{number}",
                    subset=category,
                    kind=device,
                )
                (queries if answer else unanswered).append(query)
    if not queries:
        raise DatasetError(f"{name}: no photo of a device in {str(folder)!r}{advice(name)}")
    dataset = Dataset(
        name=name,
        root=base,
        database=tuple(labels),
        queries=tuple(queries),
        distractor_queries=tuple(unanswered),
        paths=PhotoPaths(folder, {photo: photo for photo in labels}),
        labels=labels,
    )
    return settle_missing(dataset, "error", source=name, look=False)


def _references(folder: Path, category: str, name: str) -> dict[str, str]:
    """Return the id of every reference photo by its number."""
    references: dict[str, str] = {}
    for photo in list_photos(folder / category / REFERENCE):
        number, path = _number(photo), f"{category}/{REFERENCE}/{photo}"
        if number in references:
            raise DatasetError(
                f"{name}: reference photos must have different numbers; {references[number]!r} "
                f"and {path!r} have the same"
            )
        references[number] = path
    if not references:
        raise DatasetError(f"{name}: no photo in {str(folder / category / REFERENCE)!r}")
    return references


def _number(photo: str) -> str:
    """Return what pairs photos: the name without ending, without leading zeros if a number."""
    stem = os.path.splitext(photo.rpartition("/")[2])[0]
    return (stem.lstrip("0") or "0") if stem.isascii() and stem.isdigit() else stem


def _devices(category: Path, devices: Collection[str] | None, name: str) -> list[str]:
    there = sorted(
        entry.name
        for entry in category.iterdir()
        if entry.is_dir() and entry.name != REFERENCE and not entry.name.startswith(".")
    )
    if devices is not None:
        return [device for device in there if device in set(devices)]
    known = {device.lower() for device in DEVICES}
    if strangers := [device for device in there if device.lower() not in known]:
        raise DatasetError(
            f"{name}: {str(category)!r} must hold {REFERENCE} and folders of devices "
            f"({', '.join(DEVICES)}); {listed(strangers)} are not known. Name those to read in "
            "devices"
        )
    return there
