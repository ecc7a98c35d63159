"""Selection mass: whether a keypoint score looks at what gets matched. Needs no masks.

A true pair of photos is matched with ALL cells of both pyramids, nothing selected, so that the
descriptors and the matches are the same whichever score is judged. The cells of a photo whose
features end up as inliers are its matched cells. Of each score S it is then asked, photo by photo:

- mass: sum of S over the matched cells / sum of S over all cells;
- lift: mass / share of the cells that are matched, which is what a constant score has as its mass;
- precision: share of the n_selected cells of highest S that are matched.

Which cells are matched depends on the descriptors: scores of the same weights are compared on the
same cells, by any measure; scores of different weights by lift. Source: Sec. 3.3 (attention is to
select what is relevant). Differs: the measure is ours, the paper shows pictures (Fig. 3).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from delfsearch._validation import check_choice, check_integer, check_seed, check_vector
from delfsearch.errors import DatasetError, PhotoError
from delfsearch.evaluation.bootstrap import (
    Difference,
    Interval,
    bootstrap_difference,
    bootstrap_interval,
)
from delfsearch.evaluation.datasets.base import Dataset
from delfsearch.evaluation.judged import JudgedQueries
from delfsearch.features import LocalFeatures
from delfsearch.index.delf_index import DelfIndex
from delfsearch.verification.verifier import Verifier

MEASURES = ("mass", "lift", "precision")
# With all cells matched, photos of different things agree in more of them by chance than the
# Verifier's own default allows for; benchmarks/selection.py counts how many pass.
MIN_INLIERS = 200
_ALL = 2**31 - 1  # more cells, and more leaves of them, than any photo has


class TruePair(NamedTuple):
    """Two photos that show the same thing.

    query, positive : path, PIL image or array, as DelfExtractor takes it. id : names the pair,
    unique. scene : pairs of one scene are resampled together; "" where it belongs to none.
    """

    query: Any
    positive: Any
    id: str
    scene: str = ""


class MatchedMass(NamedTuple):
    """One score on one photo; see the module. cell_share : matched cells / all cells."""

    mass: float
    cell_share: float
    precision: float

    @property
    def lift(self) -> float:
        """Mass over cell_share: 1 for a constant score; nan where no cell is matched."""
        return self.mass / self.cell_share if self.cell_share else float("nan")


@dataclass(frozen=True, eq=False)
class SelectionMass:
    """What selection_mass measured: n rows, two for each verified pair, the query's photo first.

    ids : (pair id, "query" or "positive") of each row. scenes : of each row, "" where unknown.
    cell_share : (n,) float64, matched cells / all cells. mass, precision : by score, (n,) float64.
    n_pairs : pairs that were asked for. unverified : ids of those that were not verified.
    unreadable : by pair id, why a photo of it could not be read.
    """

    ids: tuple[tuple[str, str], ...] = field(repr=False)
    scenes: tuple[str, ...] = field(repr=False)
    cell_share: NDArray[np.float64] = field(repr=False)
    mass: Mapping[str, NDArray[np.float64]] = field(repr=False)
    precision: Mapping[str, NDArray[np.float64]] = field(repr=False)
    n_pairs: int
    unverified: tuple[str, ...] = field(repr=False, default=())
    unreadable: Mapping[str, str] = field(repr=False, default_factory=dict)

    def values(self, measure: str, score: str) -> NDArray[np.float64]:
        """Return "mass", "lift" or "precision" of a score, (n,) float64, one value a row."""
        check_choice(measure, "measure", MEASURES)
        check_choice(score, "score", tuple(self.mass))
        if measure == "precision":
            return self.precision[score]
        return self.mass[score] / self.cell_share if measure == "lift" else self.mass[score]

    def interval(self, measure: str, score: str, **options: Any) -> Interval:
        """Return the mean over the rows and its interval; options are bootstrap_interval's."""
        return bootstrap_interval(self._judged(measure, score), _mean_value, **options)

    def difference(
        self,
        measure: str,
        first: str,
        second: str,
        *,
        other: SelectionMass | None = None,
        **options: Any,
    ) -> Difference:
        """Compare two scores, paired photo by photo: the first's mean minus the second's.

        other : of other weights, on the same pairs, which `second` is then taken from; only the
            photos that both have verified count. options : bootstrap_difference's.
        """
        theirs = self if other is None else other
        place = {name: i for i, name in enumerate(theirs.ids)}  # folds pool in another order
        common = [(i, place[name]) for i, name in enumerate(self.ids) if name in place]
        return bootstrap_difference(
            self._judged(measure, first).take([i for i, _ in common]),
            theirs._judged(measure, second).take([j for _, j in common]),
            _mean_value,
            **options,
        )

    @staticmethod
    def pooled(parts: Sequence[SelectionMass]) -> SelectionMass:
        """Return several measurements as one, as of the folds of a cross-validation.

        parts : at least one, of the same scores and of different pairs.
        """
        if not parts or any(set(part.mass) != set(parts[0].mass) for part in parts):
            raise ValueError("parts must be at least one, of the same scores")
        ids = [name for part in parts for name in part.ids]
        if len(set(ids)) < len(ids):
            raise ValueError("parts must be of different pairs")
        scores = tuple(parts[0].mass)
        return SelectionMass(
            ids=tuple(ids),
            scenes=tuple(scene for part in parts for scene in part.scenes),
            cell_share=np.concatenate([part.cell_share for part in parts]),
            mass={s: np.concatenate([part.mass[s] for part in parts]) for s in scores},
            precision={s: np.concatenate([part.precision[s] for part in parts]) for s in scores},
            n_pairs=sum(part.n_pairs for part in parts),
            unverified=tuple(name for part in parts for name in part.unverified),
            unreadable={k: v for part in parts for k, v in part.unreadable.items()},
        )

    def _judged(self, measure: str, score: str) -> JudgedQueries:
        # The bootstrap draws judged queries: a photo is one with a single answer, whose score is
        # the photo's value.
        values = self.values(measure, score)
        return JudgedQueries(
            scores=values,
            correct=np.ones(len(values), np.bool_),
            offsets=np.arange(len(values) + 1, dtype=np.int64),
            n_positives=np.ones(len(values), np.int64),
            ids=self.ids,
            scenes=self.scenes,
        )


