"""Selection mass of keypoint scores on real photographs: do they look at what gets matched?

True pairs (a query and one of its positives) are matched with all cells of both pyramids; of each
score, the share of its total on the matched cells (mass), that over the share of the cells (lift),
and the share of its 1,000 best cells that are matched (precision); means over photos, 95%
intervals and paired differences over scenes. False pairs, a query and a photo of a scene that shows
nothing of the query's, are verified likewise: few should be. Several weights are compared by lift,
on the photos that both have verified; the first are the baseline. Of a folder of folds
(fold-0.safetensors, ...) each is asked only for pairs, true and false, of scenes that it was not
trained on; the false ones are then drawn fold by fold.

    python benchmarks/selection.py --photos FOLDER [--weights FILE|FOLDER]... [--json F]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import environment, write_json

from delfsearch import DelfExtractor
from delfsearch.evaluation import SelectionMass, TruePair, selection_mass, true_pairs
from delfsearch.evaluation.datasets import read_library_folder
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.evaluation.report.fold_weights import fold_files, read_folds
from delfsearch.evaluation.scene_folds import linked_scenes, trained_photos
from delfsearch.evaluation.selection import MEASURES, MIN_INLIERS
from delfsearch.extraction.weights import load_weights


def scene_groups(folder: PhotoFolder) -> dict[str, str]:
    """Return for each scene the name of its group: those that show the same have one name."""
    links = linked_scenes(folder)
    groups = {scene: scene for pair in links for scene in pair}
    groups |= {scene: scene for scene in folder.labels.values()}
    for one, other in links:
        old, new = groups[one], groups[other]
        groups = {scene: new if group == old else group for scene, group in groups.items()}
    return groups


def false_pairs(
    pairs: list[TruePair], groups: Mapping[str, str], n: int, random_state: int
) -> list[TruePair]:
    """Return n queries at most, each with the positive of a random pair of another group."""
    generator = np.random.default_rng(random_state)
    known = [pair for pair in pairs if pair.scene in groups]
    mixed = []
    for row in generator.permutation(len(known)):
        one = known[row]
        others = [other for other in known if groups[other.scene] != groups[one.scene]]
        if others:
            other = others[generator.integers(len(others))]
            name = f"{one.id} with {other.id}"
            mixed.append(TruePair(one.query, other.positive, name, one.scene))
    return mixed[:n]


def scores_of(weights: str) -> tuple[str, ...]:
    return ("attention", "l2") if load_weights(weights).attention else ("l2",)


def judges(name: str, pairs: list[TruePair]) -> list[tuple[str, list[TruePair]]]:
    """Return weights, each with the pairs that it judges; say where it was trained on some."""
    files = fold_files(name)
    if files:
        found = []
        for fold in read_folds(name):
            found.append((str(fold.file), [p for p in pairs if p.scene in fold.held_out]))
        return [(file, own) for file, own in found if own]
    trained = trained_photos(load_weights(name)) or ()
    known = sum(
        any(str(side).endswith(f"/{photo}") for side in (p.query, p.positive) for photo in trained)
        for p in pairs
    )
    if known:
        print(f"{name} was TRAINED on photos of {known} of these {len(pairs)} pairs")
    return [(name, pairs)]


def measured(
    judged: list[tuple[str, list[TruePair]]], arguments: argparse.Namespace
) -> SelectionMass:
    """Measure all scores that weights, or those of folds, have, each on its own pairs."""
    parts = []
    for file, own in judged:
        extractor = DelfExtractor(file, scales=arguments.scales, n_jobs=arguments.threads)
        parts.append(
            selection_mass(
                own, extractor, scores=scores_of(file), min_inliers=arguments.min_inliers
            )
        )
    return SelectionMass.pooled(parts)


def strangers_of(
    judged: list[tuple[str, list[TruePair]]], groups: Mapping[str, str], n: int, random_state: int
) -> list[tuple[str, list[TruePair]]]:
    """Return weights, each with its share of n false pairs of the scenes that it judges."""
    total = sum(len(own) for _, own in judged)
    found = [
        (file, false_pairs(own, groups, round(n * len(own) / total), random_state))
        for file, own in judged
    ]
    return [(file, own) for file, own in found if own]


def interval(found: Any) -> list[float]:
    return [found.low, found.high]


def described(result: SelectionMass) -> dict[str, Any]:
    """Return the means of every score, and how it differs from the L2 norm."""
    scores: dict[str, Any] = {}
    for score in result.mass:
        row = scores[score] = {}
        for measure in MEASURES:
            found = result.interval(measure, score)
            row[measure] = {"mean": found.value, "interval": interval(found)}
            if score != "l2":
                found = result.difference(measure, score, "l2")
                row[measure] |= {
                    "minus_l2": found.difference,
                    "minus_l2_interval": interval(found),
                    "p_value": found.p_value,
                }
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("DELFSEARCH_PHOTOS")
    parser.add_argument("--photos", type=Path, default=default, required=default is None)
    parser.add_argument(
        "--weights", action="append", help="name, file or folder of folds; once for each"
    )
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--false-pairs", type=int, default=30)
    parser.add_argument("--min-inliers", type=int, default=MIN_INLIERS)
    parser.add_argument("--scales", default="0.25-2")
    parser.add_argument("--threads", type=int, default=-1)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of the pairs")
    parser.add_argument("--json")
    arguments = parser.parse_args()

    dataset = read_library_folder(arguments.photos)
    pairs = true_pairs(dataset, n_pairs=arguments.pairs, random_state=arguments.seed)
    groups = scene_groups(PhotoFolder.read(arguments.photos))
    results: dict[str, SelectionMass] = {}
    report: dict[str, Any] = {}
    for name in arguments.weights or [DelfExtractor().weights]:
        judged = judges(name, pairs)
        result = measured(judged, arguments)
        strangers = strangers_of(judged, groups, arguments.false_pairs, arguments.seed)
        n_strangers = sum(len(own) for _, own in strangers)
        wrong = len(measured(strangers, arguments).ids) // 2 if strangers else 0
        results[name] = result
        n_verified = len(result.ids) // 2
        share = float(result.cell_share.mean()) if n_verified else None
        report[name] = {
            "pairs": len(pairs),
            "verified": n_verified,
            "unreadable": len(result.unreadable),
            "false_pairs": n_strangers,
            "false_verified": wrong,
            "cell_share": share,
            "scores": described(result) if n_verified else {},
        }
        print(
            f"{name}: {n_verified} of {len(pairs)} true pairs verified, {wrong} of "
            f"{n_strangers} of different scenes; matched cells {share:.3f} of all"
            if n_verified
            else f"{name}: no pair verified"
        )
        for score, measures in report[name]["scores"].items():
            for measure, row in measures.items():
                low, high = row["interval"]
                line = f"  {score:10} {measure:10} {row['mean']:.3f} [{low:.3f}, {high:.3f}]"
                if "minus_l2" in row:
                    low, high = row["minus_l2_interval"]
                    line += f"  minus L2 {row['minus_l2']:+.3f} [{low:+.3f}, {high:+.3f}]"
                print(line)

    # Different weights match different cells, of which mass and precision depend.
    base, *others = results
    comparisons = []
    for name in others:
        for score in results[name].mass:
            found = results[name].difference("lift", score, "l2", other=results[base])
            comparisons.append(
                {
                    "weights": name,
                    "score": score,
                    "lift_minus_l2_of": base,
                    "difference": found.difference,
                    "interval": interval(found),
                    "p_value": found.p_value,
                }
            )
            print(f"{name}, {score}: lift minus that of {base}, l2: {found}")
    write_json(
        arguments.json,
        {
            "environment": environment(),
            "scales": arguments.scales,
            "min_inliers": arguments.min_inliers,
            "seed": arguments.seed,
            "weights": report,
            "comparisons": comparisons,
        },
    )


if __name__ == "__main__":
    main()
