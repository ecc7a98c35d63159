"""Print the table from which k, Verifier's max_error and its min_inliers were chosen.

    python tools/choose_verifier_defaults.py PHOTOS [--exclude TEXT ...]

PHOTOS holds photos.csv and ground_truth.json. Only photos that no evaluation queries are touched:
role "distractor", not among ground_truth's distractor_queries. All of them are indexed. Each of a
seeded sample of them asks the index, its own photo left out: whatever it finds is false. (Twins
show up as the highest scores: look at those that are printed, and keep their folder from asking
with --exclude and a part of the path if they do show the same thing.) Synthetic warps of the same
photos (perspective, crop, scale, light) say what is true. min_inliers is the least that leaves at
most 1% of the queries anything false; k and max_error are those at which most warps pass that.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from delfsearch import DelfExtractor, DelfIndex, Matches, Verifier

NEIGHBOURS = (8, 16, 32)
MAX_ERRORS = (12.0, 16.0, 20.0)
ALLOWED_FALSE = 0.01


def unqueried_photos(folder: Path) -> list[str]:
    with open(folder / "photos.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    truth = json.loads((folder / "ground_truth.json").read_text(encoding="utf-8"))
    queried = set(truth["distractor_queries"]) | set(truth["queries"])
    return sorted(
        row["path"] for row in rows if row["role"] == "distractor" and row["path"] not in queried
    )


def warp(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The photo as seen from elsewhere: a crop of 60-95% of each side, its corners moved by up to
    12% of it, half to full size, in other light."""
    width, height = photo.size
    sides = rng.uniform(0.6, 0.95, 2) * (width, height)
    corner = rng.uniform(0, 1, 2) * ((width, height) - sides)
    square = np.array([[0, 0], [0, 1], [1, 1], [1, 0]])
    source = corner + sides * (square + rng.uniform(-0.12, 0.12, (4, 2)))
    size = np.maximum(sides * rng.uniform(0.5, 1.0), 64).astype(int)
    target = square * size
    rows, values = [], []
    for (x, y), (u, v) in zip(target, source):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    perspective = np.linalg.solve(np.array(rows, float), np.array(values))
    warped = photo.transform(
        (int(size[0]), int(size[1])),
        Image.Transform.PERSPECTIVE,
        [float(value) for value in perspective],
        Image.Resampling.BICUBIC,
    )
    warped = ImageEnhance.Brightness(warped).enhance(float(rng.uniform(0.6, 1.4)))
    return ImageEnhance.Contrast(warped).enhance(float(rng.uniform(0.7, 1.3)))


def best_scores(
    verifier: Verifier, queries: list[Matches], own: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Most inliers per query over all candidates, or in its own photo; and which photo that is."""
    scores, photos = [], []
    for i, matches in enumerate(queries):
        found = verifier.verify_all(matches)
        n = found.n_inliers if own is None else found.n_inliers * (found.image_ids == own[i])
        at = int(n.argmax()) if len(n) else -1
        scores.append(int(n[at]) if len(n) else 0)
        photos.append(int(found.image_ids[at]) if len(n) else -1)
    return np.array(scores, np.int64), np.array(photos, np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--exclude", nargs="*", default=[], help="parts of paths that do not ask")
    parser.add_argument("--sample", type=int, default=400, help="photos that ask")
    parser.add_argument("--warps", type=int, default=100)
    parser.add_argument("--border-cells", type=int, default=0, help="of DelfExtractor")
    parser.add_argument("--n-jobs", type=int, default=1)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    paths = unqueried_photos(args.photos)
    able = [i for i, path in enumerate(paths) if not any(text in path for text in args.exclude)]
    asking = np.sort(rng.permutation(able)[: args.sample])
    extractor = DelfExtractor.preset("fast", border_cells=args.border_cells, n_jobs=args.n_jobs)
    features = extractor.transform([args.photos / path for path in paths])
    index = DelfIndex(max_squared_distance=0.64, n_jobs=args.n_jobs).fit(features)
    chosen = rng.permutation(asking)[: args.warps]
    warped = []
    for i in chosen:
        with Image.open(args.photos / paths[i]) as photo:
            warped.append(warp(photo.convert("RGB"), rng))
    warped_features = extractor.transform(warped)

    print(f"{len(paths)} photos indexed; {len(asking)} ask, and {len(chosen)} warps of them")
    print("  k max_error  false: median    90%    95%    99%    most  min_inliers  warps that pass")
    for k in NEIGHBOURS:
        alone = [index.query(features[i], k=k, exclude_ids=[i]) for i in asking]
        seen_again = [index.query(f, k=k) for f in warped_features]
        for max_error in MAX_ERRORS:
            verifier = Verifier(max_error=max_error, n_jobs=args.n_jobs)
            false, photos = best_scores(verifier, alone)
            true, _ = best_scores(verifier, seen_again, chosen)
            ordered = np.sort(false)[::-1]
            min_inliers = int(ordered[int(ALLOWED_FALSE * len(ordered))]) + 1
            low, *quantiles = np.quantile(false, [0.5, 0.9, 0.95, 0.99])
            print(
                f"{k:3d}{max_error:10.0f}{low:15.0f}"
                + "".join(f"{q:7.0f}" for q in quantiles)
                + f"{ordered[0]:8d}{min_inliers:13d}{(true >= min_inliers).mean():17.2f}",
                flush=True,
            )
    print("\nThe highest false scores (twins?):")
    for i in np.argsort(-false, kind="stable")[:10]:
        print(f"{false[i]:5d}  {paths[asking[i]]}  {paths[photos[i]]}")


if __name__ == "__main__":
    main()
