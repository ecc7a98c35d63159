"""Retrieval quality on a folder with ground truth, beside RootSIFT through the same pipeline.

Every system is extracted once (cached), reduced to 40 dimensions, indexed, queried and verified by
the same index and verifier. Reported, whole and per subset: R@1, mAP (Oxford arithmetic), R@90%
(pooled over all queries, distractor queries included) and answered@90%. A query is left out of its
own answers. Photos that the ground truth calls junk are ignored.

    python benchmarks/quality.py --photos FOLDER --cache CACHE --json out.json

--systems also takes the local systems of delfsearch.baselines by name (congas, xfeat, aliked).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from delfsearch import DelfExtractor, DelfIndex, LocalFeatures, PcaReduction, Verifier
from delfsearch.baselines import load_system
from delfsearch.baselines.systems import LocalFeatureSystem
from delfsearch.evaluation import metrics
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.extraction.photos import open_photo

Feature = tuple[Path, LocalFeatures]


def delf(
    folder: PhotoFolder, paths: list[str], arguments: argparse.Namespace, scales: str
) -> Iterator:
    """DELF features through DelfExtractor as a user gets it."""
    extractor = DelfExtractor(
        scales=scales, precision=arguments.precision, n_jobs=arguments.threads
    )
    for path, (_, features) in zip(paths, extractor.stream([folder.root / p for p in paths])):
        if not isinstance(features, LocalFeatures):
            raise SystemExit(f"{path}: {features}")
        yield path, features


def rootsift(folder: PhotoFolder, paths: list[str], arguments: argparse.Namespace) -> Iterator:
    """OpenCV RootSIFT, the 1,000 strongest; PCA is learned later, on the database."""
    import cv2

    sift = cv2.SIFT_create(nfeatures=1000)
    for path in paths:
        image = np.asarray(open_photo(folder.root / path).image.convert("L"))
        keypoints, descriptors = sift.detectAndCompute(image, None)
        size = (image.shape[1], image.shape[0])
        if descriptors is None:
            yield path, LocalFeatures.empty(128, size)
            continue
        descriptors = descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-12)
        yield (
            path,
            LocalFeatures(
                keypoints_xy=np.array([k.pt for k in keypoints], np.float32),
                descriptors=np.sqrt(descriptors),
                scores=np.array([k.response for k in keypoints], np.float32),
                image_size=size,
            ),
        )


def baseline(folder: PhotoFolder, name: str, n_fit: int = 200) -> LocalFeatureSystem:
    """A local system of the paper by name; what it must learn comes from photos never asked."""
    system = load_system(name)
    if system.kind != "local":
        raise SystemExit(f"--systems takes local systems only; {name} is {system.kind}")
    if system.needs == "photos":
        asked = {*folder.queries, *folder.distractor_queries}
        free = [p for p in folder.paths if folder.roles[p] == "distractor" and p not in asked]
        rng = np.random.default_rng(0)
        chosen = rng.permutation(len(free))[:n_fit]
        system.fit([folder.root / free[i] for i in np.sort(chosen)])
    return system


def from_system(system: LocalFeatureSystem, folder: PhotoFolder, paths: list[str]) -> Iterator:
    """Features of a system of delfsearch.baselines."""
    for path, (_, features) in zip(paths, system.stream([folder.root / p for p in paths])):
        if not isinstance(features, LocalFeatures):
            raise SystemExit(f"{path}: {features}")
        yield path, features


def cached(
    cache: Path, paths: list[str], make: Callable[[list[str]], Iterable[tuple[str, LocalFeatures]]]
) -> tuple[dict[str, LocalFeatures], float]:
    """Features of all paths, from the cache where it holds them; and CPU seconds spent now."""
    cache.mkdir(parents=True, exist_ok=True)
    names = {path: cache / (path.replace("/", "__") + ".npz") for path in paths}
    start = time.process_time()
    missing = [path for path in paths if not names[path].exists()]
    if missing:
        for path, features in make(missing):
            with open(names[path], "wb") as file:
                np.savez(
                    file,
                    keypoints_xy=features.keypoints_xy,
                    descriptors=features.descriptors,
                    scores=features.scores,
                    scales=features.scales,
                    image_size=np.array(features.image_size),
                )
    seconds = time.process_time() - start
    loaded = {}
    for path in paths:
        with np.load(names[path]) as arrays:
            loaded[path] = LocalFeatures(
                **{k: arrays[k] for k in arrays.files if k != "image_size"},
                image_size=tuple(arrays["image_size"]),
            )
    return loaded, seconds


def reduced(
    features: dict[str, LocalFeatures], database: list[str], n_components: int
) -> dict[str, LocalFeatures]:
    """L2-PCA-L2, learned on the database's descriptors."""
    reduction = PcaReduction(n_components=n_components)
    reduction.fit(np.concatenate([features[path].descriptors for path in database]))
    return {
        path: LocalFeatures(
            keypoints_xy=f.keypoints_xy,
            descriptors=reduction.transform(f.descriptors)
            if len(f)
            else np.zeros((0, n_components), np.float32),
            scores=f.scores,
            scales=f.scales,
            image_size=f.image_size,
        )
        for path, f in features.items()
    }


