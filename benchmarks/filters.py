"""Queries with a filter beside the same queries without one.

The descriptors of all photos but a few are the database, each photo with a number in its metadata;
those few are the queries, one photo at a time. Filters select .5, .1, .01 and .001 of the photos:
by a set of ids, by label, by a range of metadata. Printed is the time of a filtered query over that
of the same query without, medians over interleaved rounds (CPU seconds with one thread); and what
the first query with a filter takes more, which prepares it.

    python benchmarks/filters.py --descriptors FILE.npy --json out.json

FILE.npy is (n, d) float32; photo numbers (n,) lie beside it in FILE_image.npy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from _common import environment, seconds_of, write_json

from delfsearch import DelfIndex, LocalFeatures, Where

SHARES = (0.5, 0.1, 0.01, 0.001)
METHODS = ("kdtree", "ivf")


def photos_of(descriptors: np.ndarray, numbers: np.ndarray) -> list[LocalFeatures]:
    """One LocalFeatures a photo; positions play no part here."""
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    return [
        LocalFeatures(np.zeros((len(rows), 2), np.float32), rows)
        for rows in np.split(descriptors, starts[1:])
    ]


def build(photos: list[LocalFeatures], arguments: argparse.Namespace, method: str) -> DelfIndex:
    """An index of some segments whose photos have ranks in an order of chance as metadata."""
    rng = np.random.default_rng(arguments.seed)
    ranks = rng.permutation(len(photos))
    # A label for each share: the lowest one that a rank belongs to.
    bounds = sorted(max(1, round(share * len(photos))) for share in SHARES)
    metadata = [
        {"label": str(int(np.searchsorted(bounds, rank, side="right"))), "rank": int(rank)}
        for rank in ranks
    ]
    index = DelfIndex(
        method=method, n_lists=arguments.n_lists, n_jobs=arguments.threads, merge_factor=0
    )
    ends = np.linspace(0, len(photos), arguments.segments + 1).astype(int)
    index.fit(photos[: ends[1]], metadata=metadata[: ends[1]])
    for start, stop in pairwise(ends[1:]):
        index.add(photos[start:stop], metadata=metadata[start:stop])
    return index


def filters(index: DelfIndex, share: float) -> dict[str, dict[str, Any]]:
    """Filters that the same photos satisfy."""
    bounds = sorted(max(1, round(s * len(index))) for s in SHARES)
    n = max(1, round(share * len(index)))
    ids = [record.id for record in index.images() if record.metadata["rank"] < n]
    return {
        "ids": {"ids": np.array(ids)},
        "label": {"label": [str(i) for i in range(bounds.index(n) + 1)]},
        "metadata": {"metadata": {"rank": {"max": n - 1}}},
    }


def measure(
    index: DelfIndex, queries: list[LocalFeatures], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Ratios for every share, all timed in turns."""
    options = {"k": arguments.k}
    wheres = {share: filters(index, share) for share in SHARES}
    rows = []
    first: dict[tuple[float, str], float] = {}
    index.query(queries[0], **options)
    for share, kinds in wheres.items():
        for kind, conditions in kinds.items():
            where = Where(**conditions)
            start = time.process_time()
            index.query(queries[0], where=where, **options)
            first[share, kind] = time.process_time() - start
    prepared = {share: Where(**kinds["ids"]) for share, kinds in wheres.items()}
    calls: dict[Any, Callable[[int], Any]] = {}
    for share, where in [(1.0, None), *prepared.items()]:

        def call(number: int, where: Where | None = where) -> Any:
            return index.query(queries[number % len(queries)], where=where, **options)

        call(0)
        calls[share] = call
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for number in range(arguments.rounds):
        for name, call in calls.items():
            times[name].append(seconds_of(partial(call, number), arguments.threads))
    medians = {name: statistics.median(values) for name, values in times.items()}
    # Of the same photo in the same round: what disturbs one of them disturbs the other.
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, times[1.0]))
        for name, values in times.items()
    }
    for share in SHARES:
        answers = [index.query(query, where=prepared[share], **options) for query in queries]
        rows.append(
            {
                "share": share,
                "photos": len(prepared[share].id_array),
                "unfiltered_s": medians[1.0],
                "filtered_s": medians[share],
                "ratio": ratios[share],
                "first_more_s": {
                    kind: first[share, kind] - medians[share] for kind in wheres[share]
                },
                "pairs": sum(len(answer.squared_distances) for answer in answers),
            }
        )
    rows.append({"filter_bytes": index.memory_usage().get("filters")})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--descriptors", required=True, type=Path)
    parser.add_argument("--rows", type=int, default=None, help="of the database at most")
    parser.add_argument("--queries", type=int, default=8, help="photos")
    parser.add_argument("--query-features", type=int, default=500)
    parser.add_argument(
        "--scatter",
        type=int,
        metavar="N",
        help="deal the database out to photos of N rows at random, so that those of a filter lie "
        "everywhere",
    )
    parser.add_argument("--n-lists", type=int, default=1024)
    parser.add_argument("--segments", type=int, default=1)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    descriptors = np.load(arguments.descriptors)
    numbers = np.load(
        arguments.descriptors.with_name(arguments.descriptors.stem + "_image.npy")
    ).astype(np.int64)
    descriptors, numbers = descriptors[: arguments.rows], numbers[: arguments.rows]
    rng = np.random.default_rng(arguments.seed)
    photos = photos_of(np.ascontiguousarray(descriptors, np.float32), numbers)
    asked = rng.permutation(len(photos))[: arguments.queries]
    queries = [photos[i][: arguments.query_features] for i in asked]
    kept = [photo for i, photo in enumerate(photos) if i not in set(asked.tolist())]
    if arguments.scatter:
        rows = rng.permutation(np.concatenate([photo.descriptors for photo in kept]))
        kept = photos_of(rows, np.arange(len(rows)) // arguments.scatter)
    result: dict[str, Any] = {
        "environment": environment(),
        "arguments": {k: str(v) for k, v in vars(arguments).items()},
        "photos": len(kept),
        "descriptors": sum(map(len, kept)),
        "methods": {},
    }
    for method in arguments.methods:
        start = time.perf_counter()
        index = build(kept, arguments, method)
        print(
            f"{method}: {len(kept)} photos, {result['descriptors']} descriptors, built in "
            f"{time.perf_counter() - start:.0f} s"
        )
        rows = measure(index, queries, arguments)
        result["methods"][method] = rows
        print("share    ratio  unfiltered ms  first, ms more: ids  label  metadata")
        for row in rows[:-1]:
            more = row["first_more_s"]
            print(
                f"{row['share']:<8g} {row['ratio']:5.2f}  {1e3 * row['unfiltered_s']:13.2f}  "
                + "  ".join(f"{1e3 * more[kind]:8.1f}" for kind in more)
            )
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
