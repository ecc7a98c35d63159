"""The library's own folder format: photographs with photos.csv and ground_truth.json.

photos.csv: one row a photo, columns path (relative to the folder, '/' between parts), role (query,
db, query_nomatch, distractor), scene, and optionally kind, subset and others. ground_truth.json:
queries (path -> scene, kind, subset, positives, junk), database (the paths to index), and
optionally headline_queries, no_match_queries and distractor_queries (lists of paths).
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TABLE_NAME = "photos.csv"
TRUTH_NAME = "ground_truth.json"


@dataclass(frozen=True)
class QueryTruth:
    """What is known of one query: positives are right answers, junk is ignored at any rank."""

    scene: str
    kind: str
    subset: str
    positives: tuple[str, ...]
    junk: tuple[str, ...]


@dataclass(frozen=True)
class PhotoFolder:
    """Photographs with ground truth. All paths are relative to root, '/' between parts.

    paths : every photo in the order of photos.csv. roles, scenes, kinds, subsets : by path; empty
    where the table says nothing. queries : ground truth by path. database : the photos to index.
    headline_queries, no_match_queries, distractor_queries : see the module.
    """

    root: Path
    paths: tuple[str, ...] = field(repr=False)
    roles: Mapping[str, str] = field(repr=False)
    scenes: Mapping[str, str] = field(repr=False)
    kinds: Mapping[str, str] = field(repr=False)
    subsets: Mapping[str, str] = field(repr=False)
    queries: Mapping[str, QueryTruth] = field(repr=False)
    database: tuple[str, ...] = field(repr=False)
    headline_queries: tuple[str, ...] = field(repr=False, default=())
    no_match_queries: tuple[str, ...] = field(repr=False, default=())
    distractor_queries: tuple[str, ...] = field(repr=False, default=())

    @property
    def labels(self) -> dict[str, str]:
        """Scene by path, for the photos that show a known one (distractors do not)."""
        return {
            path: scene
            for path, scene in self.scenes.items()
            if scene and self.roles.get(path) != "distractor"
        }

    @property
    def positives(self) -> dict[str, tuple[str, ...]]:
        """Right answers by query."""
        return {path: truth.positives for path, truth in self.queries.items()}

    @property
    def junk(self) -> dict[str, tuple[str, ...]]:
        """Ignored answers by query."""
        return {path: truth.junk for path, truth in self.queries.items()}

    @staticmethod
    def is_one(root: str | os.PathLike[str]) -> bool:
        """Return whether a folder holds the two files of the format."""
        return (Path(root) / TABLE_NAME).is_file() and (Path(root) / TRUTH_NAME).is_file()

    @staticmethod
    def read(root: str | os.PathLike[str], *, check_files: bool = True) -> PhotoFolder:
        """Read photos.csv and ground_truth.json.

        check_files : also look whether every photo is there.
        Raises ValueError that names what is absent, repeated or not as it must be.
        """
        folder = Path(root)
        for name in (TABLE_NAME, TRUTH_NAME):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} is not a folder of the library's format: no {name}")
        columns = _read_table(folder / TABLE_NAME)
        paths = tuple(columns["path"])
        try:
            truth = json.loads((folder / TRUTH_NAME).read_text(encoding="utf-8"))
            queries = {
                path: QueryTruth(
                    scene=entry.get("scene", ""),
                    kind=entry.get("kind", ""),
                    subset=entry.get("subset", ""),
                    positives=tuple(entry["positives"]),
                    junk=tuple(entry.get("junk", ())),
                )
                for path, entry in truth["queries"].items()
            }
            database = tuple(truth["database"])
            lists = {
                name: tuple(truth.get(name, ()))
                for name in ("headline_queries", "no_match_queries", "distractor_queries")
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / TRUTH_NAME} is not as it must be: {type(error).__name__}: {error}"
            ) from None
        found = PhotoFolder(
            root=folder,
            paths=paths,
            queries=queries,
            database=database,
            roles=dict(zip(paths, columns["role"])),
            scenes=dict(zip(paths, columns["scene"])),
            kinds=dict(zip(paths, columns["kind"])),
            subsets=dict(zip(paths, columns["subset"])),
            **lists,
        )
        _check(found, check_files)
        return found


def _read_table(file: Path) -> dict[str, list[str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows: list[dict[str, Any]] = list(csv.DictReader(lines))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a table in UTF-8: {error}") from None
    if not rows:
        raise ValueError(f"{file} lists no photo")
    if "path" not in rows[0]:
        raise ValueError(f"{file} must have a column path; it has {', '.join(map(str, rows[0]))}")
    return {
        name: [str(row.get(name) or "") for row in rows]
        for name in ("path", "role", "scene", "kind", "subset")
    }


def _check(folder: PhotoFolder, check_files: bool) -> None:
    _refuse_repeats(folder.paths, TABLE_NAME)
    _refuse_repeats(folder.database, f"database in {TRUTH_NAME}")
    known = set(folder.paths)
    named = {
        "database": folder.database,
        "queries": folder.queries,
        "positives": (p for truth in folder.queries.values() for p in truth.positives),
        "junk": (p for truth in folder.queries.values() for p in truth.junk),
        "headline_queries": folder.headline_queries,
        "no_match_queries": folder.no_match_queries,
        "distractor_queries": folder.distractor_queries,
    }
    for name, paths in named.items():
        unknown = [path for path in paths if path not in known]
        if unknown:
            raise ValueError(
                f"{name} in {TRUTH_NAME} must be photos of {TABLE_NAME}; {unknown[0]!r} is not "
                f"({len(unknown)} in all)"
            )
    for path in (*folder.headline_queries, *folder.no_match_queries):
        if path not in folder.queries:
            raise ValueError(f"{path!r} in {TRUTH_NAME} must be one of the queries and is not")
    for path, truth in folder.queries.items():
        for name in ("positives", "junk"):
            _refuse_repeats(getattr(truth, name), f"{name} of query {path!r} in {TRUTH_NAME}")
        if both := set(truth.positives) & set(truth.junk):
            raise ValueError(f"query {path!r} has {min(both)!r} both as positive and as junk")
    if check_files:
        absent = [path for path in folder.paths if not (folder.root / path).is_file()]
        if absent:
            raise ValueError(
                f"{folder.root} lacks {len(absent)} of the {len(folder.paths)} photos in "
                f"{TABLE_NAME}, e.g. {absent[0]!r}"
            )


def _refuse_repeats(paths: Iterable[str], where: str) -> None:
    path, count = next(iter(Counter(paths).most_common(1)), ("", 0))
    if count > 1:
        raise ValueError(f"{where} must name a photo once; {path!r} is there {count} times")
