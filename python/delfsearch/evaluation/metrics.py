"""All metrics under one name: ``from delfsearch.evaluation import metrics``.

judged                JudgedQuery, JudgedQueries
judging, numbered     answers compared with ground truth
unranked              over all queries together: precision, recall, R@P, TP@P, answered@P, GAP
ranked                over each query's ranking: average precision, mAP, mAP@k, mP@k, R@1
revisited             Easy, Medium and Hard
geo                   right by location
bootstrap             confidence intervals of all of them
"""

from __future__ import annotations

from delfsearch.evaluation.bootstrap import (
    CurveBand,
    Difference,
    Interval,
    bootstrap_curve,
    bootstrap_difference,
    bootstrap_interval,
)
from delfsearch.evaluation.geo import (
    count_within,
    great_circle_km,
    judge_all_by_location,
    judge_by_location,
    positives_within,
)
from delfsearch.evaluation.judged import JudgedQueries, JudgedQuery
from delfsearch.evaluation.judging import judge, judge_all
from delfsearch.evaluation.numbered import judge_arrays
from delfsearch.evaluation.ranked import (
    average_precision,
    average_precisions,
    average_precisions_at,
    first_answers_right,
    mean_average_precision,
    mean_average_precision_at,
    mean_precision_at,
    precisions_at,
    recall_at_rank_one,
)
from delfsearch.evaluation.revisited import RevisitedScores, judge_revisited, revisited_scores
from delfsearch.evaluation.unranked import (
    PooledCurve,
    answered_at_precision,
    answered_at_threshold,
    global_average_precision,
    pooled_curve,
    pooled_precision,
    pooled_recall,
    precision_at_recall,
    recall_at_precision,
    threshold_at_precision,
    true_positives_at_precision,
)

__all__ = [
    "CurveBand",
    "Difference",
    "Interval",
    "JudgedQueries",
    "JudgedQuery",
    "PooledCurve",
    "RevisitedScores",
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
    "threshold_at_precision",
    "true_positives_at_precision",
]
