"""DELF in the report by weights of several folds: none is asked for a scene that it was trained on.

A folder holds fold-0.safetensors, fold-1.safetensors and so on, each trained without some of the
scenes, which its recipe names. Every query is answered by the weights that held its scene out, and
queries of no scene and distractor queries are dealt round-robin. The database of each is whole.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delfsearch.baselines import load_system
from delfsearch.errors import WeightsError
from delfsearch.evaluation.datasets.base import Dataset, Query, listed
from delfsearch.evaluation.report.entrants import (
    Contender,
    Entrant,
    Workshop,
    divide_queries,
    entrant_of,
    identity_of,
    learn,
)
from delfsearch.evaluation.running.feature_store import FeatureShelf
from delfsearch.evaluation.running.runnable import Runnable
from delfsearch.evaluation.scene_folds import HELD_OUT, TRAINED_ON, held_out_scenes, trained_photos
from delfsearch.extraction.weights import Weights, load_weights

_NAME = re.compile(r"fold-(0|[1-9][0-9]*)\.safetensors")


@dataclass(frozen=True)
class FoldWeights:
    """Weights of one fold.

    held_out : scenes that they were not trained on. trained : photos that they were trained on, by
    path in the folder of photos; None where the recipe does not say. sort : what must be alike in
    all folds.
    """

    file: Path
    provenance: str = field(repr=False)
    held_out: frozenset[str] = field(repr=False)
    trained: frozenset[str] | None = field(repr=False)
    sort: Mapping[str, Any] = field(repr=False)


def fold_files(weights: str | Path) -> tuple[Path, ...]:
    """Return the files of a folder of folds in order; none where weights are anything else.

    Raises WeightsError where one of the sequence is missing, or a name is none of it.
    """
    folder = Path(weights)
    found = sorted(folder.glob("fold-*.safetensors")) if folder.is_dir() else []
    if not found:
        return ()
    numbers = set()
    for path in found:
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise WeightsError(
                f"weights of folds must be named fold-0.safetensors, fold-1.safetensors, ...; "
                f"{folder} holds {path.name}"
            )
        numbers.add(int(match[1]))
    n_folds = max(2, 1 + max(numbers))
    if missing := [n for n in range(n_folds) if n not in numbers]:
        raise WeightsError(
            f"{folder} lacks fold-{missing[0]}.safetensors: cross-validation needs the weights of "
            f"every fold, {len(missing)} of at least {n_folds} are missing; finish their training"
        )
    return tuple(folder / f"fold-{n}.safetensors" for n in range(n_folds))


def read_folds(weights: str | Path) -> tuple[FoldWeights, ...]:
    """Read a folder of folds.

    Raises WeightsError where a file is damaged or does not name what it held out, two held the same
    scene out, or they differ in kind (one has attention, another has none).
    """
    folds = tuple(_read(file) for file in fold_files(weights))
    first = folds[0]
    for fold in folds[1:]:
        for what, value in first.sort.items():
            if fold.sort[what] != value:
                raise WeightsError(
                    f"weights of folds must be of one kind, but {what} is {value} in "
                    f"{first.file.name} and {fold.sort[what]} in {fold.file.name}"
                )
    _fold_of(folds)
    return folds


def divided(dataset: Dataset, folds: Sequence[FoldWeights]) -> tuple[Dataset, ...]:
    """Return the set once for each fold, with the queries which its weights are to answer.

    Raises WeightsError where a query's scene was held out by none, or weights list a photo as
    trained on that one of their queries shows or is answered by.
    """
    fold_of = _fold_of(folds)
    scenes = {query.scene for query in dataset.queries if query.scene}
    if seen := sorted(scenes - set(fold_of)):
        raise WeightsError(
            f"no fold of {folds[0].file.parent} held out {listed(seen)}, which queries of "
            f"{dataset.name} ask for: all weights may have been trained on them; train the folds "
            "on the scenes of this set, or leave those queries out"
        )
    parts = divide_queries(dataset, fold_of, len(folds))
    for fold, part in zip(folds, parts):
        if known := _shown(part.all_queries, fold.trained or ()):
            raise WeightsError(
                f"{fold.file.name} was trained on what it must not know: {TRAINED_ON} of its "
                f"recipe lists photos that it is to be asked for or to find, those of "
                f"{listed(known)}"
            )
    return parts


def trained_by_query(dataset: Dataset, weights: str | Path) -> dict[str, frozenset[str]]:
    """Return the database photos that the weights which answer a query were trained on, by its id.

    weights : a folder of folds. Raises WeightsError where it is none, or does not say.
    """
    if not fold_files(weights):
        raise WeightsError(f"weights must be a folder of folds, fold-0.safetensors ...: {weights}")
    folds = read_folds(weights)
    database = frozenset(dataset.database)
    found: dict[str, frozenset[str]] = {}
    for fold, part in zip(folds, divided(dataset, folds)):
        if fold.trained is None:
            raise WeightsError(
                f"{fold.file.name} does not say what it was trained on: its recipe has no "
                f"{TRAINED_ON}, a list of paths in the folder of photos"
            )
        found |= dict.fromkeys((query.id for query in part.all_queries), fold.trained & database)
    return found


def trained_note(system: Any, dataset: Dataset) -> str:
    """Return a word for captions where DELF's weights say that they know what is asked for."""
    known = _shown(dataset.all_queries, trained_photos(system._runtime().weights) or ())
    if not known:
        return ""
    return f"; trained on photos that {len(known)} of the queries show or ask for: no fair figures"


