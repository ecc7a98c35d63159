"""Cells of matched photos: features of a frozen trunk, and which of them get matched.

What an attention head learns from (InlierAttentionTrainer): pairs of photos are matched with all
cells of both pyramids, nothing selected, and verified; the cells whose features end up as inliers
are those that a selection should keep.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from delfsearch.errors import DatasetError, PhotoError
from delfsearch.evaluation.selection import matched_cells
from delfsearch.extraction.extractor import DelfExtractor
from delfsearch.extraction.network import N_CHANNELS
from delfsearch.extraction.reduction import PcaReduction
from delfsearch.features import LocalFeatures
from delfsearch.training.checkpoint import CheckpointError, written
from delfsearch.training.draws import Purpose, generator
from delfsearch.training.labelled import LabelledPhotos
from delfsearch.training.models import half

logger = logging.getLogger("delfsearch")

# Dimensions to match by, where there are as many; more only take longer.
_N_COMPONENTS = 40
_ALL = 2**31 - 1  # more cells than any photo has
_INSTEAD = "use other weights, or AttentionTrainer without cached_crops, which keeps none"
_TABLE, _FEATURES, _SHARES = "cells.json", "features.f2", "shares.f4"


class MatchedCells(NamedTuple):
    """Cells drawn from p photos, m of each.

    rows : (p,) int64, of the LabelledPhotos. features : (p, m, 1024) float16, raw; zeros where a
    photo has fewer cells. shares : (p, m) float32, of the photo's verified pairs, those in which
    the cell is an inlier; -1 where there is no cell. n_verified : pairs. unreadable : (row, reason)
    of photos that could not be read.
    """

    rows: NDArray[np.int64]
    features: NDArray[np.float16]
    shares: NDArray[np.float32]
    n_verified: int
    unreadable: tuple[tuple[int, str], ...]


def match_cells(
    photos: LabelledPhotos,
    pairs: Sequence[tuple[int, int]],
    extractor: DelfExtractor,
    pca: Mapping[str, NDArray[Any]],
    *,
    n_cells: int,
    min_inliers: int,
    random_state: int,
    folder: Path | None = None,
    key: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> MatchedCells:
    """Match pairs of photos with all their cells and draw n_cells of each photo.

    pairs : rows of photos; best class by class, since a photo's cells are held from the first pair
        that it is in to the last.
    extractor : of all cells, see all_cells_of. pca : of the weights; empty matches by 1,024
        dimensions. min_inliers : for a pair to be verified.
    folder : keeps the cells, and gives them back where key, JSON-able, is the same.
    progress : called as progress("cells", done, total), of the pairs.
    Photos without a verified pair are left out. Raises DatasetError where no pair is verified,
    CheckpointError where the folder has no space for the cells of all photos or cannot be written,
    WeightsError where features go over half precision.
    """
    if folder is not None and (found := _read(folder, key, n_cells)) is not None:
        return found
    reduction = None
    if pca:
        k = min(_N_COMPONENTS, len(pca["pca.components"]))
        reduction = PcaReduction.from_arrays(dict(pca), k)
    rows: list[int] = []
    shares: list[NDArray[np.float32]] = []
    kept: list[NDArray[np.float16]] = []
    unreadable: dict[int, str] = {}
    n_verified = 0
    done = _finished(
        photos,
        pairs,
        extractor,
        reduction,
        n_cells,
        min_inliers,
        random_state,
        unreadable,
        progress,
    )
    _make_space(folder, len({row for pair in pairs for row in pair}), n_cells)
    if folder is not None:
        done = _stored(done, folder / _FEATURES)
    for photo in done:
        rows.append(photo.row)
        shares.append(photo.shares)
        n_verified += photo.n_pairs
        if folder is None:
            kept.append(photo.features)
    if not rows:
        raise DatasetError(
            f"none of {len(pairs)} pairs of photos was verified with {min_inliers} inliers or "
            "more: are they of the same things?"
        )
    if folder is not None:
        table = {
            "key": key,
            "rows": rows,
            # Every pair is counted at both of its photos.
            "n_verified": n_verified // 2,
            "unreadable": sorted(unreadable.items()),
        }
        with _written(folder / _SHARES):
            np.stack(shares).tofile(folder / _SHARES)
        with _written(folder / _TABLE):
            partial = folder / f"{_TABLE}.part"
            partial.write_text(json.dumps(table), "utf-8")
            os.replace(partial, folder / _TABLE)
    if folder is not None and (found := _read(folder, key, n_cells)) is not None:
        return found
    return MatchedCells(
        np.array(rows, np.int64),
        np.stack(kept),
        np.stack(shares),
        n_verified // 2,
        tuple(sorted(unreadable.items())),
    )


def _make_space(folder: Path | None, n_photos: int, n_cells: int) -> None:
    """Say how much the cells may take; refuse a folder that has less."""
    needed = n_photos * n_cells * 2 * N_CHANNELS
    where = "memory" if folder is None else folder
    logger.info("cells of matched photos: up to %.1f GB in %s", needed / 1e9, where)
    if folder is None:
        return
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for stale in (_TABLE, _FEATURES, _SHARES):  # of another key, or cut short
            (folder / stale).unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"the cells of {n_photos} photos take up to {needed / 1e9:.1f} GB in {folder}, "
            f"{free / 1e9:.1f} GB are free: free some space, or ask for fewer n_cells"
        )


def _written(path: Path) -> contextlib.AbstractContextManager[None]:
    return written("cells", path, or_else="ask for fewer n_cells")


def _stored(photos: Iterator[_Photo], path: Path) -> Iterator[_Photo]:
    """Yield photos whose features were written to a file."""
    with _written(path):
        file = path.open("wb")
    try:
        for photo in photos:
            with _written(path):
                file.write(photo.features.tobytes())
            yield photo
        with _written(path):
            file.flush()
    finally:
        with contextlib.suppress(OSError):  # of what was said already
            file.close()


def all_cells_of(weights: str | os.PathLike[str], **options: Any) -> DelfExtractor:
    """Return an extractor that keeps every cell of a photo, raw up to the length."""
    return DelfExtractor(
        weights, score="l2", max_features=_ALL, iou_threshold=1.0, n_components=None, **options
    )


class _Photo:
    """All cells of a photo, reduced, to match; and those that were drawn, raw."""

    def __init__(
        self,
        row: int,
        found: LocalFeatures,
        reduction: PcaReduction | None,
        n_cells: int,
        rng: np.random.Generator,
        weights: str,
    ) -> None:
        self.row = row
        x, y = found.keypoints_xy.T
        found = found[np.lexsort((x, y, -found.scales))]  # grid order: scores decide nothing
        self._drawn = np.sort(rng.permutation(len(found))[:n_cells])
        raw = torch.from_numpy(found.descriptors[self._drawn] * found.scores[self._drawn, None])
        self.features = np.zeros((n_cells, N_CHANNELS), np.float16)
        self.features[: len(raw)] = half(raw, weights=weights, instead=_INSTEAD)
        self.reduced = found
        if reduction is not None and len(found):
            self.reduced = replace(found, descriptors=reduction.transform(found.descriptors))
        self._counts = np.zeros(len(found), np.int64)
        self.n_pairs = 0

    def add(self, is_inlier: NDArray[np.bool_]) -> None:
        self._counts += is_inlier
        self.n_pairs += 1

    @property
    def shares(self) -> NDArray[np.float32]:
        shares = np.full(len(self.features), -1.0, np.float32)
        shares[: len(self._drawn)] = self._counts[self._drawn] / self.n_pairs
        return shares


def _finished(
    photos: LabelledPhotos,
    pairs: Sequence[tuple[int, int]],
    extractor: DelfExtractor,
    reduction: PcaReduction | None,
    n_cells: int,
    min_inliers: int,
    random_state: int,
    unreadable: dict[int, str],
    progress: Callable[[str, int, int], None] | None,
) -> Iterator[_Photo]:
    """Yield each photo that has a verified pair after its last pair; fill unreadable."""
    order = list(dict.fromkeys(itertools.chain.from_iterable(pairs)))
    last = {row: i for i, pair in enumerate(pairs) for row in pair}
    stream = zip(order, extractor.stream(photos.file(row) for row in order))
    held: dict[int, _Photo] = {}
    for i, pair in enumerate(pairs):
        while not all(row in held or row in unreadable for row in pair):
            row, (_, found) = next(stream)
            if isinstance(found, PhotoError):
                unreadable[row] = str(found)
                continue
            rng = generator(random_state, Purpose.CELLS, row)
            held[row] = _Photo(row, found, reduction, n_cells, rng, os.fspath(extractor.weights))
        if all(row in held for row in pair):
            first, second = (held[row] for row in pair)
            masks = matched_cells(first.reduced, second.reduced, min_inliers=min_inliers)
            if masks[0].any():
                first.add(masks[0])
                second.add(masks[1])
        for row in pair:
            if last[row] == i and (photo := held.pop(row, None)) is not None and photo.n_pairs:
                yield photo
        if progress is not None:
            progress("cells", i + 1, len(pairs))


def _read(folder: Path, key: Mapping[str, Any] | None, n_cells: int) -> MatchedCells | None:
    """Return the cells of a folder, where they are whole and of this key."""
    try:
        table = json.loads((folder / _TABLE).read_text("utf-8"))
        if table["key"] != json.loads(json.dumps(key)):
            return None
        rows = np.array(table["rows"], np.int64)
        shape = (len(rows), n_cells)
        shares = np.fromfile(folder / _SHARES, np.float32).reshape(shape)
        features = np.memmap(folder / _FEATURES, np.float16, "r", shape=(*shape, N_CHANNELS))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # computed anew
    unreadable = tuple((int(row), str(reason)) for row, reason in table["unreadable"])
    return MatchedCells(rows, features, shares, int(table["n_verified"]), unreadable)
