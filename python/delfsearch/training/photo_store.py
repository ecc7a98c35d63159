"""Photos, whole or their centre squares, decoded once and kept in RAM or a file, or decoded anew.

Where they are kept does not change a pixel. Kept photos are all read before training begins, so
unreadable photos are known then; where nothing is kept they turn up when their turn comes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_choice
from delfsearch.errors import PhotoError
from delfsearch.training.checkpoint import written
from delfsearch.training.views import read_square, read_whole

logger = logging.getLogger("delfsearch")

KEEP = ("auto", "ram", "disk", "none")
_FILE_NAME, _TABLE_NAME = "photos.u8", "photos.json"


class PhotoStore:
    """Pixels of photos by row. unreadable : PhotoError by row, of those found so far.

    sides : of the centre square, or with `whole` of the longer side, at most, in pixels.
    """

    def __init__(self, files: Sequence[Path], sides: Sequence[int], *, whole: bool = False) -> None:
        self.files = list(files)
        self.sides = list(sides)
        self.whole = whole
        self.unreadable: dict[int, PhotoError] = {}
        self._kept: list[NDArray[np.uint8] | None] | None = None
        self._reading_all = False  # who reads them all says together what could not be read

    @property
    def keeps(self) -> bool:
        """Whether the photos were read already."""
        return self._kept is not None

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """Return (h, w, 3) of a photo, h = w unless whole. PhotoError. Any thread may call it."""
        if row in self.unreadable:
            raise self.unreadable[row]
        kept = None if self._kept is None else self._kept[row]
        if kept is not None:
            return kept
        try:
            read = read_whole if self.whole else read_square
            return read(self.files[row], self.sides[row])
        except PhotoError as error:
            if self.unreadable.setdefault(row, error) is error and not self._reading_all:
                logger.warning("left out: %s", error)
            raise

    def keep(
        self,
        how: str,
        folder: Path | None,
        *,
        n_threads: int = 2,
        n_processes: int = 1,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Read all photos and keep them.

        how : "ram"; "disk", in folder, where they are found again by a later run; "none"; "auto":
            on disk if they are there already, else in RAM if they take at most a quarter of it,
            else on disk if they take at most half of what is free there, else not.
        n_processes : that do the same on this machine, each in RAM of its own.
        """
        check_choice(how, "keep_photos", KEEP)
        self._reading_all = True
        try:
            self._keep(how, folder, n_threads, n_processes, progress)
        finally:
            self._reading_all = False

    def can_read(self, row: int) -> bool:
        """Whether a photo can be read; who asks says so where not."""
        self._reading_all = True
        try:
            self.pixels(row)
        except PhotoError:
            return False
        finally:
            self._reading_all = False
        return True

    def _keep(
        self,
        how: str,
        folder: Path | None,
        n_threads: int,
        n_processes: int,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        bound = sum(3 * side * side for side in self.sides)
        key = self._key() if folder is not None and how in ("auto", "disk") else ""
        if how == "auto":
            there = folder is not None and _known(folder, key) is not None
            how = "disk" if there else _fitting_place(bound, folder, n_processes)
        if how == "ram":
            self._kept = self._read_all(n_threads, progress, None)
        elif how == "disk":
            if folder is None:
                raise ValueError("keep_photos='disk' needs output, a folder; or use 'ram'")
            self._keep_on_disk(folder, key, n_threads, progress)
        else:
            logger.info("photos are decoded at every showing (%.1f GB do not fit)", bound / 1e9)

    def _read_all(
        self,
        n_threads: int,
        progress: Callable[[str, int, int], None] | None,
        write: Callable[[NDArray[np.uint8]], object] | None,
    ) -> list[NDArray[np.uint8] | None]:
        """Read the photos in order; with `write`, hand each over and keep only its absence."""

        def read(row: int) -> NDArray[np.uint8] | None:
            try:
                return self.pixels(row)
            except PhotoError:
                return None

        kept: list[NDArray[np.uint8] | None] = []
        with ThreadPoolExecutor(n_threads, "delfsearch-photos") as pool:
            rows = iter(range(len(self.files)))
            pending = deque(pool.submit(read, row) for row in islice(rows, 4 * n_threads))
            while pending:
                pixels = pending.popleft().result()
                pending.extend(pool.submit(read, row) for row in islice(rows, 1))
                if write is None:
                    kept.append(pixels)
                elif pixels is not None:
                    write(pixels)
                    kept.append(pixels[:0])
                else:
                    kept.append(None)
                if progress is not None:
                    progress("photos", len(kept), len(self.files))
        return kept

    def _keep_on_disk(
        self,
        folder: Path,
        key: str,
        n_threads: int,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        data, table = folder / _FILE_NAME, folder / _TABLE_NAME
        known = _known(folder, key)
        if known is None:
            part = data.with_name(data.name + ".part")
            shapes: list[list[int]] = []
            with written("decoded photos", folder, or_else="set keep_photos='none'"):
                folder.mkdir(parents=True, exist_ok=True)
                _remove(folder)
                try:
                    with part.open("wb") as file:

                        def write(pixels: NDArray[np.uint8]) -> None:
                            shapes.append([*pixels.shape[:2]])
                            file.write(pixels.tobytes())

                        present = self._read_all(n_threads, progress, write)
                    os.replace(part, data)
                finally:
                    part.unlink(missing_ok=True)
                left = iter(shapes)
                all_shapes = [[0, 0] if pixels is None else next(left) for pixels in present]
                reasons = {str(row): str(error) for row, error in self.unreadable.items()}
                known = {"key": key, "shapes": all_shapes, "unreadable": reasons}
                table.write_text(json.dumps(known), encoding="utf-8")
        self.unreadable = {int(row): PhotoError(why) for row, why in known["unreadable"].items()}
        self._kept = _map_photos(data, known["shapes"])

    def _key(self) -> str:
        """Return what the kept pixels depend on: names, sizes and times of the files, sides."""
        digest = hashlib.blake2b(b"whole" if self.whole else b"squares", digest_size=16)
        for file, side in zip(self.files, self.sides):
            try:
                status = os.stat(file)
                what = f"{file} {status.st_size} {status.st_mtime_ns} {side}\n"
            except OSError:
                what = f"{file} absent {side}\n"
            digest.update(what.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _map_photos(data: Path, shapes: Sequence[Sequence[int]]) -> list[NDArray[np.uint8] | None]:
    sizes = np.array([3 * height * width for height, width in shapes], np.int64)
    if data.stat().st_size != sizes.sum():
        raise ValueError(
            f"{data} has {data.stat().st_size} bytes and should have {sizes.sum()}; delete its "
            "folder, and the photos are read again"
        )
    if not sizes.sum():
        return [None] * len(shapes)
    pixels = np.memmap(data, np.uint8, mode="r").view(np.ndarray)
    ends = np.cumsum(sizes)
    return [
        pixels[end - size : end].reshape(*shape, 3) if size else None
        for shape, size, end in zip(shapes, sizes, ends)
    ]


def _known(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the table of the photos kept in a folder, where they are of this key."""
    try:
        found = json.loads((folder / _TABLE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    there = isinstance(found, dict) and (folder / _FILE_NAME).is_file()
    return found if there and found.get("key") == key else None


def _remove(folder: Path) -> None:
    """Remove the photos kept in a folder, and what a killed run left of them."""
    for name in (_TABLE_NAME, _FILE_NAME, _FILE_NAME + ".part"):
        (folder / name).unlink(missing_ok=True)


def _fitting_place(n_bytes: int, folder: Path | None, n_processes: int) -> str:
    """Return where photos fit; those of another key in the folder are gone then."""
    if n_bytes * n_processes <= _memory_bytes() // 4:
        return "ram"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        _remove(folder)
        if n_bytes <= shutil.disk_usage(folder).free // 2:
            return "disk"
    return "none"


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not Unix
        return 4 << 30