def prepare_folds(
    contender: Contender, dataset: Dataset, workshop: Workshop, options: Mapping[str, Any]
) -> Entrant:
    """Make DELF ready with the weights of folds, each for its part of the queries.

    options : of the system; its weights are the folder. Raises WeightsError.
    """
    folds = read_folds(options["weights"])
    shelves: list[tuple[FeatureShelf, Dataset]] = []
    for fold, part in zip(folds, divided(dataset, folds)):
        if not part.all_queries:
            continue
        system = load_system(contender.system, **{**options, "weights": str(fold.file)})
        identity, learned_from = learn(system, dataset, workshop, identity_of("delf", system))
        if not shelves:
            first, told = system, system.ran + learned_from
            told = told.replace(
                f"{fold.file} ({fold.provenance})",
                f"{folds[0].file.name} ... {folds[-1].file.name} (one of them: {fold.provenance})",
            )
        # Timing needs one network at hand; the others are loaded when photos are extracted.
        stream = _loaded_anew(system) if shelves else system.stream
        shelf = workshop.store.shelf({"system": "delf", "identity": identity}, stream)
        shelves.append((shelf, part))
    ran = (
        f"{told}; {len(folds)} folds of scenes: each query is answered by the weights that held "
        "its scene out, over the whole database, photos that they were trained on included; "
        f"scores of {len(folds)} weights are pooled"
    )
    parts = tuple((Runnable("local", ran, shelf), part) for shelf, part in shelves)
    return entrant_of(contender, parts, workshop, first)


def _read(file: Path) -> FoldWeights:
    weights = load_weights(file)
    held_out = held_out_scenes(weights)
    if not held_out:
        raise WeightsError(
            f"weights {str(file)!r} do not say what they have not seen: the recipe of a fold must "
            f"have {HELD_OUT}, a list of the scenes that were left out of their training"
        )
    return FoldWeights(
        file, weights.provenance, held_out, trained_photos(weights), _sort_of(weights)
    )


def _sort_of(weights: Weights) -> dict[str, Any]:
    return {
        "layout": weights.layout,
        "attention": ", ".join(sorted(weights.attention)) or "absent",
        "the number of PCA components": len(weights.pca.get("pca.components", ())),
    }


def _fold_of(folds: Sequence[FoldWeights]) -> dict[str, int]:
    fold_of: dict[str, int] = {}
    for n, fold in enumerate(folds):
        if twice := sorted(fold.held_out & set(fold_of)):
            other = folds[fold_of[twice[0]]]
            raise WeightsError(
                f"{other.file.name} and {fold.file.name} both held out {listed(twice)}: each scene "
                "must be in one fold, or these are not folds of one training"
            )
        fold_of |= dict.fromkeys(fold.held_out, n)
    return fold_of


def _shown(queries: Sequence[Query], photos: Collection[str]) -> list[str]:
    """Return the ids of queries whose own photo or right answers are among the photos."""
    known = set(photos)
    return [query.id for query in queries if query.photo in known or query.positives & known]


def _loaded_anew(system: Any) -> Callable[[Any], Any]:
    """Return the stream of a system whose network is loaded for each call and forgotten after."""
    bare = copy.copy(system)  # leaves the network behind
    return lambda photos: copy.copy(bare).stream(photos)
