"""A whole DelfIndex, keypoints, 8-bit descriptors and image table included, of millions of photos'
features: building, disk and memory, loading, searches with verification.

    python benchmarks/whole_index.py FOLDER --stream BILLION --size 100M

BILLION is the folder of benchmarks/billion.py, of which `prepare` is taken: the same photos of
synthetic descriptors, the same queries with planted rows. Keypoints lie at random in photos of 1024
x 768; those of planted rows are turned, scaled and moved by one similarity a query, and off by a
pixel. An interrupted run goes on, given the same command.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _billion_steps import parse_size
from _common import environment, write_json
from _memory import AnonymousPeak, memory
from _stream import Feed, Queries, Stream
from _synthetic import BLOCK_PHOTOS, PHOTO_ROWS

from delfsearch import DelfIndex, LocalFeatures, Verifier

SIZE = (1024, 768)


def keypoints(photo: int, n: int) -> np.ndarray:
    return np.random.default_rng([7, photo]).random((n, 2), np.float32) * np.float32(SIZE)


def photos(folder: Path, n_blocks: int) -> Iterator[LocalFeatures]:
    photo = 0
    for _, X, counts in Feed(folder, 0, n_blocks):
        for rows in np.split(X, np.cumsum(counts)[:-1]):
            yield LocalFeatures(keypoints(photo, len(rows)), rows.copy(), image_size=SIZE)
            photo += 1


def rows_of(stream: Stream, photo: int) -> np.ndarray:
    if photo < stream.n_real:
        return stream.real[stream.real_starts[photo] : stream.real_starts[photo + 1]]
    block, place = divmod(photo - stream.n_real, BLOCK_PHOTOS)
    return stream.block(1 + block)[0].reshape(BLOCK_PHOTOS, PHOTO_ROWS, -1)[place]


def query(stream: Stream, queries: Queries, q: int) -> LocalFeatures:
    """A query photo; the keypoints of planted rows are those of the nearest rows, moved."""
    rng = np.random.default_rng([8, q])
    X, photo = queries.X[q], int(queries.true[q])
    xy = rng.random((len(X), 2), np.float32) * np.float32(SIZE)
    if photo >= 0:
        planted, source = queries.is_planted[q], rows_of(stream, photo)
        nearest = np.argmin(((X[planted][:, None] - source[None]) ** 2).sum(2), axis=1)
        angle, scale = rng.uniform(-0.3, 0.3), rng.uniform(0.7, 1.4)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        moved = keypoints(photo, len(source))[nearest] @ turn.T + rng.uniform(-50, 50, 2)
        xy[planted] = moved + rng.normal(0, 1, moved.shape)
    return LocalFeatures(xy, X, image_size=SIZE)


def build(a: argparse.Namespace, stream: Stream, index: DelfIndex, path: Path) -> dict[str, Any]:
    n_blocks = stream.n_blocks(a.size)
    with AnonymousPeak() as peak:
        start = time.perf_counter(), time.process_time()
        sample = stream.sample(min(a.train_rows, stream.n_rows(n_blocks)), n_blocks, 0)
        train = [
            LocalFeatures(np.zeros((len(part), 2), np.float32), part)
            for part in np.array_split(sample, -(-len(sample) // 1000))
        ]
        index.build(path, photos(a.stream, n_blocks), training=train)
        wall = time.perf_counter() - start[0]
    files = [p for p in path.rglob("*") if p.is_file()]
    return {
        "n": stream.n_rows(n_blocks),
        "wall_s": wall,
        "cpu_s": time.process_time() - start[1],
        "descriptors_per_s_learning_included": stream.n_rows(n_blocks) / wall,
        "peak_anonymous": peak.highest,
        "disk_bytes": sum(p.stat().st_size for p in files),
        "interrupted": False,
    }


def search(a: argparse.Namespace, stream: Stream, path: Path) -> dict[str, Any]:
    queries = Queries.load(a.stream / "queries.npz")
    start = time.perf_counter()
    index = DelfIndex.load(path, n_jobs=1)
    load_s = time.perf_counter() - start
    verifier = Verifier(n_jobs=1)
    asked = [query(stream, queries, q) for q in range(len(queries.X))]
    times: dict[str, list[float]] = {"query": [], "verify": []}
    first, inliers, without = [], [], []
    for warm in (False, True):
        for q, photo in enumerate(asked):
            clocks = [time.process_time()]
            matches = index.query(photo)
            clocks.append(time.process_time())
            hits = verifier.verify(matches, min_inliers=3)
            clocks.append(time.process_time())
            if not warm:
                continue
            times["query"].append(clocks[1] - clocks[0])
            times["verify"].append(clocks[2] - clocks[1])
            best = hits[0].n_inliers if hits else 0
            if queries.true[q] < 0:
                without.append(best)
            else:
                first.append(bool(hits) and hits[0].id == queries.true[q])
                inliers.append(best)
    return {
        "method": index.method_,
        "postings": index.postings_,
        "load_s": load_s,
        "query_ms_median": 1e3 * float(np.median(times["query"])),
        "query_ms_p90": 1e3 * float(np.quantile(times["query"], 0.9)),
        "verify_ms_median": 1e3 * float(np.median(times["verify"])),
        "true_photo_first": float(np.mean(first)),
        "inliers_of_first_median": float(np.median(inliers)),
        "most_inliers_without_answer": max(without, default=0),
        "memory_usage": index.memory_usage(),
        "memory": memory(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stream", type=Path, required=True, help="folder of billion.py")
    parser.add_argument("--size", type=parse_size, default=10**8)
    parser.add_argument("--train-rows", type=parse_size, default=2_000_000)
    parser.add_argument("--postings", choices=("photos", "features"), default="photos")
    parser.add_argument("--n-jobs", type=int, default=os.cpu_count() or 1, help="of building")
    parser.add_argument("--json")
    a = parser.parse_args()
    stream, path = Stream.open(a.stream), a.folder / "index"
    done = a.folder / "build.json"
    a.folder.mkdir(parents=True, exist_ok=True)
    if not done.exists():
        begun = path.exists()
        index = DelfIndex(method="ivf", postings=a.postings, n_jobs=a.n_jobs)
        built = build(a, stream, index, path)
        built["interrupted"] = begun
        write_json(str(done), built)
        del index
    built = json.loads(done.read_text())
    print(json.dumps(built), flush=True)
    found = search(a, stream, path)
    print(json.dumps(found), flush=True)
    write_json(a.json, {"environment": environment(), "build": built, "search": found})


if __name__ == "__main__":
    main()
