"""Which photo files are meant, and under which names an index keeps them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

# Pillow knows the endings of these formats but cannot decode them.
_NO_PIXELS = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS")

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class PhotoFile:
    """file : where it is. name : as the index keeps it: relative to the root, '/' between parts."""

    file: Path
    name: str
    label: str | None = None


def photo_suffixes() -> frozenset[str]:
    """Return the file endings, lower case, of the formats that Pillow can decode here."""
    endings = Image.registered_extensions()
    return frozenset(
        suffix for suffix, kind in endings.items() if kind in Image.OPEN and kind not in _NO_PIXELS
    )


def find_photos(folder: Path) -> list[Path]:
    """Return the photo files in a folder and its subfolders, sorted by their relative names.

    Links to folders are followed, each folder once. Hidden files and folders (a leading dot) and
    other file endings are passed over.
    """
    suffixes = photo_suffixes()
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for base, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(base)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(base, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def list_photos(
    photos: PathLike | Iterable[PathLike],
    labels: Mapping[Any, str] | Sequence[str | None] | None,
    root: Path | None = None,
) -> tuple[Path | None, list[PhotoFile]]:
    """Turn a folder or a list of files into photo files with names and labels, each file once.

    photos : a folder, or files and folders.
    labels : label by path, as given or relative to the root; or one for each path in a list.
    root : names are relative to it; None means the folder, or the deepest folder that holds all.
    Returns the root (None where files share no folder) and the photos. ValueError where a folder
    is absent or holds no photo, or labels fit no photo.
    """
    if isinstance(photos, (str, os.PathLike)):
        folder = Path(photos)
        if not folder.exists():
            raise ValueError(f"photos must be an existing folder; {str(folder)!r} does not exist")
        if not folder.is_dir():
            raise ValueError(
                f"photos must be a folder or a list of files; {str(folder)!r} is one file, pass it "
                "in a list"
            )
        files = find_photos(folder)
        if not files:
            raise ValueError(
                f"photos must hold photo files; found none in {str(folder)!r} and its subfolders"
            )
        default_root: Path | None = folder
    else:
        files = []
        for photo in photos:
            path = Path(_as_path(photo))
            files += find_photos(path) if path.is_dir() else [path]
        if not files:
            raise ValueError("photos must hold at least one photo; got an empty list")
        default_root = _common_folder(files)
    root = root or (None if default_root is None else Path(os.path.abspath(default_root)))
    by_path: Mapping[Any, str] = {}
    in_order: Sequence[str | None] = [None] * len(files)
    if isinstance(labels, Mapping):
        by_path = {os.fspath(path): label for path, label in labels.items()}
    elif labels is not None:
        in_order = list(labels)
        if len(in_order) != len(files):
            raise ValueError(
                f"labels must have one entry per photo ({len(files)}); got {len(in_order)}"
            )
    listed: dict[str, PhotoFile] = {}
    for file, label in zip(files, in_order):
        name = name_of(file, root)
        label = by_path.get(name, by_path.get(os.fspath(file), label))
        listed.setdefault(name, PhotoFile(Path(os.path.abspath(file)), name, label))
    if by_path and all(photo.label is None for photo in listed.values()):
        raise ValueError(
            f"labels must name the photos by path; none fits, e.g. {next(iter(by_path))!r} where "
            f"a photo is {next(iter(listed))!r}"
        )
    return root, list(listed.values())


def name_of(file: PathLike, root: Path | None) -> str:
    """Return the name that an index keeps for a file: relative to root, or absolute outside it."""
    absolute = Path(os.path.abspath(file))
    if root is not None and absolute.is_relative_to(root):
        return absolute.relative_to(root).as_posix()
    return absolute.as_posix()


def printable(name: str) -> str:
    """Return a name that any table can hold; bytes that are no Unicode become backslash escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _common_folder(files: Sequence[Path]) -> Path | None:
    try:
        common = Path(os.path.commonpath([os.path.dirname(os.path.abspath(f)) for f in files]))
    except ValueError:  # several drives
        return None
    return None if common == Path(common.anchor) else common


def _as_path(photo: Any) -> str:
    if not isinstance(photo, (str, os.PathLike)):
        raise TypeError(
            f"photos must be paths; got {type(photo).__name__}. Use DelfExtractor and DelfIndex "
            "for photos that are not files"
        )
    return os.fspath(photo)
