"""Verification beside OpenCV, PoseLib: one run, interleaved rounds, medians.

The workload of one query ("query" below): 100 candidates, 5 of them true, N = 10 to 150 matches
each (uniform). Keypoints are uniform in 1024 x 768 px. In a true candidate a share of 0.25 to 0.7
of the matches, at least 10, follows an affine about the centre of the photo: scale 0.5 to 2
(log-uniform), rotation within 30 degrees, singular values up to 1.5 apart in a random direction;
their database ends carry Gaussian noise of 3 px per axis. All other matches join random positions.
One false candidate in five is a hub: its database ends are n / 25 positions, at least one.
Success: at least 90% of the true inliers are among those returned. Threshold 12 px.
The grid holds single candidates of fixed (N, inlier share) made the same way; "false" holds
candidates without any true match, uniform or hubs. Descriptor distances carry no information here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch import Matches, Verifier

THRESHOLD_PX = 12.0
WIDTH_HEIGHT = np.array([1024.0, 768.0])
GRID = [(50, 0.5), (100, 0.2), (100, 0.1), (500, 0.1), (500, 0.05), (1000, 0.05)]

# query xy, database xy -> inlier mask
Peer = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.bool_]]


class Candidate:
    def __init__(self, rng: np.random.Generator, n: int, n_true: int, *, hubs: int = 0) -> None:
        query = rng.uniform(0, WIDTH_HEIGHT, (n, 2))
        database = rng.uniform(0, WIDTH_HEIGHT, (n, 2))
        if hubs:
            database = database[rng.integers(0, hubs, n)]
        if n_true:
            centre = WIDTH_HEIGHT / 2
            moved = (query[:n_true] - centre) @ random_linear(rng).T + centre
            database[:n_true] = moved + rng.normal(0, 3.0, (n_true, 2))
        order = rng.permutation(n)
        self.query = query[order].astype(np.float32)
        self.database = database[order].astype(np.float32)
        self.true = order < n_true


def random_linear(rng: np.random.Generator) -> NDArray[np.float64]:
    def turn(angle: float) -> NDArray[np.float64]:
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    scale = np.exp(rng.uniform(np.log(0.5), np.log(2.0)))
    stretch = rng.uniform(1.0, 1.5)
    axis = turn(rng.uniform(0, np.pi))
    uneven = axis @ np.diag([stretch**0.5, stretch**-0.5]) @ axis.T
    return scale * turn(np.deg2rad(rng.uniform(-30, 30))) @ uneven


def query_workload(rng: np.random.Generator) -> list[Candidate]:
    candidates = []
    for i in range(100):
        n = int(rng.integers(10, 151))
        if i < 5:
            share = rng.uniform(0.25, 0.7)
            candidates.append(Candidate(rng, n, max(10, round(n * share))))
        else:
            hub = rng.random() < 0.2
            candidates.append(Candidate(rng, n, 0, hubs=max(1, n // 25) if hub else 0))
    return candidates


def pack(candidates: list[Candidate]) -> Matches:
    sizes = [len(c.query) for c in candidates]
    numbers = np.concatenate([np.arange(n) for n in sizes]).astype(np.int32)
    return Matches(
        image_ids=np.arange(len(candidates), dtype=np.int64),
        offsets=np.cumsum([0, *sizes]).astype(np.int64),
        query_indices=numbers,
        database_indices=numbers,
        query_xy=np.concatenate([c.query for c in candidates]),
        database_xy=np.concatenate([c.database for c in candidates]),
        squared_distances=np.ones(len(numbers), np.float32),
    )


def opencv(method: str, iterations: int, confidence: float = 0.99) -> Peer:
    import cv2

    flag = getattr(cv2, method)

    def run(query: NDArray[np.float32], database: NDArray[np.float32]) -> NDArray[np.bool_]:
        nothing = np.zeros(len(query), bool)
        try:
            matrix, mask = cv2.estimateAffine2D(
                query,
                database,
                method=flag,
                ransacReprojThreshold=THRESHOLD_PX,
                maxIters=iterations,
                confidence=confidence,
            )
        except cv2.error:  # some USAC variants refuse degenerate sets
            return nothing
        return nothing if matrix is None or mask is None else mask.ravel().astype(bool)

    return run


def poselib_homography(iterations: int) -> Peer:
    import poselib

    options = {"max_reproj_error": THRESHOLD_PX, "max_iterations": iterations}

    def run(query: NDArray[np.float32], database: NDArray[np.float32]) -> NDArray[np.bool_]:
        q, d = query.astype(np.float64), database.astype(np.float64)
        _, info = poselib.estimate_homography(q, d, options, {})
        return np.array(info["inliers"], bool)

    return run


def peers() -> dict[str, Peer]:
    found: dict[str, Peer] = {}
    try:
        import cv2

        cv2.setNumThreads(1)
        found["OpenCV USAC_FAST 1k"] = opencv("USAC_FAST", 1000)
        found["OpenCV RANSAC 2k"] = opencv("RANSAC", 2000)
        found["OpenCV USAC_MAGSAC 10k"] = opencv("USAC_MAGSAC", 10000)
    except ImportError:
        note("OpenCV is not installed: left out")
    try:
        import poselib  # noqa: F401

        found["PoseLib homography 1k"] = poselib_homography(1000)
    except ImportError:
        note("PoseLib is not installed: left out")
    return found


def note(text: str) -> None:
    print(text, file=sys.stderr)


def masks_of(verifier: Verifier, matches: Matches) -> list[NDArray[np.bool_]]:
    found = verifier.verify_all(matches)
    mask = np.zeros(len(matches.squared_distances), bool)
    mask[found.inlier_rows] = True
    return np.split(mask, matches.offsets[1:-1])


def measure(
    sets: list[list[Candidate]], systems: dict[str, Any], rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Run every system on every set, `rounds` times, in turns; figures per system."""
    packed = [pack(candidates) for candidates in sets]
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    masks: dict[str, list[NDArray[np.bool_]]] = {}
    for _ in range(rounds):
        for name, system in systems.items():
            start = clock()
            if isinstance(system, Verifier):
                found = [system.verify_all(matches) for matches in packed]
                seconds[name].append(clock() - start)
                del found
                masks[name] = [m for matches in packed for m in masks_of(system, matches)]
            else:
                masks[name] = [system(c.query, c.database) for cs in sets for c in cs]
                seconds[name].append(clock() - start)
    flat = [c for candidates in sets for c in candidates]
    figures = {}
    for name, found_masks in masks.items():
        true = [(c, m) for c, m in zip(flat, found_masks) if c.true.any()]
        false = [int(m.sum()) for c, m in zip(flat, found_masks) if not c.true.any()]
        entry = {"microseconds": 1e6 * statistics.median(seconds[name]) / len(flat)}
        if true:
            hits = [(m & c.true).sum() >= 0.9 * c.true.sum() for c, m in true]
            entry["success"] = float(np.mean(hits))
            entry["weakest_true"] = min(int(m.sum()) for _, m in true)
        if false:
            entry["most_false"] = max(false)
        if true and false:
            entry["queries_with_false_above_true"] = float(violations(sets, found_masks))
        figures[name] = entry
    return figures


