"""Print the table from which k, Verifier's max_error and its min_inliers were chosen.

    python tools/choose_verifier_defaults.py PHOTOS --weights FOLDER [--work FOLDER]

PHOTOS holds photos.csv and ground_truth.json, --weights what `delfsearch train recipe PHOTOS`
wrote: weights of folds. Each fold's weights are asked only by photos of scenes that they were not
trained on, and that no evaluation queries (role "db"): each asks the index of all photos but those
of its own scene and of scenes linked with it; whatever it finds is false. (Twins show up as the
highest scores: look at those that are printed.) Synthetic warps of the same photos (perspective,
crop, scale, light) say what is true. min_inliers is the least that leaves at most 1% of the photos
that ask anything false; k and max_error are those at which most warps pass that.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from delfsearch import DelfIndex, Matches, Verifier
from delfsearch.baselines import load_system
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.evaluation.report.entrants import identity_of
from delfsearch.evaluation.report.fold_weights import fold_files
from delfsearch.evaluation.running.feature_store import FeatureStore, StoredPhoto
from delfsearch.evaluation.scene_folds import held_out_scenes, linked_scenes
from delfsearch.extraction.weights import load_weights

NEIGHBOURS = (8, 16, 32)
MAX_ERRORS = (12.0, 16.0, 20.0)
ALLOWED_FALSE = 0.01


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


@dataclass
class Asked:
    """What one fold was asked. asking, paths : of the index. alone, seen_again : matches, by k."""

    paths: tuple[str, ...]
    asking: NDArray[np.int64]
    chosen: NDArray[np.int64]
    alone: dict[int, list[Matches]]
    seen_again: dict[int, list[Matches]]


def ask(folder: PhotoFolder, weights: Path, args: argparse.Namespace, fold: int) -> Asked:
    """Ask an index of one fold's features with the photos that it may be asked with."""
    rng = np.random.default_rng(fold)
    held_out = held_out_scenes(load_weights(weights))
    if not held_out:
        raise SystemExit(f"{weights} does not name scenes that it was not trained on")
    paths = folder.database
    system = load_system(  # as the report asks for it: they share what is extracted
        "delf", weights=str(weights), scales="0.25-1", score="attention", n_jobs=args.n_jobs
    )
    store = FeatureStore(args.work / "features")
    identity = identity_of("delf", system)
    shelf = store.shelf({"system": "delf", "identity": identity}, system.stream)
    photos = [StoredPhoto(folder.root / path) for path in paths]
    shelf.ensure(photos)
    features = [shelf.load(photo) for photo in photos]
    index = DelfIndex(max_squared_distance=system.max_squared_distance, n_jobs=args.n_jobs)
    index.fit(features)
    near = linked_groups(folder)
    able = [
        row
        for row, path in enumerate(paths)
        if folder.roles[path] == "db" and folder.labels.get(path) in held_out
    ]
    asking = np.sort(rng.permutation(able)[: args.sample])
    chosen = rng.permutation(asking)[: args.warps]
    warped = []
    for row in chosen:
        with Image.open(folder.root / paths[row]) as photo:
            warped.append(warp(photo.convert("RGB"), rng))
    warped_features = [found for _, found in system.stream(warped)]
    own = {
        row: [
            i
            for i, path in enumerate(paths)
            if near.get(folder.labels.get(path)) == near[folder.labels[paths[row]]]
        ]
        for row in asking
    }
    return Asked(
        paths,
        asking,
        chosen,
        {
            k: [index.query(features[row], k=k, exclude_ids=own[row]) for row in asking]
            for k in NEIGHBOURS
        },
        {k: [index.query(found, k=k) for found in warped_features] for k in NEIGHBOURS},
    )


def linked_groups(folder: PhotoFolder) -> dict[str, str]:
    """Return, by scene, a name for all scenes that show the same."""
    group = {scene: scene for scene in folder.labels.values()}
    for a, b in linked_scenes(folder):
        old, new = group[a], group[b]
        group = {scene: new if name == old else name for scene, name in group.items()}
    return group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="folder of fold-0 ...")
    parser.add_argument(
        "--work", type=Path, default=Path("out/report/work"), help="keeps features; as the report's"
    )
    parser.add_argument("--sample", type=int, default=200, help="photos of a fold that ask")
    parser.add_argument("--warps", type=int, default=50, help="of photos of a fold")
    parser.add_argument("--n-jobs", type=int, default=-1)
    args = parser.parse_args()
    folder = PhotoFolder.read(args.photos, check_files=False)
    folds = [ask(folder, path, args, fold) for fold, path in enumerate(fold_files(args.weights))]

    n_asking, n_warps = (sum(len(getattr(f, x)) for f in folds) for x in ("asking", "chosen"))
    print(f"{len(folder.database)} photos indexed; {n_asking} ask, and {n_warps} warps of them")
    print("  k max_error  false: median    90%    95%    99%    most  min_inliers  warps that pass")
    for k in NEIGHBOURS:
        for max_error in MAX_ERRORS:
            verifier = Verifier(max_error=max_error, n_jobs=args.n_jobs)
            answers = [best_scores(verifier, fold.alone[k]) for fold in folds]
            false = np.concatenate([scores for scores, _ in answers])
            true = np.concatenate(
                [best_scores(verifier, fold.seen_again[k], fold.chosen)[0] for fold in folds]
            )
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
    pairs = [
        (int(score), fold.paths[row], fold.paths[photo])
        for fold, (scores, photos) in zip(folds, answers)
        for row, score, photo in zip(fold.asking, scores, photos)
    ]
    for score, one, other in sorted(pairs, reverse=True)[:10]:
        print(f"{score:5d}  {one}  {other}")


if __name__ == "__main__":
    main()