def _mean_value(judged: Any) -> float:
    values = judged.scores
    return float(values.mean()) if len(values) else float("nan")


def true_pairs(
    dataset: Dataset, *, n_pairs: int | None = None, random_state: Any = 0
) -> list[TruePair]:
    """Return pairs of a headline query and one of its positives, drawn at random.

    n_pairs : so many queries are drawn, each once; None, or more than there are, takes all.
    A query's box is left aside: whole photos are paired.
    Raises DatasetError where queries have no positives, as in a set that is judged by location.
    """
    queries = dataset.headline_queries
    # Where a query's own photo counts as an answer (Oxford5k as published) it makes no pair.
    positives = [sorted(query.positives - {query.photo}) for query in queries]
    if not queries or not all(positives):
        raise DatasetError(f"{dataset.name}: true pairs need queries with positives")
    n = len(queries) if n_pairs is None else check_integer(n_pairs, "n_pairs", minimum=1)
    generator = np.random.default_rng(check_seed(random_state))
    drawn = np.sort(generator.permutation(len(queries))[:n])
    pairs = []
    for row in drawn:
        query, choice = queries[row], positives[row]
        positive = choice[generator.integers(len(choice))]
        pairs.append(TruePair(query.path, dataset.paths[positive], query.id, query.scene))
    return pairs