def violations(sets: list[list[Candidate]], masks: list[NDArray[np.bool_]]) -> int:
    """Queries in which some false photo has more inliers than the weakest true one."""
    count, first = 0, 0
    for candidates in sets:
        scores = [int(m.sum()) for m in masks[first : first + len(candidates)]]
        first += len(candidates)
        true = [s for s, c in zip(scores, candidates) if c.true.any()]
        false = [s for s, c in zip(scores, candidates) if not c.true.any()]
        count += max(false) > min(true)
    return count


def photo_queries(folder: Path, n_queries: int) -> tuple[list[Matches], list[set[int]]]:
    """Putative matches of real photos: extracted, indexed and matched by the library itself."""
    from delfsearch import DelfExtractor, DelfIndex

    truth = json.loads((folder / "ground_truth.json").read_text(encoding="utf-8"))
    queries = [q for q in truth["headline_queries"] if truth["queries"][q]["positives"]][:n_queries]
    wanted = {p for q in queries for p in truth["queries"][q]["positives"]}
    database = sorted(wanted | set(truth["database"][: 10 * n_queries]))
    extractor = DelfExtractor.preset("fast")
    note(f"extracting {len(database) + len(queries)} photos ...")
    index = DelfIndex().fit(extractor.transform([folder / p for p in database]))
    matches = [index.query(f) for f in extractor.transform([folder / q for q in queries])]
    number = {path: i for i, path in enumerate(database)}
    return matches, [{number[p] for p in truth["queries"][q]["positives"]} for q in queries]


