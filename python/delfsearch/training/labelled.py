"""LabelledPhotos: which photos to learn from, and what each of them shows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_choice, check_integer
from delfsearch.errors import DatasetError

SMALL_CLASSES = ("error", "drop", "vary")
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class LabelledPhotos:
    """Photos and the class that each shows.

    paths : files, relative to root or absolute. labels : (n,) int64, row of the class in classes.
    classes : names, each once. root : folder that relative paths start from.
    varied : (n,) bool, photos that are shown in strongly varied views, because their class has no
        other; none if omitted.
    source : what they were read from, in words, for the weights' provenance.
    Raises ValueError where lengths disagree, a label is no class, or a class has no photo.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    root: Path = Path()
    varied: NDArray[np.bool_] = None  # type: ignore[assignment]  # none if omitted
    source: str = "labelled photos"

    def __post_init__(self) -> None:
        labels = np.ascontiguousarray(self.labels, np.int64)
        varied = np.zeros(len(labels), bool) if self.varied is None else np.array(self.varied, bool)
        if not len(self.paths) == len(labels) == len(varied):
            raise ValueError(
                f"labels and varied must have one entry per photo ({len(self.paths)}); got "
                f"{len(labels)} and {len(varied)}"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must be different names; one is there twice")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise ValueError(
                f"labels must lie in 0 ... {len(self.classes) - 1}, the rows of classes; got "
                f"{labels.min()} ... {labels.max()}"
            )
        present = np.bincount(labels, minlength=len(self.classes))
        if len(self.classes) and not present.all():
            raise ValueError(
                f"class {self.classes[int(present.argmin())]!r} must have a photo; it has none"
            )
        object.__setattr__(self, "paths", tuple(map(os.fspath, self.paths)))
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "varied", varied)

    @staticmethod
    def from_names(
        paths: Sequence[str],
        names: Sequence[str],
        *,
        root: str | os.PathLike[str] = "",
        source: str = "labelled photos",
        varied: Any = None,
    ) -> LabelledPhotos:
        """Return photos whose classes are given by name; classes are sorted by name."""
        if len(paths) != len(names):
            raise ValueError(
                f"names must have one entry per photo ({len(paths)}); got {len(names)}"
            )
        classes = tuple(sorted(set(names)))
        rows = {name: row for row, name in enumerate(classes)}
        labels = np.fromiter((rows[name] for name in names), np.int64, len(names))
        return LabelledPhotos(
            tuple(paths), labels, classes, root=Path(root), varied=varied, source=source
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"LabelledPhotos({len(self)} photos of {len(self.classes)} classes, {self.source})"

    @property
    def counts(self) -> NDArray[np.int64]:
        """Photos of each class."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def file(self, row: int) -> Path:
        """Return where a photo is."""
        return self.root / self.paths[row]

    def select(self, rows: Any) -> LabelledPhotos:
        """Return some of the photos, by row or mask; classes that lose all of theirs go."""
        chosen = np.asarray(rows)
        chosen = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64)
        labels = self.labels[chosen]
        kept = np.unique(labels)
        return LabelledPhotos(
            tuple(self.paths[row] for row in chosen),
            np.searchsorted(kept, labels),
            tuple(self.classes[row] for row in kept),
            root=self.root,
            varied=self.varied[chosen],
            source=self.source,
        )

    def with_enough(self, min_photos: int = 2, *, small_classes: str = "error") -> LabelledPhotos:
        """Settle the classes of fewer than min_photos photos; varied photos count as enough.

        small_classes : "error" refuses them, "drop" leaves them out, "vary" keeps them and marks
            their photos as varied.
        Raises DatasetError that names some of them, or where fewer than two classes are left.
        """
        check_integer(min_photos, "min_photos", minimum=1)
        check_choice(small_classes, "small_classes", SMALL_CLASSES)
        counts = self.counts
        of_small = (counts < min_photos)[self.labels] & ~self.varied
        result = self
        if of_small.any():
            rows = np.unique(self.labels[of_small])
            if small_classes == "error":
                raise DatasetError(
                    f"{len(rows)} of {len(self.classes)} classes have fewer than min_photos="
                    f"{min_photos} photos: {_listed((self.classes[r], counts[r]) for r in rows)}. "
                    "Add photos of them; or leave such classes out with small_classes='drop', or "
                    "keep them in strongly varied views with small_classes='vary'"
                )
            if small_classes == "vary":
                result = LabelledPhotos(
                    self.paths,
                    self.labels,
                    self.classes,
                    root=self.root,
                    varied=self.varied | of_small,
                    source=self.source,
                )
            else:
                result = self.select(~of_small)
        if len(result.classes) < 2:
            raise DatasetError(
                f"training needs photos of at least two classes; {self.source} has "
                f"{len(result.classes)}" + (" with enough photos" if of_small.any() else "")
            )
        return result

    def joined(self, other: LabelledPhotos) -> LabelledPhotos:
        """Return the photos of both; classes of the same name become one."""
        return LabelledPhotos.from_names(
            [os.fspath(p.root.absolute() / path) for p in (self, other) for path in p.paths],
            [p.classes[label] for p in (self, other) for label in p.labels],
            varied=np.concatenate([self.varied, other.varied]),
            source=f"{self.source}; {other.source}",
        )

    def fingerprint(self) -> str:
        """Return a checksum of names and labels; where root lies does not matter."""
        digest = hashlib.blake2b(digest_size=16)
        for text in (*self.classes, "", *self.paths):
            digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
        digest.update(self.labels.tobytes())
        digest.update(self.varied.tobytes())
        return digest.hexdigest()


def _listed(small: Iterable[tuple[str, int]]) -> str:
    items = [f"{name!r} ({count})" for name, count in small]
    more = f", ... ({len(items)} in all)" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
