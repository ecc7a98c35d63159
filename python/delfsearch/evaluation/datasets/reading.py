"""Reading the files of a set: folders of photos, lists of names, CSV tables. No photo is opened."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets.base import listed
from delfsearch.evaluation.datasets.sources import advice
from delfsearch.storage.photo_files import photo_suffixes, printable

PathLike = str | os.PathLike[str]
JPEG = frozenset({".jpg", ".jpeg"})
ANY_PHOTO = None  # whatever Pillow can decode here


def existing_folder(root: PathLike, name: str, source: str = "") -> Path:
    """Return root as a Path, or say which set it should hold."""
    folder = Path(root)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DatasetError(f"{name}: the folder {str(folder)!r} {what}{advice(source)}")
    return folder


def first_file(root: Path, places: Sequence[str], name: str, source: str) -> Path:
    """Return the first of some files that exists under root, or name them all."""
    for place in places:
        if (root / place).is_file():
            return root / place
    raise DatasetError(
        f"{name}: {str(root)!r} has no file {' or '.join(map(repr, places))}{advice(source)}"
    )


def list_photos(
    folder: Path,
    *,
    levels: int | None = None,
    suffixes: frozenset[str] | None = ANY_PHOTO,
) -> list[str]:
    """Return the photo files in a folder by relative name, '/' between parts, sorted.

    levels : how many levels of subfolders to enter; None means all. suffixes : file endings, lower
    case; None takes every format that Pillow can decode. Hidden names are passed over; links to
    folders are followed, each folder once.
    Raises DatasetError for a name that is not Unicode: no table could hold it.
    """
    wanted = photo_suffixes() if suffixes is None else suffixes
    found: list[str] = []
    seen: set[tuple[int, int]] = set()

    def walk(path: str, prefix: str, left: int | None) -> None:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if left != 0:
                    walk(
                        entry.path,
                        f"{prefix}{entry.name}/",
                        None if left is None else left - 1,
                    )
            elif os.path.splitext(entry.name)[1].lower() in wanted and entry.is_file():
                found.append(prefix + entry.name)

    walk(os.fspath(folder), "", levels)
    for name in found:
        if not name.isascii():
            check_unicode(name, str(folder))
    return sorted(found)


def check_unicode(name: str, folder: str) -> None:
    """Refuse a file name whose bytes are not UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise DatasetError(
            f"file names must be UTF-8; {printable(name)!r} in {printable(folder)!r} is not. "
            "Rename the file"
        ) from None


def by_stem(names: Iterable[str], name: str, folder: Path) -> dict[str, str]:
    """Return relative names by file name without ending, refusing two of one stem."""
    found: dict[str, str] = {}
    for relative in names:
        stem = os.path.splitext(relative.rpartition("/")[2])[0]
        if stem in found:
            raise DatasetError(
                f"{name}: photo names must be unique; {str(folder)!r} has {found[stem]!r} and "
                f"{relative!r}"
            )
        found[stem] = relative
    return found


def read_lines(file: Path) -> list[str]:
    """Return the lines of a UTF-8 text that hold something, without surrounding space."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} must be UTF-8 text: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def csv_rows(
    file: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, values) of a CSV table in UTF-8 with a header, one row at a time.

    columns : must be in the header; their values come first, in this order. optional : come next,
    "" where the table lacks the column. Other columns are passed over; empty lines too.
    Raises DatasetError with the file and the line.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.reader(lines, strict=True)
            header = [title.strip() for title in next(rows, [])]
            places = _columns(file, header, columns, optional)
            width = len(header)
            for row in rows:
                if len(row) != width:
                    if not row:
                        continue
                    raise DatasetError(
                        f"{file}, line {rows.line_num}: must have {width} columns as the header; "
                        f"got {len(row)}"
                    )
                yield (
                    rows.line_num,
                    [row[place].strip() if place is not None else "" for place in places],
                )
    except FileNotFoundError:
        raise DatasetError(f"{file} does not exist") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} must be a table in UTF-8: {error}") from None
    except csv.Error as error:
        raise DatasetError(f"{file}, line {rows.line_num}: is not CSV: {error}") from None


def _columns(
    file: Path, header: list[str], columns: Sequence[str], optional: Sequence[str]
) -> list[int | None]:
    absent = [title for title in columns if title not in header]
    if absent:
        raise DatasetError(
            f"{file} must have the column(s) {listed(absent)} in its first line; it has "
            f"{listed(header) or 'nothing'}"
        )
    wanted = [*columns, *optional]
    if repeated := [title for title in wanted if header.count(title) > 1]:
        raise DatasetError(f"{file} must have every column once; {listed(repeated)} is repeated")
    return [header.index(title) if title in header else None for title in wanted]
