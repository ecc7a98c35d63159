"""siaMAC in the report, whose whitening is learned on photos of the same things.

The scenes are cut in two: the one half's queries are answered with what the other half taught, and
the distractor queries are divided between the two.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.baselines.global_system import Projection
from delfsearch.baselines.whitening import DiscriminativeWhitening
from delfsearch.errors import PhotoError
from delfsearch.evaluation.datasets.base import Dataset
from delfsearch.evaluation.report.entrants import (
    Contender,
    Entrant,
    Workshop,
    divide_queries,
    entrant_of,
    identity_of,
)
from delfsearch.evaluation.running.feature_store import FeatureShelf, StoredPhoto
from delfsearch.evaluation.running.fitted import digest, kept, versions
from delfsearch.evaluation.running.runnable import Runnable
from delfsearch.evaluation.scene_folds import deal_scenes


@dataclass(frozen=True)
class _Whitened:
    """A vector as the other half's whitening leaves it."""

    projection: Projection

    def __call__(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.projection(vector[None])[0], np.float32)


def whitened(contender: Contender, dataset: Dataset, workshop: Workshop, system: Any) -> Entrant:
    """Make a system ready that learns a whitening, one for each half of the scenes."""
    wanted = {"n_components": system.n_components, "shrinkage": system.shrinkage}
    system.set_params(whitening="none")
    family = contender.system.partition("+")[0]
    identity = [family, *identity_of(family, system)]
    # The raw vectors do not depend on what becomes of them.
    for name in wanted:
        identity[1].pop(name, None)
    shelf = workshop.store.shelf({"system": family, "identity": identity}, system.stream)
    rounds = system.query_expansion
    folds = halves(dataset)
    if not folds:
        ran = f"{system.ran}; too few scenes to learn a whitening from"
        runnable = Runnable("global", ran, shelf, query_expansion=rounds)
        return entrant_of(contender, ((runnable, dataset),), workshop, system)
    parts = []
    for photos, scenes, part in folds:
        arrays = kept(
            workshop.folder,
            [shelf.key, wanted, versions(photos), list(scenes)],
            functools.partial(_whitening, shelf, photos, scenes, wanted),
        )
        components = arrays["components"]
        ran = (
            f"{system.ran.replace('no whitening', 'learned whitening')} "
            f"({len(components)} dimensions, two folds of scenes: scores of two whitenings are "
            "pooled)"
        )
        runnable = Runnable(
            "global",
            ran,
            shelf,
            _Whitened(Projection(components, -components @ arrays["mean"])),
            {"whitening": digest(arrays)},
            query_expansion=rounds,
        )
        parts.append((runnable, part))
    return entrant_of(contender, tuple(parts), workshop, system)


def halves(dataset: Dataset) -> list[tuple[list[Path], list[str], Dataset]]:
    """Return for each half of the scenes: photos and scenes of the other half, and its queries."""
    scene_of: dict[Path, str] = {
        Path(dataset.paths[photo]): label for photo, label in dataset.labels.items() if label
    }
    scene_of |= {Path(query.path): query.scene for query in dataset.queries if query.scene}
    scenes = set(scene_of.values())
    if len(scenes) < 2:
        return []
    half = {scene: n for n, fold in enumerate(deal_scenes(scenes, 2)) for scene in fold}
    folds = []
    for fold, part in enumerate(divide_queries(dataset, half, 2)):
        photos = sorted(path for path, scene in scene_of.items() if half[scene] != fold)
        labels = [scene_of[path] for path in photos]
        if len(labels) == len(set(labels)):  # no two that match
            return []
        folds.append((photos, labels, part))
    return folds


def _whitening(
    shelf: FeatureShelf, photos: Sequence[Path], scenes: Sequence[str], wanted: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    stored = [StoredPhoto(path) for path in photos]
    shelf.ensure(stored)
    rows, labels = [], []
    for photo, scene in zip(stored, scenes):
        vector = shelf.load(photo)
        if not isinstance(vector, PhotoError):
            rows.append(np.asarray(vector))
            labels.append(scene)
    X = np.stack(rows)
    k = min(int(wanted["n_components"]), X.shape[1])
    whitening = DiscriminativeWhitening(k, shrinkage=wanted["shrinkage"]).fit(X, labels)
    return {"mean": whitening.mean_, "components": whitening.components_}
