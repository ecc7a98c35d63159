"""Every set by the name that the paper and the field use."""

from __future__ import annotations

from typing import Any

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets.base import Dataset
from delfsearch.evaluation.datasets.distractors import (
    read_flickr100k,
    with_distractor_queries,
    with_distractors,
)
from delfsearch.evaluation.datasets.google_landmarks import read_google_landmarks
from delfsearch.evaluation.datasets.holidays import read_holidays
from delfsearch.evaluation.datasets.image_folder import read_image_folder
from delfsearch.evaluation.datasets.library_folder import read_library_folder
from delfsearch.evaluation.datasets.oxford import read_oxford5k, read_paris6k
from delfsearch.evaluation.datasets.reading import PathLike
from delfsearch.evaluation.datasets.revisited import read_revisited
from delfsearch.evaluation.datasets.smvs import read_smvs
from delfsearch.evaluation.datasets.table import read_table

_LARGE_SET_RADIUS_KM = 25.0

# name -> (set to begin with, the set distractor queries come from, whether Flickr100k is added)
_CONSTRUCTED = {
    "oxford5k": ("oxford5k", "paris6k", False),
    "paris6k": ("paris6k", "oxford5k", False),
    "oxford105k": ("oxford5k", "paris6k", True),
    "paris106k": ("paris6k", "oxford5k", True),
}
_OTHER_NAMES = {
    "oxf5k": "oxford5k",
    "par6k": "paris6k",
    "oxf105k": "oxford105k",
    "par106k": "paris106k",
    "roxford": "roxford5k",
    "rparis": "rparis6k",
    "gldv2": "gldv2-retrieval",
}
DATASET_NAMES = (
    "oxford5k",
    "paris6k",
    "oxford105k",
    "paris106k",
    "oxford5k*",
    "paris6k*",
    "oxford105k*",
    "paris106k*",
    "roxford5k",
    "rparis6k",
    "flickr100k",
    "holidays",
    "smvs",
    "gldv2-retrieval",
    "gldv2-recognition",
    "large",
    "folder",
    "image_folder",
    "table",
)


def load_dataset(
    name: str,
    root: PathLike,
    *,
    flickr100k: PathLike | None = None,
    other_root: PathLike | None = None,
    n_distractor_queries: int | None = None,
    random_state: Any = 0,
    exclude_self: bool | None = None,
    missing: str = "error",
) -> Dataset:
    """Read an evaluation set by name.

    name : one of DATASET_NAMES, upper or lower case, or as the paper abbreviates (Oxf5k, Oxf105k*,
        Par6k, Par106k*). "large" is a table judged by the 25 km rule, "folder" the library's own
        format, "table" a CSV table judged by labels.
    root : the set's folder (or table).
    flickr100k : folder of Flickr100k, for the 105k and 106k sets.
    other_root : for starred sets, the folder that distractor queries are drawn from: Paris6k for
        Oxford's, Oxford5k for Paris's.
    n_distractor_queries : Q^D of a starred set (the paper: 0, 400, 800, 1600).
    random_state : seed of that draw.
    exclude_self : whether a query's own photo is ignored, where the set leaves a choice (Oxford5k,
        Paris6k and what is made of them); None follows the published protocol.
    missing : "error", or "drop" to do without absent photos.
    Raises DatasetError for an unknown name, an argument that the name needs or has no use for, and
    as the set's reader does.
    """
    wanted = name.strip().lower()
    starred = wanted.endswith("*")
    plain = wanted.rstrip("*").strip()
    plain = _OTHER_NAMES.get(plain, plain)
    if plain + "*" * starred not in DATASET_NAMES:
        raise DatasetError(f"no set is called {name!r}; there are {', '.join(DATASET_NAMES)}")
    _check_arguments(
        name, plain, starred, flickr100k, other_root, n_distractor_queries, exclude_self
    )
    if plain not in _CONSTRUCTED:
        return _read_other(plain, root, missing)
    first, second, larger = _CONSTRUCTED[plain]
    readers = {"oxford5k": read_oxford5k, "paris6k": read_paris6k}
    dataset = readers[first](root, exclude_self=bool(exclude_self), missing=missing)
    if larger and flickr100k is not None:
        dataset = with_distractors(dataset, flickr100k)
    if starred and other_root is not None and n_distractor_queries is not None:
        dataset = with_distractor_queries(
            dataset,
            readers[second](other_root, missing=missing),
            n_distractor_queries,
            random_state=random_state,
        )
    return dataset


def _read_other(name: str, root: PathLike, missing: str) -> Dataset:
    if name in ("roxford5k", "rparis6k"):
        return read_revisited(root, name, missing=missing)
    if name in ("gldv2-retrieval", "gldv2-recognition"):
        return read_google_landmarks(root, task=name.removeprefix("gldv2-"), missing=missing)
    if name == "large":
        return read_table(root, radius_km=_LARGE_SET_RADIUS_KM, name=name, missing=missing)
    if name == "table":
        return read_table(root, missing=missing)
    if name == "folder":
        return read_library_folder(root, missing=missing)
    listed_from_disk = {
        "flickr100k": read_flickr100k,
        "holidays": read_holidays,
        "smvs": read_smvs,
        "image_folder": read_image_folder,
    }
    return listed_from_disk[name](root)


def _check_arguments(
    name: str,
    plain: str,
    starred: bool,
    flickr100k: PathLike | None,
    other_root: PathLike | None,
    n_distractor_queries: int | None,
    exclude_self: bool | None,
) -> None:
    _, second, larger = _CONSTRUCTED.get(plain, ("", "", False))
    rules = (
        ("flickr100k", flickr100k, larger, "the folder of Flickr100k"),
        ("other_root", other_root, starred, f"the folder of {second}"),
        ("n_distractor_queries", n_distractor_queries, starred, "Q^D, e.g. 400"),
    )
    for argument, value, needed, meaning in rules:
        if needed and value is None:
            raise DatasetError(f"{name} needs {argument}: {meaning}")
        if value is not None and not needed:
            raise DatasetError(f"{name} has no use for {argument}; leave it out")
    if exclude_self is not None and plain not in _CONSTRUCTED:
        raise DatasetError(f"{name} leaves no choice of exclude_self; leave it out")
