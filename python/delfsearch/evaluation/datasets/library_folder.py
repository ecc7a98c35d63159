"""The library's own folder format (``evaluation.folder``) as a Dataset."""

from __future__ import annotations

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets.base import Dataset, Query, own_photo_ignored
from delfsearch.evaluation.datasets.missing import settle_missing
from delfsearch.evaluation.datasets.photo_paths import PhotoPaths
from delfsearch.evaluation.datasets.reading import PathLike
from delfsearch.evaluation.folder import PhotoFolder


def read_library_folder(
    root: PathLike, *, check_files: bool = True, missing: str = "error"
) -> Dataset:
    """Read a folder with photos.csv and ground_truth.json.

    check_files : look whether every photo of the database and every query is there.
    missing : "error", or "drop" to do without absent photos.
    Raises DatasetError that names what is absent, repeated or malformed.
    """
    try:
        folder = PhotoFolder.read(root, check_files=False)
    except ValueError as error:
        raise DatasetError(str(error)) from None
    dataset = _from_folder(folder)
    return settle_missing(dataset, missing) if check_files else dataset.check()


def from_photo_folder(folder: PhotoFolder, *, name: str = "") -> Dataset:
    """Return a PhotoFolder as a Dataset; whether photos are there is not looked at.

    name : of the set; "" means the folder's own name.
    Queries without positives become distractor queries of their kind, before the folder's own,
    whose kind is "distractor". A query's own photo is ignored in its answers.
    Raises DatasetError where the rules of a Dataset are broken, e.g. a query that is also a
    distractor query, or positives outside the database.
    """
    return _from_folder(folder, name).check()


def _from_folder(folder: PhotoFolder, name: str = "") -> Dataset:
    database = frozenset(folder.database)
    # Junk may name photos that are not indexed, such as the other queries of a scene.
    queries: list[Query] = []
    unanswered: list[Query] = []
    for path, truth in folder.queries.items():
        positives, junk = own_photo_ignored(
            path, frozenset(truth.positives), frozenset(truth.junk) & database, database
        )
        query = Query(
            id=path,
            path=folder.root / path,
            positives=positives,
            junk=junk,
            scene=truth.scene,
            subset=truth.subset,
            kind=truth.kind,
        )
        (queries if positives else unanswered).append(query)
    unanswered += [
        Query(
            id=path,
            path=folder.root / path,
            junk=frozenset({path}) & database,
            scene=folder.scenes.get(path, ""),
            subset=folder.subsets.get(path, ""),
            kind="distractor",
        )
        for path in folder.distractor_queries
    ]
    n_empty = len(unanswered) - len(folder.distractor_queries)
    notes = (
        (f"{n_empty} query(ies) without positives are asked as distractor queries",)
        if n_empty
        else ()
    )
    empty = {query.id for query in unanswered}
    return Dataset(
        name=name or folder.root.resolve().name,
        root=folder.root,
        database=folder.database,
        queries=tuple(queries),
        distractor_queries=tuple(unanswered),
        paths=PhotoPaths(folder.root, {path: path for path in folder.database}),
        labels={path: label for path, label in folder.labels.items() if path in database},
        headline=tuple(path for path in folder.headline_queries if path not in empty),
        notes=notes,
    )
