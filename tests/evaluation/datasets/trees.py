"""Writers of the sets' own file formats, for the tests and the miniature trees.

A photo is written by a function save(file, name), so that a test of a reader may write empty files
and the miniature draws pictures.
"""

from __future__ import annotations

import csv
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Save = Callable[[Path, str], None]


def empty(file: Path, name: str) -> None:
    """A photo for readers that must not open any."""
    file.touch()


@dataclass(frozen=True)
class QueryFiles:
    """What the four files of a query of Oxford5k or Paris6k say."""

    photo: str
    box: tuple[float, float, float, float]
    good: tuple[str, ...]
    ok: tuple[str, ...] = ()
    junk: tuple[str, ...] = ()


def write_photos(folder: Path, names: Iterable[str], save: Save = empty) -> None:
    """Write photos at paths relative to folder."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        save(file, name)


def write_truth(folder: Path, queries: Mapping[str, QueryFiles], prefix: str = "") -> None:
    """Write the text files of Oxford5k (prefix oxc1_) or Paris6k."""
    folder.mkdir(parents=True, exist_ok=True)
    for query, files in queries.items():
        box = " ".join(map(repr, files.box))
        (folder / f"{query}_query.txt").write_text(f"{prefix}{files.photo} {box}\n")
        for kind in ("good", "ok", "junk"):
            names = getattr(files, kind)
            (folder / f"{query}_{kind}.txt").write_text("".join(f"{name}\n" for name in names))


def write_oxford(
    root: Path, names: Iterable[str], queries: Mapping[str, QueryFiles], save: Save = empty
) -> Path:
    """Write Oxford5k's tree."""
    write_photos(root / "oxbuild_images", (f"{name}.jpg" for name in names), save)
    write_truth(root / "gt_files_170407", queries, "oxc1_")
    return root


def write_paris(
    root: Path, names: Iterable[str], queries: Mapping[str, QueryFiles], save: Save = empty
) -> Path:
    """Write Paris6k's tree: a folder for each landmark of the names paris_{landmark}_{number}."""
    files = (f"{name.split('_')[1]}/{name}.jpg" for name in names)
    write_photos(root / "paris", files, save)
    write_truth(root / "paris_120310", queries)
    return root


def write_revisited(
    root: Path,
    name: str,
    imlist: Sequence[str],
    qimlist: Sequence[str],
    gnd: Sequence[Mapping[str, object]],
    save: Save = empty,
    protocol: int = 2,
) -> Path:
    """Write gnd_{name}.pkl and jpg."""
    write_photos(root / "jpg", (f"{photo}.jpg" for photo in [*imlist, *qimlist]), save)
    content = {"imlist": list(imlist), "qimlist": list(qimlist), "gnd": [dict(q) for q in gnd]}
    (root / f"gnd_{name}.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    return root


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a CSV table in UTF-8."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(header)
        writer.writerows(rows)
    return file


def landmarks_path(part: str, photo: str) -> str:
    """Where Google Landmarks v2 keeps a photo of train, index or test."""
    return f"{part}/{photo[0]}/{photo[1]}/{photo[2]}/{photo}.jpg"
