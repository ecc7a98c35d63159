"""Oxford5k and Paris6k: photos, and text files that say what is right for each of 55 queries.

For a query such as all_souls_1 there are four files. all_souls_1_query.txt has one line: the name
of the photo (in Oxford5k with oxc1_ before it) and the box x0 y0 x1 y1 in its pixels. The others
list photo names: good and ok are right answers, junk is ignored (under a quarter of the object is
visible).

A query's own photo is in the database and among its good answers. As published it stays there and
counts, which is what the mean average precisions in print have; so ``exclude_self`` is false by
default. It gives every system 55 right answers for nothing (one in about fifty); pass
exclude_self=True to ignore them.

Photos are looked for in the folders that the archives unpack to, Paris6k's either in a folder for
each landmark or all in one. Ids are the file names without ending.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from delfsearch.boxes import Box, check_box
from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets.base import Dataset, Query, own_photo_ignored
from delfsearch.evaluation.datasets.missing import settle_missing
from delfsearch.evaluation.datasets.photo_paths import PhotoPaths
from delfsearch.evaluation.datasets.reading import (
    JPEG,
    PathLike,
    by_stem,
    existing_folder,
    list_photos,
    read_lines,
)
from delfsearch.evaluation.datasets.sources import advice

# Photos of Paris6k that hold an error page instead of an image, as its makers list them. Readers
# keep them (the set counts 6,412); extraction passes over them; none is drawn as distractor query.
PARIS6K_UNREADABLE = frozenset(
    f"paris_{name}"
    for name in (
        "louvre_000136 louvre_000146 moulinrouge_000422 museedorsay_001059 notredame_000188 "
        "pantheon_000284 pantheon_000960 pantheon_000974 pompidou_000195 pompidou_000196 "
        "pompidou_000201 pompidou_000467 pompidou_000640 sacrecoeur_000299 sacrecoeur_000330 "
        "sacrecoeur_000353 triomphe_000662 triomphe_000833 triomphe_000863 triomphe_000867"
    ).split()
)

_TRUTH_FILE = re.compile(r"(?P<query>(?P<landmark>.+)_[0-9]+)_(?P<kind>query|good|ok|junk)\.txt")
_KINDS = ("query", "good", "ok", "junk")


@dataclass(frozen=True)
class Layout:
    """How a set of this kind is laid out. levels : of subfolders below the photo folder."""

    name: str
    photo_folders: tuple[str, ...]
    truth_folders: tuple[str, ...]
    levels: int
    prefix: str
    n_photos: int
    n_queries: int = 55


OXFORD5K = Layout(
    name="oxford5k",
    photo_folders=("oxbuild_images", "oxbuild_images-v1", "oxford5k_images", "jpg", "images", ""),
    truth_folders=("gt_files_170407", "gt_files", "groundtruth", "ground_truth", "gt", ""),
    levels=0,
    prefix="oxc1_",
    n_photos=5062,
)
PARIS6K = Layout(
    name="paris6k",
    photo_folders=("paris", "paris6k_images", "paris_images", "jpg", "images", ""),
    truth_folders=(
        "paris_120310",
        "gt_files_120310",
        "gt_files",
        "groundtruth",
        "ground_truth",
        "gt",
        "",
    ),
    levels=1,
    prefix="",
    n_photos=6412,
)


def read_oxford5k(
    root: PathLike,
    *,
    photos: PathLike | None = None,
    truth: PathLike | None = None,
    exclude_self: bool = False,
    missing: str = "error",
) -> Dataset:
    """Read Oxford5k: 5,062 photos, 55 queries of 11 landmarks.

    root : folder that holds the photos and the ground truth files, as unpacked.
    photos, truth : the folders of the two, where they lie elsewhere.
    exclude_self : ignore each query's own photo; False, as published, counts it.
    missing : "error", or "drop" to do without photos that the ground truth names and are absent.
    Raises DatasetError where something is absent or malformed, with its name.
    Source: Sec. 5.1. Differs: the paper does not say whether own photos count in Tables 1 to 4.
    """
    return _read(OXFORD5K, root, photos, truth, exclude_self, missing)


def read_paris6k(
    root: PathLike,
    *,
    photos: PathLike | None = None,
    truth: PathLike | None = None,
    exclude_self: bool = False,
    missing: str = "error",
) -> Dataset:
    """Read Paris6k: 6,412 photos, 55 queries of 11 landmarks; arguments as read_oxford5k's.

    Twenty of its photos are no images (PARIS6K_UNREADABLE); they stay in the database, as
    published, and extraction passes over them.
    Source: Sec. 5.1.
    """
    return _read(PARIS6K, root, photos, truth, exclude_self, missing)


def find_photos_by_name(
    root: Path, layout: Layout, name: str, source: str, extra: Sequence[str] = ()
) -> tuple[Path, dict[str, str]]:
    """Return the first photo folder of a layout that holds photos, and their files by name."""
    for place in (*extra, *layout.photo_folders):
        folder = root / place
        if folder.is_dir() and (names := list_photos(folder, levels=layout.levels, suffixes=JPEG)):
            return folder, by_stem(names, name, folder)
    tried = ", ".join(repr(place) for place in (*extra, *layout.photo_folders) if place)
    raise DatasetError(
        f"{name}: no photo (*.jpg) in {str(root)!r} nor in its subfolders {tried}{advice(source)}"
    )


def _read(
    layout: Layout,
    root: PathLike,
    photos: PathLike | None,
    truth: PathLike | None,
    exclude_self: bool,
    missing: str,
) -> Dataset:
    name = layout.name
    base = existing_folder(root, name, name)
    if photos is None:
        folder, names = find_photos_by_name(base, layout, name, name)
    else:
        folder = existing_folder(photos, name, name)
        names = by_stem(list_photos(folder, levels=layout.levels, suffixes=JPEG), name, folder)
    files = _truth_files(layout, base, truth)
    database = tuple(sorted(names))
    queries = []
    labels: dict[str, str] = {}
    for query, of_kind in files.items():
        landmark = query.rpartition("_")[0]
        photo, box = _read_query(of_kind["query"], layout.prefix)
        good, ok, junk = (frozenset(read_lines(of_kind[kind])) for kind in ("good", "ok", "junk"))
        positives = good | ok
        for shown in positives & names.keys():
            labels.setdefault(shown, landmark)  # of several, the first by alphabet: queries ascend
        if exclude_self:
            positives, junk = own_photo_ignored(photo, positives, junk, names)
        queries.append(
            Query(
                id=query,
                path=folder / names.get(photo, f"{photo}.jpg"),
                box=box,
                positives=positives,
                junk=junk,
                scene=landmark,
                photo=photo,
            )
        )
    notes = [
        f"{expected} {what} in the published set, {found} here"
        for what, expected, found in (
            ("photos", layout.n_photos, len(database)),
            ("queries", layout.n_queries, len(queries)),
        )
        if expected != found
    ]
    dataset = Dataset(
        name=name,
        root=base,
        database=database,
        queries=tuple(queries),
        paths=PhotoPaths(folder, names),
        labels=labels,
        exclude_self=exclude_self,
        notes=tuple(notes),
    )
    return settle_missing(dataset, missing, source=name, look=False)


def _truth_files(layout: Layout, root: Path, truth: PathLike | None) -> dict[str, dict[str, Path]]:
    """Return the four files of every query, by query in order of name, then kind."""
    folders = (
        [root / place for place in layout.truth_folders]
        if truth is None
        else [existing_folder(truth, layout.name, layout.name)]
    )
    for folder in folders:
        if not folder.is_dir():
            continue
        found: dict[str, dict[str, Path]] = {}
        for file in sorted(folder.iterdir()):
            if match := _TRUTH_FILE.fullmatch(file.name):
                found.setdefault(match["query"], {})[match["kind"]] = file
        if found:
            for query, of_kind in found.items():
                if absent := [kind for kind in _KINDS if kind not in of_kind]:
                    raise DatasetError(
                        f"{layout.name}: query {query} lacks the file {query}_{absent[0]}.txt in "
                        f"{str(folder)!r}{advice(layout.name)}"
                    )
            return {query: found[query] for query in sorted(found, key=_in_order)}
    raise DatasetError(
        f"{layout.name}: no ground truth files (such as {{landmark}}_1_query.txt) in "
        f"{' or '.join(repr(str(folder)) for folder in folders)}{advice(layout.name)}"
    )


def _in_order(query: str) -> tuple[str, int, str]:
    landmark, _, number = query.rpartition("_")
    return landmark, int(number), number


def _read_query(file: Path, prefix: str) -> tuple[str, Box]:
    """Return the photo's name and the box of a query file."""
    lines = read_lines(file)
    words = lines[0].split() if len(lines) == 1 else []
    try:
        if len(words) != 5:
            raise ValueError
        box = check_box([float(word) for word in words[1:]])
    except ValueError:
        raise DatasetError(
            f"{file} must have one line: a photo's name and its box x0 y0 x1 y1 in pixels, with "
            f"x0 < x1 and y0 < y1; got {lines[0] if lines else 'nothing'!r}"
            + (f" and {len(lines) - 1} more" if len(lines) > 1 else "")
        ) from None
    return words[0].removeprefix(prefix), box
