"""FeatureStore: what a system extracted from a photo, on disk, so that it is extracted once.

A shelf of the store belongs to one set of parameters; its name is their hash, and parameters.json
says them in full. A photo's entry is named by a hash of its absolute path, content and box: a
changed photo is another photo. An entry is one .npz file, written beside its place and moved there,
so that an interrupted run leaves whole entries only. Descriptors are kept as float16 (8-bit codes
are made of them in the end); vectors of global systems as float32.
A photo that cannot be read has an entry that says so, and is not tried again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.boxes import Box, PhotoPart, crop, inside
from delfsearch.errors import PhotoError
from delfsearch.features import LocalFeatures
from delfsearch.storage.arrays import hash_file

Features = LocalFeatures | NDArray[np.float32]
# What reading a damaged .npz file raises.
DAMAGED = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)
Stream = Callable[[Iterable[Any]], Iterator[tuple[Any, Features | PhotoError]]]


@dataclass(frozen=True)
class StoredPhoto:
    """A photo file, or the part of it in a box (x0, y0, x1, y1) of pixels of the upright photo."""

    path: Path
    box: Box | None = None


def file_version(path: Path) -> str:
    """Return the hash of a file's content, "" where it is not there.

    Not its time of change: a folder that is copied or checked out anew keeps what was extracted.
    """
    try:
        status = os.stat(path)
        return _content_hash(os.path.abspath(path), status.st_size, status.st_mtime_ns)
    except OSError:
        return ""


@lru_cache(maxsize=1 << 20)
def _content_hash(path: str, size: int, changed: int) -> str:
    """Hash a file once for every size and time of change that it is seen with."""
    return hash_file(Path(path))


def key_of(value: Any) -> str:
    """Return a short hash of what JSON can hold; the order of a mapping's keys does not count."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class FeatureStore:
    """Features of photos on disk, a shelf for each set of parameters.

    root : folder, made when first written to.
    n_extracted, n_found : photos that were extracted, or were there already, through this object.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.n_extracted = 0
        self.n_found = 0

    def shelf(
        self,
        parameters: Mapping[str, Any],
        stream: Stream,
        *,
        crops: bool = True,
        made_from: tuple[FeatureShelf, Callable[[LocalFeatures], LocalFeatures]] | None = None,
    ) -> FeatureShelf:
        """Return the shelf of a system.

        parameters : JSON-able; everything that its features depend on but the photo.
        stream : the system's; it is called for photos that have no entry yet.
        crops : False for features that come by the photo's name and not from its pixels (files):
            a box then selects the features inside it.
        made_from : another shelf and what makes its local features into those of this one; what
            lies there is not extracted again.
        """
        return FeatureShelf(self, dict(parameters), stream, crops, made_from)


class FeatureShelf:
    """The features that one system extracts; see FeatureStore."""

    def __init__(
        self,
        store: FeatureStore,
        parameters: dict[str, Any],
        stream: Stream,
        crops: bool,
        made_from: tuple[FeatureShelf, Callable[[LocalFeatures], LocalFeatures]] | None,
    ) -> None:
        self.key = key_of(parameters)
        self.folder = store.root / self.key
        self._store = store
        self._parameters = parameters
        self._stream = stream
        self._crops = crops
        self._made_from = made_from

    def ensure(
        self, photos: Iterable[StoredPhoto], progress: Callable[[int], None] | None = None
    ) -> None:
        """Extract what has no entry yet, in order; what is finished survives an interruption.

        progress : called with the number of photos dealt with so far.
        """
        for n, _ in enumerate(self._missing_extracted(photos), start=1):
            if progress is not None:
                progress(n)

    def load(self, photo: StoredPhoto) -> Features | PhotoError:
        """Return a photo's entry, or the PhotoError that says why it has no features.

        A damaged entry is made again. Raises KeyError for a photo that ensure was not told of.
        """
        path = self._path(photo)
        if path is None:
            return PhotoError(f"photo {os.fspath(photo.path)!r} is not there")
        entry = _read(path)
        if entry is None and path.exists():
            path.unlink()
            self.ensure([photo])
            entry = _read(path)
        if entry is None:
            raise KeyError(f"photo {os.fspath(photo.path)!r} was not extracted: call ensure first")
        return entry

    def extract(self, photos: Iterable[Path]) -> Iterator[tuple[Any, Features | PhotoError]]:
        """Yield (photo, its features) extracted anew, which neither reads nor writes entries."""
        return self._stream(photos)

    def seconds_per_photo(self, photos: Iterable[StoredPhoto]) -> float:
        """Return the mean seconds that extraction took when it ran; nan where nothing was."""
        paths = [self._path(photo) for photo in photos]
        taken = [_seconds(path) for path in paths if path is not None]
        seconds = [value for value in taken if value is not None]
        return float(np.mean(seconds)) if seconds else float("nan")

    def _missing_extracted(self, photos: Iterable[StoredPhoto]) -> Iterator[None]:
        """Extract the missing photos; yields once for each photo, present ones too."""
        missing: list[tuple[StoredPhoto, Path]] = []
        seen: set[Path] = set()
        for photo in photos:
            path = self._path(photo)
            if path is None or path in seen:
                yield None
            elif _seconds(path) is not None or self._made(photo, path):
                self._store.n_found += 1
                yield None
            else:
                seen.add(path)
                missing.append((photo, path))
        if not missing:
            return
        self._describe()
        places = dict(missing)
        started = time.perf_counter()
        for photo, features in self._extract([photo for photo, _ in missing]):
            now = time.perf_counter()
            _write(places[photo], features, now - started)
            started = now
            self._store.n_extracted += 1
            yield None

    def _made(self, photo: StoredPhoto, path: Path) -> bool:
        """Make an entry from that of another shelf, if there is one."""
        if self._made_from is None:
            return False
        other, make = self._made_from
        theirs = other._path(photo)
        entry = None if theirs is None else _read(theirs)
        if theirs is None or entry is None:
            return False
        self._describe()
        features = make(entry) if isinstance(entry, LocalFeatures) else entry
        _write(path, features, _seconds(theirs) or 0.0)
        return True

    def _describe(self) -> None:
        """Write down what the shelf holds."""
        about = self.folder / "parameters.json"
        if not about.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(about, json.dumps(self._parameters, indent=1, sort_keys=True).encode())

    def _extract(
        self, photos: Iterable[StoredPhoto]
    ) -> Iterator[tuple[StoredPhoto, Features | PhotoError]]:
        """Crop first, then extract; photos come out in the order in which they went in."""
        waiting: deque[tuple[StoredPhoto, PhotoPart | PhotoError | None]] = deque()

        def feed() -> Iterator[Any]:
            for photo in photos:
                if photo.box is None or not self._crops:
                    waiting.append((photo, None))
                    yield photo.path
                    continue
                try:
                    part = crop(photo.path, photo.box)
                except PhotoError as error:
                    waiting.append((photo, error))
                    continue
                waiting.append((photo, part))
                yield part.photo

        for _, features in self._stream(feed()):
            while isinstance(waiting[0][1], PhotoError):
                photo, error = waiting.popleft()
                yield photo, error  # type: ignore[misc]  # it is one, as asked in the line before
            photo, part = waiting.popleft()
            if isinstance(features, LocalFeatures) and isinstance(part, PhotoPart):
                features = part.to_whole(features)
            elif isinstance(features, LocalFeatures) and photo.box is not None:
                features = inside(features, photo.box)
            yield photo, features
        for photo, rest in waiting:
            if isinstance(rest, PhotoError):
                yield photo, rest

    def _path(self, photo: StoredPhoto) -> Path | None:
        version = file_version(photo.path)
        if not version:
            return None
        box = None if photo.box is None else [float(side) for side in photo.box]
        name = key_of([os.path.abspath(photo.path), version, box])
        return self.folder / name[:2] / f"{name}.npz"


def _write(path: Path, features: Features | PhotoError, seconds: float) -> None:
    arrays: dict[str, Any] = {"seconds": np.float64(seconds)}
    if isinstance(features, PhotoError):
        arrays["error"] = np.array(str(features))
    elif isinstance(features, LocalFeatures):
        descriptors = features.descriptors
        arrays |= {
            "keypoints_xy": features.keypoints_xy,
            "descriptors": descriptors if descriptors.dtype == np.uint8 else _half(descriptors),
            "scores": features.scores,
            "scales": features.scales,
            "image_size": np.array(features.image_size, np.int64),
        }
    else:
        arrays["vector"] = np.asarray(features, np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(partial, path)


def _half(descriptors: NDArray[Any]) -> NDArray[Any]:
    """Return float16 where the values fit it, as those of normalised descriptors do."""
    limit = float(np.finfo(np.float16).max)
    fits = not descriptors.size or float(np.abs(descriptors).max()) < limit
    return descriptors.astype(np.float16) if fits else descriptors


def _seconds(path: Path) -> float | None:
    """Return the seconds that an entry took; None where there is none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return float(arrays["seconds"])
    except DAMAGED:
        return None


def _read(path: Path) -> Features | PhotoError | None:
    """Return an entry; None where there is none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "error" in arrays:
                return PhotoError(str(arrays["error"]))
            if "vector" in arrays:
                return np.asarray(arrays["vector"], np.float32)
            descriptors = arrays["descriptors"]
            if descriptors.dtype != np.uint8:
                descriptors = descriptors.astype(np.float32)
            width, height = arrays["image_size"].tolist()
            return LocalFeatures(
                arrays["keypoints_xy"],
                descriptors,
                arrays["scores"],
                arrays["scales"],
                (width, height),
            )
    except DAMAGED:
        return None


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)
