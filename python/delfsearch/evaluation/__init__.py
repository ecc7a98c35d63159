"""Metrics and protocols for search that must reject queries with no match.

The metrics' public names are here, imported when first used; ``metrics`` has them all at once.
``selection`` measures keypoint scores.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delfsearch.evaluation.metrics import (
        CurveBand,
        Difference,
        Interval,
        JudgedQueries,
        JudgedQuery,
        PooledCurve,
        RevisitedScores,
        answered_at_precision,
        answered_at_threshold,
        average_precision,
        average_precisions,
        average_precisions_at,
        bootstrap_curve,
        bootstrap_difference,
        bootstrap_interval,
        count_within,
        first_answers_right,
        global_average_precision,
        great_circle_km,
        judge,
        judge_all,
        judge_all_by_location,
        judge_arrays,
        judge_by_location,
        judge_revisited,
        mean_average_precision,
        mean_average_precision_at,
        mean_precision_at,
        pooled_curve,
        pooled_precision,
        pooled_recall,
        positives_within,
        precision_at_recall,
        precisions_at,
        recall_at_precision,
        recall_at_rank_one,
        revisited_scores,
        threshold_at_precision,
        true_positives_at_precision,
    )
    from delfsearch.evaluation.selection import (
        MatchedMass,
        SelectionMass,
        TruePair,
        mass_on_matches,
        matched_cells,
        selection_mass,
        true_pairs,
    )

__all__ = [
    "CurveBand",
    "Difference",
    "Interval",
    "JudgedQueries",
    "JudgedQuery",
    "MatchedMass",
    "PooledCurve",
    "RevisitedScores",
    "SelectionMass",
    "TruePair",
    "answered_at_precision",
    "answered_at_threshold",
    "average_precision",
    "average_precisions",
    "average_precisions_at",
    "bootstrap_curve",
    "bootstrap_difference",
    "bootstrap_interval",
    "count_within",
    "first_answers_right",
    "global_average_precision",
    "great_circle_km",
    "judge",
    "judge_all",
    "judge_all_by_location",
    "judge_arrays",
    "judge_by_location",
    "judge_revisited",
    "mass_on_matches",
    "matched_cells",
    "mean_average_precision",
    "mean_average_precision_at",
    "mean_precision_at",
    "pooled_curve",
    "pooled_precision",
    "pooled_recall",
    "positives_within",
    "precision_at_recall",
    "precisions_at",
    "recall_at_precision",
    "recall_at_rank_one",
    "revisited_scores",
    "selection_mass",
    "threshold_at_precision",
    "true_pairs",
    "true_positives_at_precision",
]

_OF_SELECTION = (
    "MatchedMass",
    "SelectionMass",
    "TruePair",
    "mass_on_matches",
    "matched_cells",
    "selection_mass",
    "true_pairs",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "selection" if name in _OF_SELECTION else "metrics"
        value = getattr(importlib.import_module(f"delfsearch.evaluation.{module}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'delfsearch.evaluation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
