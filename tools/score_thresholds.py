"""What a score threshold leaves of a photo's best cells: the table in docs/delf-landmarks-1.md.

python tools/score_thresholds.py PHOTOS [--weights NAME|FILE] [--thresholds 0.01,0.1,...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from delfsearch import DelfExtractor
from delfsearch.extraction.weights import DEFAULT_WEIGHTS
from delfsearch.storage.photo_files import find_photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", help="a folder of photos")
    parser.add_argument("--weights", default=DEFAULT_WEIGHTS)
    parser.add_argument("--scales", default="0.25-1")
    parser.add_argument("--thresholds", default="0.01,0.1,0.2,0.4,0.69")
    parser.add_argument("--n", type=int, default=20, help="photos, drawn at random")
    parser.add_argument("--best", type=int, default=1000, help="cells that a selection would take")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    thresholds = [float(t) for t in arguments.thresholds.split(",")]
    extractor = DelfExtractor(arguments.weights, scales=arguments.scales)
    paths = find_photos(Path(arguments.photos))
    rows = np.random.default_rng(arguments.seed).permutation(len(paths))[: arguments.n]
    counts = []
    for row in sorted(rows):
        levels = extractor.score_map(paths[row])
        scores = np.sort(np.concatenate([level.scores.ravel() for level in levels]))[::-1]
        best = scores[: arguments.best]
        counts.append([int((best >= t).sum()) for t in thresholds])
    left = np.array(counts)
    print(f"{len(left)} photos; of the {arguments.best} best cells of each")
    for t, column in zip(thresholds, left.T):
        print(
            f"score_threshold {t:g}: mean {column.mean():.0f}, median {np.median(column):.0f} "
            f"({column.min()} to {column.max()})"
        )


if __name__ == "__main__":
    main()
