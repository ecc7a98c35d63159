"""MatchedPhotos: pairs of photos of one class, and the points that verified matches join.

match_photos finds them with the library's own features, index and verifier, so that contrastive
training sees real changes of viewpoint and light, and not only warped copies.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_integer, check_seed
from delfsearch.errors import DatasetError, PhotoError
from delfsearch.features import LocalFeatures
from delfsearch.index.delf_index import DelfIndex
from delfsearch.matches import Hit, Matches
from delfsearch.training.checkpoint import written
from delfsearch.training.labelled import LabelledPhotos
from delfsearch.training.results import left_out_text
from delfsearch.verification.verifier import Verifier

logger = logging.getLogger("delfsearch")

_N_NEIGHBOURS = 4
_MAX_LEAVES = 64


@dataclass(frozen=True)
class Matcher:
    """A system of local features and when two photos count as matched by it.

    system : name, as in load_system. options : of it. min_inliers, max_error (pixels) : of the
    Verifier.
    """

    system: str
    min_inliers: int
    max_error: float
    options: tuple[tuple[str, Any], ...] = ()


# A quarter more inliers than any of 780 pairs of photos of different things had, one against one
# (docs/training.md).
MATCHERS = (
    Matcher("congas", 25, 8.0, (("n_components", None),)),
    Matcher("delf", 60, 12.0, (("weights", "resnet50-imagenet"), ("scales", "0.25-1"))),
)


@dataclass(frozen=True, eq=False)
class MatchedPhotos:
    """Pairs of photos with matched points.

    names : of the photos, as in LabelledPhotos.paths. pairs : (p, 2) int64, rows of names.
    sizes : (p, 4) float32, width and height of both photos. zooms : (p,) float32, pixels of the
        second photo for one of the first.
    offsets : (p + 1,) int64; pair i owns the rows offsets[i]:offsets[i + 1] of
    points : (m, 4) float32, (x, y) in the first photo and (x, y) in the second, pixels of the
        photos, pixel centres at integers.
    key : what they were matched with, JSON-able, where that is known.
    """

    names: tuple[str, ...]
    pairs: NDArray[np.int64]
    sizes: NDArray[np.float32]
    zooms: NDArray[np.float32]
    offsets: NDArray[np.int64]
    points: NDArray[np.float32]
    key: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        p = len(self.pairs)
        shapes = {
            "pairs": (p, 2),
            "sizes": (p, 4),
            "zooms": (p,),
            "offsets": (p + 1,),
            "points": (len(self.points), 4),
        }
        for name, shape in shapes.items():
            array: NDArray[Any] = getattr(self, name)
            if array.shape != shape:
                raise ValueError(f"{name} must have shape {shape}; got {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite; it is not")
        if p and not 0 <= self.pairs.min() <= self.pairs.max() < len(self.names):
            raise ValueError(f"pairs must hold rows of names, 0 ... {len(self.names) - 1}")
        ordered = (np.diff(self.offsets) > 0).all() and self.offsets[0] == 0
        if not ordered or self.offsets[-1] != len(self.points):
            raise ValueError(
                f"offsets must rise from 0 to the number of points, {len(self.points)}: every pair "
                "has some"
            )
        if p and (self.sizes.min() <= 0 or self.zooms.min() <= 0):
            raise ValueError("sizes and zooms must be positive")

    def __len__(self) -> int:
        return len(self.pairs)

    def points_of(self, pair: int) -> NDArray[np.float32]:
        """Return the (m, 4) points of a pair."""
        return self.points[self.offsets[pair] : self.offsets[pair + 1]]

    def fingerprint(self) -> str:
        """Return a checksum of all of it but the key."""
        digest = hashlib.blake2b(digest_size=16)
        for name in self.names:
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        for array in (self.pairs, self.sizes, self.zooms, self.offsets, self.points):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .npz file, and its folder if it is not there; load reads it.

        Raises CheckpointError where it cannot be written; what was there before is there still.
        """
        target = Path(path)
        if target.suffix != ".npz":
            raise ValueError(f"path must end in .npz; got {os.fspath(path)!r}")
        partial = target.with_name(f"{target.name}.part")
        with written("matched photos", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as file:
                    np.savez(
                        file,
                        names=np.array(self.names, dtype=str),
                        pairs=self.pairs,
                        sizes=self.sizes,
                        zooms=self.zooms,
                        offsets=self.offsets,
                        points=self.points,
                        key=np.array(json.dumps(self.key)),
                    )
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> MatchedPhotos:
        """Read what save wrote. Raises DatasetError where it is something else or damaged."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                return MatchedPhotos(
                    tuple(map(str, stored["names"])),
                    stored["pairs"].astype(np.int64),
                    stored["sizes"].astype(np.float32),
                    stored["zooms"].astype(np.float32),
                    stored["offsets"].astype(np.int64),
                    stored["points"].astype(np.float32),
                    json.loads(str(stored["key"])) if "key" in stored else None,
                )
        except FileNotFoundError:
            raise DatasetError(f"matched photos {os.fspath(path)!r} are not there") from None
        except Exception as error:  # whatever a damaged archive raises
            raise DatasetError(
                f"{os.fspath(path)!r} must be matched photos, as match_photos(...).save writes "
                f"them: {error}"
            ) from error


def match_photos(
    photos: LabelledPhotos,
    *,
    matchers: Sequence[Matcher] = MATCHERS,
    max_pairs: int = 25,
    max_points: int = 400,
    random_state: Any = 0,
    n_jobs: int | None = -1,
    progress: Callable[[str, int, int], None] | None = None,
) -> MatchedPhotos:
    """Match the photos of each class with each other and keep the verified matches.

    matchers : features to match by; their matches are pooled. max_pairs : pairs of photos tried of
        a class, drawn at random if it has more. max_points : matches kept of a pair.
    progress : called as progress("photos", done, total).
    Unreadable photos are left out, with a warning. Raises DatasetError where no pair is verified.
    """
    check_integer(max_pairs, "max_pairs", minimum=1)
    check_integer(max_points, "max_points", minimum=1)
    seed = check_seed(random_state)
    by_class = [
        np.flatnonzero(photos.labels == label).tolist() for label in range(len(photos.classes))
    ]
    rows = [row for members in by_class if len(members) > 1 for row in members]
    streams = [_features(photos, rows, matcher, n_jobs) for matcher in matchers]
    found: list[tuple[tuple[int, int], list[Hit], tuple[int, ...]]] = []
    unreadable: dict[int, str] = {}
    done = 0
    for label, members in enumerate(by_class):
        if len(members) < 2:
            continue
        features = [dict(itertools.islice(stream, len(members))) for stream in streams]
        for row, of_photo in itertools.chain.from_iterable(of.items() for of in features):
            if isinstance(of_photo, PhotoError):
                unreadable.setdefault(row, str(of_photo))
        pairs = list(itertools.combinations(members, 2))
        if len(pairs) > max_pairs:
            rng = np.random.default_rng([seed, label])
            pairs = [pairs[i] for i in np.sort(rng.permutation(len(pairs))[:max_pairs])]
        for a, b in pairs:
            hits: list[Hit] = []
            sizes: tuple[int, ...] = ()
            for matcher, of in zip(matchers, features):
                first, second = of[a], of[b]
                if isinstance(first, PhotoError) or isinstance(second, PhotoError):
                    continue
                sizes = (*first.image_size, *second.image_size)
                hits += _verified(first, second, matcher, seed, n_jobs)
            if hits:
                found.append(((a, b), hits, sizes))
        done += len(members)
        if progress is not None:
            progress("photos", done, len(rows))
    if unreadable:
        reasons = [(photos.paths[row], why) for row, why in unreadable.items()]
        logger.warning(left_out_text(reasons, len(photos)))
    if not found:
        raise DatasetError(
            f"no two photos of a class of {photos.source} could be matched; train without "
            "matched photos"
        )
    points = []
    for (a, b), hits, _ in found:
        pooled = np.concatenate([hit.inliers for hit in hits])
        if len(pooled) > max_points:
            rng = np.random.default_rng([seed, a, b])
            pooled = pooled[np.sort(rng.permutation(len(pooled))[:max_points])]
        points.append(pooled.astype(np.float32))
    used = sorted({row for pair, _, _ in found for row in pair})
    place = {row: i for i, row in enumerate(used)}
    return MatchedPhotos(
        tuple(photos.paths[row] for row in used),
        np.array([[place[a], place[b]] for (a, b), _, _ in found], np.int64),
        np.array([sizes for _, _, sizes in found], np.float32),
        np.array([_zoom(hits) for _, hits, _ in found], np.float32),
        np.concatenate([[0], np.cumsum([len(p) for p in points])]).astype(np.int64),
        np.concatenate(points),
    )


def _features(
    photos: LabelledPhotos, rows: Sequence[int], matcher: Matcher, n_jobs: int | None
) -> Iterator[tuple[int, LocalFeatures | PhotoError]]:
    # Baselines stand on the other side of the house; only this needs them.
    from delfsearch.baselines import load_system

    system = load_system(matcher.system, n_jobs=n_jobs, **dict(matcher.options))
    if system.needs != "nothing":
        raise ValueError(
            f"matchers must need no fit; {matcher.system!r} with {dict(matcher.options)} learns "
            f"from {system.needs}"
        )
    stream = system.stream(photos.file(row) for row in rows)
    return ((row, features) for row, (_, features) in zip(rows, stream))


def _verified(
    first: LocalFeatures, second: LocalFeatures, matcher: Matcher, seed: int, n_jobs: int | None
) -> list[Hit]:
    matches = reciprocal_matches(first, second, n_jobs=n_jobs)
    verifier = Verifier(
        min_inliers=matcher.min_inliers, max_error=matcher.max_error, random_state=seed
    )
    return verifier.verify(matches)


def reciprocal_matches(
    first: LocalFeatures,
    second: LocalFeatures,
    *,
    k: int = _N_NEIGHBOURS,
    n_jobs: int | None = 1,
) -> Matches:
    """Return the matches of two photos in which each is among the other's k nearest.

    Photo against photo, unlike in a collection, every descriptor has k nearest, however far; those
    that no descriptor answers are most of what verifies by chance.
    """
    if not len(first) or not len(second):
        return Matches.empty()
    there, back = (
        DelfIndex(n_jobs=n_jobs).fit([of]).query(by, k=k, max_leaves=_MAX_LEAVES)
        for by, of in ((first, second), (second, first))
    )
    key = there.query_indices.astype(np.int64) * len(second) + there.database_indices
    answered = back.database_indices.astype(np.int64) * len(second) + back.query_indices
    rows = np.flatnonzero(np.isin(key, answered))
    if not len(rows):
        return Matches.empty()
    return Matches(
        there.image_ids,
        np.array([0, len(rows)], np.int64),
        *(
            getattr(there, name)[rows]
            for name in (
                "query_indices",
                "database_indices",
                "query_xy",
                "database_xy",
                "squared_distances",
            )
        ),
    )


def _zoom(hits: Sequence[Hit]) -> float:
    best = max(hits, key=lambda hit: hit.score)
    return float(np.sqrt(abs(np.linalg.det(best.affine[:, :2]))))
