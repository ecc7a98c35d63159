"""Whole searches by posting lists beside the KD-tree, on photographs with ground truth.

Features, votes and verification are those of `delfsearch report`; only the index differs. R@1, mAP,
R@90% and answered@90% of the headline queries, distractor queries included, and how much more or
less each index reaches than the tree, with 95% intervals, paired by query. What is worked out is
kept in the work folder.

    python benchmarks/list_quality.py --photos FOLDER --work FOLDER [--system rootsift] [--json F]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _common import environment, write_json

from delfsearch import _core
from delfsearch.evaluation.datasets import read_library_folder
from delfsearch.evaluation.report.entrants import Contender, Workshop
from delfsearch.evaluation.report.groups import groups_of
from delfsearch.evaluation.report.lineup import LINEUP, prepare
from delfsearch.evaluation.report.measures import MEASURES, compare, measure
from delfsearch.evaluation.running.feature_store import FeatureStore
from delfsearch.evaluation.running.protocol import judge_answers, run_system
from delfsearch.evaluation.running.runnable import Effort
from delfsearch.index.engines import MAX_LEAVES

TREE = "KD-tree"
# Sparse features are reduced as the paper reduces its own.
REDUCED = {"rootsift": {"n_components": 40}, "congas": {"n_components": 40}}


def variants(n_lists: int) -> dict[str, dict[str, Any] | None]:
    """Return parameters of the lists by title, None for the tree."""
    lists = {"n_lists": n_lists}
    return {
        TREE: None,
        "5 lists": {**lists, "n_probe": 5, "postings": "features"},
        "5 lists, rerank 64": {**lists, "n_probe": 5, "rerank": 64, "postings": "features"},
        "5 lists, photos": {**lists, "n_probe": 5, "postings": "photos"},
        "16 lists, rerank 64": {**lists, "n_probe": 16, "rerank": 64, "postings": "features"},
        "16 lists, photos": {**lists, "n_probe": 16, "postings": "photos"},
    }


def contender_of(key: str) -> Contender:
    found = next((one for one in LINEUP if one.key == key), None)
    if found is None:
        raise SystemExit(f"--system must be of {', '.join(c.key for c in LINEUP)}; got {key}")
    return dataclasses.replace(found, options={**found.options, **REDUCED.get(key, {})})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=os.environ.get("DELFSEARCH_PHOTOS"))
    parser.add_argument("--work", type=Path, required=True, help="for features, indexes, answers")
    parser.add_argument("--system", default="delf-attention-0.25-1", help="a key of report's")
    parser.add_argument("--weights", help="of delf: a file, or a folder of folds")
    parser.add_argument("--n-lists", type=int, default=1024)
    parser.add_argument("--only", nargs="*", help="titles of indexes, beside the tree; default all")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if not arguments.photos:
        raise SystemExit("--photos FOLDER or DELFSEARCH_PHOTOS is needed")
    dataset = read_library_folder(Path(arguments.photos))
    weights: Mapping[str, str] = {} if arguments.weights is None else {"delf": arguments.weights}
    workshop = Workshop(
        FeatureStore(arguments.work / "features"), arguments.work / "learned", weights=weights
    )
    entrant = prepare(contender_of(arguments.system), dataset, workshop)
    groups = groups_of(dataset)[:1]
    n_distractors = len(dataset.distractor_queries)
    figures: dict[str, Any] = {}
    costs: dict[str, dict[str, float]] = {}
    for title, lists in variants(arguments.n_lists).items():
        if arguments.only is not None and title not in (TREE, *arguments.only):
            continue
        settings = dataclasses.replace(entrant.settings, lists=lists)
        assert entrant.effort is not None
        effort = entrant.effort if lists is None else Effort(entrant.effort.k, MAX_LEAVES["ivf"])
        answers, n_bytes = {}, []
        begin = time.perf_counter()
        for runnable, part in entrant.parts:
            run = run_system(runnable, part, (effort,), arguments.work, settings=settings)
            answers |= run.answers[effort]
            n_bytes.append(run.bytes_per_photo)
        judged = judge_answers(dataset, answers, n_distractor_queries=n_distractors)
        figures[title] = measure(judged, groups, n_resamples=arguments.resamples)
        costs[title] = {
            "bytes_per_photo": sum(n_bytes) / len(n_bytes),
            "wall_s": time.perf_counter() - begin,
        }
        print(f"{title}: done", file=sys.stderr)
    name = groups[0].name
    differences = {c.title: c for c in compare(figures, [TREE], [name])}
    print(f"{arguments.system}, {len(dataset.database)} photos, {name}; {entrant.ran}")
    print("| index | " + " | ".join(MEASURES) + " | bytes a photo |")
    print("|---" * (len(MEASURES) + 2) + "|")
    rows = []
    for title, by_group in figures.items():
        cells, row = [], {"index": title, **costs[title]}
        for one in MEASURES:
            interval = by_group[name].by_measure[one]
            row[one] = interval.value
            cell = f"{interval.value:.3f}"
            if title in differences:
                less = differences[title].by_measure[one]
                row[f"{one} less the tree's"] = [less.difference, less.low, less.high]
                cell += f" ({less.difference:+.3f} [{less.low:+.3f}, {less.high:+.3f}])"
            cells.append(cell)
        rows.append(row)
        print(f"| {title} | " + " | ".join(cells) + f" | {costs[title]['bytes_per_photo']:.0f} |")
    write_json(
        arguments.json,
        {
            "environment": environment(),
            "simd": _core.simd(),
            "system": arguments.system,
            "n_lists": arguments.n_lists,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
