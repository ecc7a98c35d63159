"""Making sets larger and harder: distractor photos in the database, distractor queries.

+100k: the photos of Flickr100k in the database (Oxford105k, Paris106k). Their ids are flickr100k/
and the path in the folder.

Starred sets (Oxf5k*, Oxf105k*, Par6k*, Par106k*): distractor queries, whole photos that nothing in
the database answers, so that whatever they retrieve is false. Oxford's are random photos of the
database of Paris6k, and the other way round. They are the first n by a hash of seed and id, which
is a random order that depends on no library's generator: 400 are the first 400 of 800, and a photo
more or less in the other database moves no other.

Source: Sec. 5.1. Differs: which photos the paper drew is not known; photos that cannot be read
(PARIS6K_UNREADABLE) are not drawn here, so that n queries are n queries.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import os
from collections.abc import Collection
from typing import Any

from delfsearch._validation import check_integer, check_seed
from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets.base import Dataset, Query
from delfsearch.evaluation.datasets.oxford import PARIS6K_UNREADABLE
from delfsearch.evaluation.datasets.photo_paths import PhotoPaths
from delfsearch.evaluation.datasets.reading import JPEG, PathLike, existing_folder, list_photos
from delfsearch.evaluation.datasets.sources import advice

_WITH_100K = {"oxford5k": "oxford105k", "paris6k": "paris106k"}


def read_flickr100k(root: PathLike) -> Dataset:
    """Read the Flickr100k distractors: photos in a folder for each tag, and no queries.

    root : the folder oxc1_100k, or one that holds it. Its photos are named {tag}/{tag}_{n}.jpg;
        any folder of JPEG photos, at any depth, serves.
    Raises DatasetError where there is no photo.
    """
    name = "flickr100k"
    base = existing_folder(root, name, name)
    folder = base / "oxc1_100k" if (base / "oxc1_100k").is_dir() else base
    photos = list_photos(folder, suffixes=JPEG)
    if not photos:
        raise DatasetError(f"{name}: no photo (*.jpg) in {str(folder)!r}{advice(name)}")
    names = {f"{name}/{photo}": photo for photo in photos}
    return Dataset(
        name=name,
        root=folder,
        database=tuple(names),
        queries=(),
        paths=PhotoPaths(folder, names),
    ).check()


def with_distractors(dataset: Dataset, distractors: Dataset | PathLike) -> Dataset:
    """Return a set with more photos in its database, none of which answers a query.

    distractors : the folder of Flickr100k, or any set, whose database is added.
    Returns Oxford105k of Oxford5k, Paris106k of Paris6k; otherwise the name gets "+" and theirs.
    Raises DatasetError where an id is in both.
    """
    more = (
        read_flickr100k(distractors) if isinstance(distractors, (str, os.PathLike)) else distractors
    )
    name = f"{dataset.name}+{more.name}"
    if more.name == "flickr100k":
        name = _WITH_100K.get(dataset.name, name)
    return dataclasses.replace(
        dataset,
        name=name,
        database=dataset.database + more.database,
        paths=PhotoPaths.of(dataset.paths).joined(PhotoPaths.of(more.paths)),
        locations={**dataset.locations, **more.locations},
        notes=(*dataset.notes, f"{len(more.database)} distractor photos of {more.name}"),
    ).check()


def with_distractor_queries(
    dataset: Dataset,
    other: Dataset,
    n: int,
    *,
    random_state: Any = 0,
    unreadable: Collection[str] = PARIS6K_UNREADABLE,
) -> Dataset:
    """Return a set with n random photos of another set's database as distractor queries (Q^D).

    other : a set that shows nothing of this one; for Oxford5k it is Paris6k, and the reverse.
    n : how many, 0 <= n. With the same random_state, a smaller n gives the first of a larger.
    random_state : seed; an int gives the same photos on every machine.
    unreadable : ids of other never to draw.
    Returns the set, its name with an asterisk. The new queries' ids are other's name, "/", and the
    photo's id there; their kind is "distractor". Distractor queries it had are kept.
    Raises DatasetError where other has fewer photos, or is of the same folder.
    Source: Sec. 5.1 (Q^D), Table 4.
    """
    n = check_integer(n, "n", minimum=0)
    if os.path.abspath(other.root) == os.path.abspath(dataset.root):
        raise DatasetError(
            f"distractor queries of {dataset.name} must come from another set; both are in "
            f"{str(other.root)!r}"
        )
    candidates = sorted(set(other.database) - set(unreadable))
    if n > len(candidates):
        raise DatasetError(
            f"n must be at most {len(candidates)}, the readable photos in the database of "
            f"{other.name}; got {n}"
        )
    seed = check_seed(random_state)
    drawn = heapq.nsmallest(n, candidates, key=lambda photo: _rank(seed, photo))
    queries = tuple(
        Query(
            id=f"{other.name}/{photo}",
            path=other.paths[photo],
            scene=f"{other.name}/{photo}",
            subset=other.name,
            kind="distractor",
        )
        for photo in drawn
    )
    return dataclasses.replace(
        dataset,
        name=dataset.name if dataset.name.endswith("*") else f"{dataset.name}*",
        distractor_queries=dataset.distractor_queries + queries,
        notes=(*dataset.notes, f"{n} distractor queries of {other.name}"),
    ).check()


def _rank(seed: int, photo: str) -> bytes:
    return hashlib.blake2b(f"{seed} {photo}".encode(), digest_size=16).digest()
