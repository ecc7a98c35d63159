"""Evaluation of 100,000 queries with 100 answers each, and bootstrap intervals, on one core.

Made-up answers with many equal scores (as inlier counts have), one query in ten a distractor query.
Every figure of ours that has a peer in scikit-learn or NumPy stands beside it, in the same rounds:
the pooled curve beside precision_recall_curve, and bootstrap resamples beside evaluating the same
metric anew on each.

    python benchmarks/evaluation.py --json out.json
"""

from __future__ import annotations

import argparse
from functools import partial
from types import SimpleNamespace

import numpy as np
from _common import environment, interleaved_medians, write_json
from sklearn.metrics import precision_recall_curve

from delfsearch.evaluation import metrics

METRICS = {
    "pooled_curve": metrics.pooled_curve,
    "R@90%": metrics.recall_at_precision,
    "TP@90": metrics.true_positives_at_precision,
    "answered@90%": metrics.answered_at_precision,
    "mAP (Oxford)": metrics.mean_average_precision,
    "mAP@100": metrics.mean_average_precision_at,
    "mP@10": metrics.mean_precision_at,
    "R@1": metrics.recall_at_rank_one,
    "GAP": metrics.global_average_precision,
}
RESAMPLED = ("R@90%", "TP@90", "answered@90%", "mAP (Oxford)", "GAP")


def made_up(n_queries: int, n_answers: int, n_database: int, seed: int) -> tuple:
    """Return ids, scores (inlier-like) and positives; right answers score higher on average."""
    rng = np.random.default_rng(seed)
    # Distinct ids: a random start and rising random steps, around the database.
    steps = rng.integers(1, n_database // n_answers, (n_queries, n_answers))
    ids = (rng.integers(0, n_database, (n_queries, 1)) + steps.cumsum(axis=1)) % n_database
    right = rng.random((n_queries, n_answers)) < 0.05
    right[::10] = False
    scores = rng.geometric(0.08, (n_queries, n_answers)) + np.where(right, 40, 0)
    order = np.argsort(-scores, axis=1, kind="stable")
    ids, scores, right = (np.take_along_axis(x, order, axis=1) for x in (ids, scores, right))
    missed = rng.integers(0, n_database, n_queries)
    positives = [
        [*row[found].tolist(), *([] if i % 10 == 0 or m in row else [int(m)])]
        for i, (row, found, m) in enumerate(zip(ids, right, missed))
    ]
    return ids, scores, positives


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--answers", type=int, default=100)
    parser.add_argument("--database", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    ids, scores, positives = made_up(arguments.queries, arguments.answers, arguments.database, 0)
    judged = metrics.judge_arrays(ids, scores, positives)

    # The same by id, in lists: a tenth of it, which already takes some hundred megabytes.
    few = max(1, arguments.queries // 10)
    answers = {
        i: [(str(photo), score) for photo, score in zip(row, own)]
        for i, (row, own) in enumerate(zip(ids[:few].tolist(), scores[:few].tolist()))
    }
    queries = [
        SimpleNamespace(id=i, positives={str(p) for p in positives[i]}, junk=(), scene="")
        for i in range(few)
    ]
    # Photos in 3,000 places of the globe, each some kilometres wide, and queries among them.
    rng = np.random.default_rng(2)
    places = rng.uniform([-60, -179], [60, 179], (3_000, 2))
    photos = places[rng.integers(0, len(places), arguments.database)]
    photos = photos + rng.normal(0, 0.1, photos.shape)
    cameras = photos[rng.integers(0, len(photos), arguments.queries)]
    by_location = f"judge_by_location, {arguments.database} photos"

    by_id = f"judge_all, lists by id, {few} queries"

    calls: dict = {"judge_arrays": lambda _: metrics.judge_arrays(ids, scores, positives)}
    for name, metric in METRICS.items():
        calls[name] = lambda _, metric=metric: metric(judged)
    calls[by_id] = lambda _: metrics.judge_all(answers, queries)
    calls[by_location] = lambda _: metrics.judge_by_location(
        ids, scores, query_locations=cameras, database_locations=photos
    )
    calls["peer: sklearn precision_recall_curve"] = lambda _: precision_recall_curve(
        judged.correct, judged.scores
    )
    seconds = interleaved_medians(calls, arguments.rounds, threads=1)
    ours = sum(seconds[name] for name in ("judge_arrays", *METRICS))
    print(f"{arguments.queries} queries x {arguments.answers} answers, CPU seconds, one thread")
    for name, value in seconds.items():
        print(f"  {name:42s} {value:8.3f}")
    print(f"  {'judge_arrays and every metric':42s} {ours:8.3f}")

    # 700 queries x 200 answers: about what shared photographs give.
    small = metrics.judge_arrays(*made_up(700, 200, 2_400, 1))
    n_resamples, n_anew = 1000, 20
    resampling: dict = {}
    for name in RESAMPLED:
        metric = METRICS[name]
        resampling[name] = partial(bootstrap, small, metric, n_resamples)
        # Wrapped, it is a metric like a user's own: evaluated on each resample.
        resampling[f"peer: {name} anew"] = partial(
            bootstrap, small, lambda queries, metric=metric: metric(queries), n_anew
        )
    times = interleaved_medians(resampling, arguments.rounds, threads=1)
    per_resample = {
        name: 1e3 * value / (n_anew if name.startswith("peer") else n_resamples)
        for name, value in times.items()
    }
    print(f"bootstrap of {len(small)} queries x 200 answers, CPU ms a resample")
    for name, value in per_resample.items():
        print(f"  {name:42s} {value:8.3f}")
    write_json(
        arguments.json,
        {
            "environment": environment(),
            "queries": arguments.queries,
            "answers": arguments.answers,
            "cpu_seconds": seconds,
            "judging_and_every_metric": ours,
            "bootstrap_queries": len(small),
            "bootstrap_ms_per_resample": per_resample,
        },
    )


def bootstrap(queries: metrics.JudgedQueries, metric, n_resamples: int, _: int) -> None:
    metrics.bootstrap_interval(queries, metric, n_resamples=n_resamples)


if __name__ == "__main__":
    main()
