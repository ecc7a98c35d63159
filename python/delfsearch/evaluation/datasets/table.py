"""A plain CSV table: path, role, label, latitude, longitude.

path : relative to the folder, '/' between parts; it is the id too. role : "db" (or "database"),
"distractor" (in the database, answers nothing), "query", or "distractor_query" (or
"query_nomatch"; nothing answers it). label : what the photo shows. latitude, longitude : degrees.
label, latitude and longitude may be empty, or absent from the table; other columns are passed over.
A photo may have two rows: one of the database and one of a query.

What is right for a query: the db photos of its label; or, where radius_km is given, whatever lies
within that distance of its location (the paper's large set: 25 km), computed when answers are
judged. The table is read row by row: a million rows take seconds.
"""

from __future__ import annotations

from pathlib import Path
from sys import intern

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets.base import (
    Dataset,
    Location,
    Query,
    check_location,
    own_photo_ignored,
)
from delfsearch.evaluation.datasets.missing import settle_missing
from delfsearch.evaluation.datasets.photo_paths import PhotoPaths
from delfsearch.evaluation.datasets.reading import PathLike, csv_rows, existing_folder

_ROLES = {
    "db": "db",
    "database": "db",
    "distractor": "distractor",
    "query": "query",
    "query_nomatch": "distractor_query",
    "distractor_query": "distractor_query",
}


class _Rows:
    """What a table says, by path. asked : (path, role) of the query rows, in their order."""

    def __init__(self) -> None:
        self.database: dict[str, str] = {}  # path -> path: one object serves as id and as name
        self.asked: dict[str, str] = {}
        self.labels: dict[str, str] = {}
        self.asked_labels: dict[str, str] = {}
        self.locations: dict[str, Location] = {}
        self.asked_locations: dict[str, Location] = {}
        self.by_label: dict[str, list[str]] = {}


def read_table(
    table: PathLike,
    *,
    root: PathLike | None = None,
    radius_km: float | None = None,
    name: str = "table",
    check_files: bool = True,
    missing: str = "error",
) -> Dataset:
    """Read a CSV table of photos with roles, labels and locations.

    table : the file, or a folder with one .csv in it.
    root : folder that the paths are relative to; None means that of the table.
    radius_km : distance within which an answer is right; None goes by labels.
    name : of the set.
    check_files : look whether every photo is there.
    missing : "error", or "drop" to do without absent photos.
    Raises DatasetError with the file and line of what is malformed, and where a query has nothing
    to be right: no db photo of its label, or no location.
    Source: Sec. 5.4 for the 25 km.
    """
    file = _the_table(Path(table), name)
    base = existing_folder(root, name) if root is not None else file.parent
    rows = _read(file)
    sets = {label: frozenset(photos) for label, photos in rows.by_label.items()}
    none: frozenset[str] = frozenset()
    queries: list[Query] = []
    unanswered: list[Query] = []
    for path, role in rows.asked.items():
        label = rows.asked_labels.get(path, "")
        by_label = role == "query" and radius_km is None
        positives, junk = own_photo_ignored(
            path, sets.get(label, none) if by_label else none, none, rows.database
        )
        query = Query(
            id=path,
            path=base / path,
            positives=positives,
            junk=junk,
            scene=label,
            kind="distractor" if role == "distractor_query" else "",
            location=rows.asked_locations.get(path),
        )
        (queries if role == "query" else unanswered).append(query)
    dataset = Dataset(
        name=name,
        root=base,
        database=tuple(rows.database),
        queries=tuple(queries),
        distractor_queries=tuple(unanswered),
        paths=PhotoPaths(base, rows.database),
        labels=rows.labels,
        locations=rows.locations,
        radius_km=None if radius_km is None else float(radius_km),
    )
    return settle_missing(dataset, missing) if check_files else dataset.check()


def _the_table(table: Path, name: str) -> Path:
    if table.is_file():
        return table
    found = sorted(table.glob("*.csv")) if table.is_dir() else []
    if len(found) == 1:
        return found[0]
    has = f"has {len(found)} of them" if table.is_dir() else "does not exist"
    raise DatasetError(
        f"{name}: the table must be a CSV file or a folder with one; {str(table)!r} {has}"
    )


def _read(file: Path) -> _Rows:
    rows = _Rows()
    table = csv_rows(file, ("path", "role"), ("label", "latitude", "longitude"))
    for line, (path, role, label, latitude, longitude) in table:
        kind = _ROLES.get(role)
        if kind is None:
            raise DatasetError(
                f"{file}, line {line}: role must be one of {', '.join(map(repr, _ROLES))}; got "
                f"{role!r}"
            )
        _check_path(path, file, line)
        asks = kind in ("query", "distractor_query")
        taken = rows.asked if asks else rows.database
        if path in taken:
            raise DatasetError(
                f"{file}, line {line}: {path!r} is there already as "
                f"{'a query' if asks else 'a photo of the database'}"
            )
        taken[path] = kind if asks else path
        if label:
            label = intern(label)
            if asks:
                rows.asked_labels[path] = label
            elif kind == "db":
                rows.labels[path] = label
                rows.by_label.setdefault(label, []).append(path)
        if latitude or longitude:
            location = _location(latitude, longitude, file, line)
            (rows.asked_locations if asks else rows.locations)[path] = location
    return rows


def _check_path(path: str, file: Path, line: int) -> None:
    if not path:
        raise DatasetError(f"{file}, line {line}: path must not be empty")
    # Spelt out for speed: a million rows pass here. "a..b" and "a:b" are names like others.
    climbs = ".." in path and ".." in path.replace("\\", "/").split("/")
    if path[0] in "/\\" or climbs or path[1:3] in (":\\", ":/"):
        raise DatasetError(
            f"{file}, line {line}: path must be relative to the folder and stay in it; got "
            f"{path!r}. Pass the folder that holds all photos as root"
        )


def _location(latitude: str, longitude: str, file: Path, line: int) -> Location:
    try:
        location = float(latitude), float(longitude)
    except ValueError:
        raise DatasetError(
            f"{file}, line {line}: latitude and longitude must both be degrees, or both be empty; "
            f"got {latitude!r} and {longitude!r}"
        ) from None
    check_location(location, f"{file}, line {line}:")
    return location