def evaluate(
    folder: PhotoFolder,
    features: dict[str, LocalFeatures],
    arguments: argparse.Namespace,
    max_squared_distance: float | None,
) -> dict:
    """Index the database, answer every query, and judge."""
    database = list(folder.database)
    start = time.process_time()
    index = DelfIndex(max_squared_distance=max_squared_distance, n_jobs=arguments.threads)
    index.fit(features[p] for p in database)
    build_seconds = time.process_time() - start
    number = {path: i for i, path in enumerate(database)}
    verifier = Verifier(n_jobs=arguments.threads)
    queries = [*folder.queries, *folder.distractor_queries]
    answers: dict[str, list[tuple[str, float]]] = {}
    search_seconds = verify_seconds = 0.0
    for path in queries:
        t0 = time.process_time()
        own = [number[path]] if path in number else None
        matches = index.query(
            features[path], k=arguments.k, max_leaves=arguments.max_leaves, exclude_ids=own
        )
        t1 = time.process_time()
        hits = verifier.verify(matches, min_inliers=arguments.floor)
        search_seconds += t1 - t0
        verify_seconds += time.process_time() - t1
        answers[path] = [(database[hit.id], hit.score) for hit in hits]

    def judged(paths: Iterable[str]) -> list[metrics.JudgedQuery]:
        return [
            metrics.judge(answers[p], folder.queries[p].positives, folder.queries[p].junk)
            for p in paths
        ]

    distractors = [metrics.judge(answers[path], (), ()) for path in folder.distractor_queries]
    nomatch = judged(folder.no_match_queries)

    def row(paths: list[str]) -> dict[str, float]:
        own = judged(paths)
        everyone = own + distractors + nomatch
        return {
            "queries": len(own),
            "R@1": metrics.recall_at_rank_one(own),
            "mAP": metrics.mean_average_precision(own),
            "R@90%": metrics.recall_at_precision(everyone, 0.9),
            "answered@90%": metrics.answered_at_precision(everyone, 0.9),
        }

    headline = [p for p in folder.headline_queries if folder.queries[p].positives]
    subsets = sorted({folder.queries[p].subset for p in headline})
    rows = {"headline": row(headline)}
    for subset in subsets:
        rows[subset] = row([p for p in headline if folder.queries[p].subset == subset])
    panoramas = [
        p for p in folder.queries if folder.queries[p].positives and p not in set(headline)
    ]
    if panoramas:
        rows["panoramas"] = row(panoramas)
    landmark = [p for p in headline if folder.queries[p].subset in ("landmarks", "smvs_landmarks")]
    if landmark:
        rows["landmarks+smvs_landmarks"] = row(landmark)
    return {
        "rows": rows,
        "descriptors": index.n_descriptors,
        "build_cpu_seconds": build_seconds,
        "search_ms_per_photo": 1e3 * search_seconds / len(queries),
        "verify_ms_per_photo": 1e3 * verify_seconds / len(queries),
        "strongest_false": sorted(
            (
                (score, path, answer)
                for path in folder.distractor_queries
                for answer, score in answers[path][:1]
            ),
            reverse=True,
        )[:20],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = os.environ.get("DELFSEARCH_PHOTOS")
    parser.add_argument(
        "--photos",
        type=Path,
        default=default,
        required=default is None,
        help="folder with ground truth",
    )
    parser.add_argument("--cache", type=Path, default=Path("out/features"))
    parser.add_argument("--systems", default="delf:0.25-1,delf:0.25-2,rootsift")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--k", type=int, default=None)
    parser.add_argument("--max-leaves", type=int, default=None)
    parser.add_argument(
        "--floor", type=int, default=4, help="inliers below which nothing is ranked"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = PhotoFolder.read(arguments.photos)
    paths = list(dict.fromkeys([*folder.queries, *folder.database, *folder.distractor_queries]))
    report: dict = {"photos": len(paths), "systems": {}}
    for system in arguments.systems.split(","):
        name, _, scales = system.partition(":")
        if name == "delf":
            make = lambda missing, scales=scales: delf(folder, missing, arguments, scales)  # noqa: E731
        elif name == "rootsift":
            make = lambda missing: rootsift(folder, missing, arguments)  # noqa: E731
        else:
            ready = baseline(folder, name)
            make = lambda missing, ready=ready: from_system(ready, folder, missing)  # noqa: E731
        features, seconds = cached(arguments.cache / system.replace(":", "_"), paths, make)
        if name == "rootsift":
            features = reduced(features, list(folder.database), 40)
        limit = DelfExtractor().max_squared_distance if name == "delf" else None
        if name not in ("delf", "rootsift"):
            limit = ready.max_squared_distance
        result = evaluate(folder, features, arguments, limit)
        result["extraction_cpu_seconds_now"] = seconds
        report["systems"][system] = result
        print(
            f"\n{system}: {result['descriptors']} descriptors, "
            f"search {result['search_ms_per_photo']:.1f} ms and verification "
            f"{result['verify_ms_per_photo']:.1f} ms CPU a photo"
        )
        for label, row in result["rows"].items():
            figures = "  ".join(f"{k} {v:.3f}" for k, v in row.items() if k != "queries")
            print(f"  {label:26s} {row['queries']:4d} queries  {figures}")
        print("  strongest answers to distractor queries (look: do they show the same thing?):")
        for score, path, answer in result["strongest_false"][:6]:
            print(f"    {score:.0f}  {path}  {answer}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