def measure_photos(folder: Path, n_queries: int, verifier: Verifier) -> dict[str, Any]:
    matches, positives = photo_queries(folder, n_queries)
    systems: dict[str, Any] = {"delfsearch": verifier, **peers()}
    figures: dict[str, Any] = {}
    for name, system in systems.items():
        start, first_right = time.process_time(), 0
        true_scores, false_scores = [], []
        for query, right in zip(matches, positives):
            if isinstance(system, Verifier):
                scores = system.verify_all(query).n_inliers
            else:
                scores = np.array(
                    [
                        system(query.query_xy[a:b], query.database_xy[a:b]).sum()
                        if b - a > 2
                        else 0
                        for a, b in zip(query.offsets[:-1], query.offsets[1:])
                    ]
                )
            is_true = np.isin(query.image_ids, list(right))
            true_scores.append(int(scores[is_true].max(initial=0)))
            false_scores.append(int(scores[~is_true].max(initial=0)))
            first_right += true_scores[-1] > false_scores[-1]
        figures[name] = {
            "microseconds": 1e6
            * (time.process_time() - start)
            / max(1, sum(len(query) for query in matches)),
            "recall_at_1": first_right / len(matches),
            "median_best_true": statistics.median(true_scores),
            "median_best_false": statistics.median(false_scores),
        }
    return figures


def show(title: str, figures: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}")
    columns = list(dict.fromkeys(key for entry in figures.values() for key in entry))
    print(f"{'':24s}" + "".join(f"{key.replace('_', ' '):>32s}" for key in columns))
    for name, entry in figures.items():
        cells = [f"{entry[key]:32.2f}" if key in entry else f"{'':32s}" for key in columns]
        print(f"{name:24s}" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument(
        "--photos",
        default=os.environ.get("DELFSEARCH_PHOTOS", ""),
        help="a folder with photos.csv and ground_truth.json",
    )
    parser.add_argument("--threads", type=int, default=1, help="of delfsearch; peers have one")
    parser.add_argument("--queries", type=int, default=8, help="synthetic queries")
    parser.add_argument("--photo-queries", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    # Processor time of one thread; with more, only the time on the wall says anything.
    clock = time.process_time if args.threads == 1 else time.perf_counter
    verifier = Verifier(max_error=THRESHOLD_PX, n_jobs=args.threads)
    systems: dict[str, Any] = {"delfsearch": verifier, **peers()}
    rng = np.random.default_rng(0)
    results: dict[str, Any] = {"version": 1, "threads": args.threads}

    sets = [query_workload(rng) for _ in range(args.queries)]
    results["query"] = measure(sets, systems, args.rounds, clock)
    show(f"{args.queries} queries of 100 candidates, 5 true", results["query"])
    # More draws for the hard corners, as for the peers: 10,000 for all.
    thorough: dict[str, Any] = {
        "delfsearch 1k": verifier,
        "delfsearch 10k": Verifier(
            max_error=THRESHOLD_PX, max_iterations=10_000, n_jobs=args.threads
        ),
    }
    if any(name.startswith("OpenCV") for name in systems):
        thorough["OpenCV USAC_FAST 10k"] = opencv("USAC_FAST", 10_000)
        thorough["OpenCV USAC_MAGSAC 10k"] = opencv("USAC_MAGSAC", 10_000)
    results["grid"] = {}
    for n, share in GRID:
        candidates = [Candidate(rng, n, round(n * share)) for _ in range(30)]
        figures = measure([candidates], thorough, 1, clock)
        results["grid"][f"{n}@{share:.0%}"] = figures
        show(f"N = {n}, {share:.0%} inliers", figures)
    results["false"] = {}
    for n in (50, 100, 500, 1000):
        for hubs in (0, max(1, n // 25)):
            candidates = [Candidate(rng, n, 0, hubs=hubs) for _ in range(10)]
            figures = measure([candidates], systems, 1, clock)
            kind = f"{hubs} hubs" if hubs else "uniform"
            results["false"][f"{n} {kind}"] = figures
            show(f"No true match, N = {n}, {kind}", figures)
    if args.photos:
        results["photos"] = measure_photos(
            Path(args.photos), args.photo_queries, Verifier(n_jobs=args.threads)
        )
        show("Real photographs", results["photos"])
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
