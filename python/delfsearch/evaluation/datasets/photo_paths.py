"""Where the photos of a set lie, without an object or a system call for each of a million."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

# Below this many wanted files in a folder, asking for each is cheaper than listing the folder.
_LIST_FROM = 8


class PhotoPaths(Mapping[str, Path]):
    """Absolute path by photo id, made when asked for.

    names : path relative to root by id, '/' between parts; kept, not copied.
    """

    def __init__(self, root: str | os.PathLike[str], names: Mapping[str, str]) -> None:
        self._parts: tuple[tuple[str, Mapping[str, str]], ...] = ((os.path.abspath(root), names),)

    @staticmethod
    def of(paths: Mapping[str, Path]) -> PhotoPaths:
        """Return any mapping of paths as PhotoPaths."""
        if isinstance(paths, PhotoPaths):
            return paths
        return PhotoPaths("", {photo: os.path.abspath(path) for photo, path in paths.items()})

    def joined(self, other: PhotoPaths) -> PhotoPaths:
        """Return the paths of both; an id in both keeps this one's."""
        both = PhotoPaths("", {})
        both._parts = self._parts + other._parts
        return both

    def text(self, photo: str) -> str:
        """Return an absolute path as text. Raises KeyError."""
        for root, names in self._parts:
            if (name := names.get(photo)) is not None:
                return os.path.join(root, name)
        raise KeyError(photo)

    def __getitem__(self, photo: str) -> Path:
        return Path(self.text(photo))

    def __contains__(self, photo: object) -> bool:
        return any(photo in names for _, names in self._parts)

    def __iter__(self) -> Iterator[str]:
        for i, (_, names) in enumerate(self._parts):
            earlier = self._parts[:i]
            yield from (p for p in names if not any(p in before for _, before in earlier))

    def __len__(self) -> int:
        if len(self._parts) == 1:
            return len(self._parts[0][1])
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"PhotoPaths({len(self)} photos under {', '.join(root for root, _ in self._parts)})"


def absent_files(files: Iterable[str]) -> set[str]:
    """Return those of some absolute paths that are no files, each folder looked through once."""
    by_folder: dict[str, list[str]] = {}
    for file in files:
        folder, name = os.path.split(file)
        by_folder.setdefault(folder, []).append(name)
    absent: set[str] = set()
    for folder, names in by_folder.items():
        present = _files_in(folder) if len(names) >= _LIST_FROM else set()
        for name in names:
            # A listing may spell a name otherwise than the table (macOS decomposes accents), so
            # that only the file itself has the last word.
            if name not in present and not os.path.isfile(os.path.join(folder, name)):
                absent.add(os.path.join(folder, name))
    return absent


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()