def matched_cells(
    query: LocalFeatures,
    database: LocalFeatures,
    *,
    index: DelfIndex | None = None,
    verifier: Verifier | None = None,
    min_inliers: int | None = MIN_INLIERS,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match and verify two photos; return which features of either are inliers.

    query, database : of one dimension; n and m features.
    index : unfitted; None means DelfIndex with the nearest neighbour alone, searched exhaustively.
    verifier : None means Verifier(). min_inliers : at least 3; None means the verifier's.
    Returns (n,) and (m,) bool, all false where the pair is not verified.
    """
    index = _exhaustive_index(None) if index is None else clone(index)
    verifier = Verifier() if verifier is None else verifier
    least = verifier.min_inliers if min_inliers is None else min_inliers
    check_integer(least, "min_inliers", minimum=3)
    matches = index.fit([database]).query(query)
    found = verifier.verify_all(matches)
    masks = np.zeros(len(query), np.bool_), np.zeros(len(database), np.bool_)
    if len(found) and found.n_inliers[0] >= least:
        masks[0][matches.query_indices[found.inlier_rows]] = True
        masks[1][matches.database_indices[found.inlier_rows]] = True
    return masks


def mass_on_matches(scores: Any, is_matched: Any, *, n_selected: int = 1000) -> MatchedMass:
    """Measure one score on one photo.

    scores : (n,) float, at least 0 and not all 0, the score of every cell. is_matched : (n,) bool.
    n_selected : cells that a selection by this score would keep, at least 1; all, where there are
        fewer. Equal scores are taken in the order of the cells.
    Raises ValueError where an argument is not as it must be.
    """
    values = check_vector(scores, "scores", np.float64)
    matched = check_vector(is_matched, "is_matched", np.bool_, n=len(values))
    check_integer(n_selected, "n_selected", minimum=1)
    total = values.sum()
    if (values < 0).any() or total <= 0:
        raise ValueError(
            "scores must be at least 0 and not all 0, for their mass to be shared out; got "
            f"a minimum of {values.min() if len(values) else 'no score'}"
        )
    best = np.argsort(-values, kind="stable")[:n_selected]
    return MatchedMass(
        mass=float(values[matched].sum() / total),
        cell_share=float(matched.mean()),
        precision=float(matched[best].mean()),
    )


def selection_mass(
    pairs: Iterable[TruePair],
    extractor: Any,
    *,
    scores: Sequence[str] = ("l2", "attention"),
    index: DelfIndex | None = None,
    verifier: Verifier | None = None,
    min_inliers: int | None = MIN_INLIERS,
    n_selected: int = 1000,
) -> SelectionMass:
    """Measure how much of each keypoint score lies on the cells that get matched; see the module.

    pairs : as true_pairs gives them, with different ids.
    extractor : DelfExtractor; its weights, scales, border_cells and reduction count, but not what
        it would select. It runs once for every score.
    scores : as its score parameter names them.
    index, verifier, min_inliers : as matched_cells takes them; the default index also has the
        extractor's max_squared_distance. n_selected : as in mass_on_matches.
    Raises ValueError without pairs or scores, WeightsError for a score that the weights lack.
    """
    pairs = list(pairs)
    if not pairs or len({pair.id for pair in pairs}) < len(pairs):
        raise ValueError(f"pairs must be at least one, with different ids; got {len(pairs)}")
    if isinstance(scores, str) or not scores:
        raise ValueError(f"scores must be a list that names at least one score; got {scores!r}")
    if index is None:
        index = _exhaustive_index(extractor.max_squared_distance)
    ids: list[tuple[str, str]] = []
    scenes: list[str] = []
    unverified: list[str] = []
    unreadable: dict[str, str] = {}
    measured: dict[str, list[MatchedMass]] = {score: [] for score in scores}
    photos = _all_cells(
        [p for pair in pairs for p in (pair.query, pair.positive)], extractor, scores
    )
    for pair, query, positive in zip(pairs, photos, photos):
        if isinstance(query, PhotoError) or isinstance(positive, PhotoError):
            unreadable[pair.id] = str(query if isinstance(query, PhotoError) else positive)
            continue
        masks = matched_cells(
            query.features,
            positive.features,
            index=index,
            verifier=verifier,
            min_inliers=min_inliers,
        )
        if not masks[0].any():
            unverified.append(pair.id)
            continue
        for side, cells, mask in zip(("query", "positive"), (query, positive), masks):
            ids.append((pair.id, side))
            scenes.append(pair.scene)
            for score in scores:
                values = cells.scores[score]
                measured[score].append(mass_on_matches(values, mask, n_selected=n_selected))
    # Rows of (mass, cell_share, precision).
    tables = {score: np.array(rows, np.float64).reshape(-1, 3) for score, rows in measured.items()}
    return SelectionMass(
        ids=tuple(ids),
        scenes=tuple(scenes),
        cell_share=tables[scores[0]][:, 1],
        mass={score: table[:, 0] for score, table in tables.items()},
        precision={score: table[:, 2] for score, table in tables.items()},
        n_pairs=len(pairs),
        unverified=tuple(unverified),
        unreadable=unreadable,
    )


class _Cells(NamedTuple):
    """All cells of a photo, and each score of them, (n,) float32, by its name."""

    features: LocalFeatures
    scores: dict[str, NDArray[np.float32]]


def _all_cells(
    photos: Sequence[Any], extractor: Any, scores: Sequence[str]
) -> Iterator[_Cells | PhotoError]:
    """Yield the cells of each photo, nothing selected, in an order that no score decides."""
    streams = []
    for score in scores:
        whole = copy.copy(extractor)  # not clone, which forgets what fit learned
        whole.set_params(score=score, max_features=_ALL, score_threshold=None, iou_threshold=1.0)
        streams.append(whole.stream(photos))
    for results in zip(*streams):
        found = [features for _, features in results]
        if isinstance(found[0], PhotoError):
            yield found[0]
            continue
        found = [_in_grid_order(features) for features in found]
        yield _Cells(found[0], {score: each.scores for score, each in zip(scores, found)})


def _in_grid_order(features: LocalFeatures) -> LocalFeatures:
    """Return features by rising pyramid scale, then row by row."""
    x, y = features.keypoints_xy.T
    return features[np.lexsort((x, y, -features.scales))]


def _exhaustive_index(max_squared_distance: float | None) -> DelfIndex:
    return DelfIndex(k=1, max_leaves=_ALL, max_squared_distance=max_squared_distance)
