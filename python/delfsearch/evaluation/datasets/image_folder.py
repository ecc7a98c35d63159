"""A folder of folders of photos: photos of one subfolder show the same thing.

No table is needed. The label of a photo is its first subfolder; photos that lie beside the
subfolders have none and are distractors in the database. Ids are paths relative to the folder.
"""

from __future__ import annotations

from delfsearch._validation import check_choice
from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets.base import Dataset, Query
from delfsearch.evaluation.datasets.missing import settle_missing
from delfsearch.evaluation.datasets.photo_paths import PhotoPaths
from delfsearch.evaluation.datasets.reading import PathLike, existing_folder, list_photos

QUERIES = ("all", "first")


def read_image_folder(root: PathLike, *, queries: str = "all") -> Dataset:
    """Read photos whose subfolder says what they show.

    root : the folder; photos of any format that can be decoded, subfolders at any depth.
    queries : "all" makes every labelled photo a query that stays in the database and is left out
        of its own answers; "first" takes the first photo of each subfolder, by name, out of the
        database and makes it the query.
    Returns a photo alone in its subfolder as distractor query: nothing answers it.
    Raises DatasetError where no subfolder has two photos.
    Memory: with "all", the square of the number of photos in a subfolder.
    """
    check_choice(queries, "queries", QUERIES)
    name = "image_folder"
    base = existing_folder(root, name)
    photos = list_photos(base)
    groups: dict[str, list[str]] = {}
    for photo in photos:
        label, slash, _ = photo.partition("/")
        if slash:
            groups.setdefault(label, []).append(photo)
    if not any(len(group) > 1 for group in groups.values()):
        raise DatasetError(
            f"{name}: {str(base)!r} must have a subfolder with two photos of the same thing; it "
            f"has {len(photos)} photo(s) in {len(groups)} subfolder(s)"
        )
    asking = {
        photo for group in groups.values() for photo in (group if queries == "all" else group[:1])
    }
    indexed = photos if queries == "all" else [photo for photo in photos if photo not in asking]
    database = frozenset(indexed)
    answered: list[Query] = []
    unanswered: list[Query] = []
    for label, group in groups.items():
        for photo in group:
            if photo not in asking:
                continue
            positives = frozenset(group) - {photo}
            query = Query(
                id=photo,
                path=base / photo,
                positives=positives,
                junk=frozenset({photo}) & database,
                scene=label,
            )
            (answered if positives else unanswered).append(query)
    dataset = Dataset(
        name=name,
        root=base,
        database=tuple(indexed),
        queries=tuple(answered),
        distractor_queries=tuple(unanswered),
        paths=PhotoPaths(base, {photo: photo for photo in indexed}),
        labels={
            photo: label for label, group in groups.items() for photo in group if photo in database
        },
    )
    return settle_missing(dataset, "error", look=False)
