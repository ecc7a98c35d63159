"""QuantizedKDTree beside FAISS, hnswlib, ScaNN and FLANN on real DELF descriptors.

The descriptors of all photos but a few are the database; those few are the queries, in batches of
one photo. Recall is against exact float search. Every method runs at several settings; rates at
recall .90, .95 and .97 are read off its curve. A method is left out, and named, where it is not
installed. With one thread, times are CPU seconds; medians over interleaved rounds.

    python benchmarks/neighbors.py --photos FOLDER --json out.json

--descriptors takes the place of the extraction: a .npy (n, 40) float32 beside a .npy of photo
numbers (n,) with `_image` before the suffix.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _common import at_recall, environment, interleaved_medians, seconds_of, write_json
from _peers import PEERS, Method, Unavailable

from delfsearch import _core
from delfsearch.index.quantized_kdtree import QuantizedKDTree

K = 64
SCANNED = (4000, 7000, 14000, 25000, 40000, 70000)  # database rows per query
RECALLS = (0.90, 0.95, 0.97)
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass
class Workload:
    database: np.ndarray
    batches: list[np.ndarray]
    exact: list[np.ndarray] = field(default_factory=list)


def extract(folder: Path, cache: Path, scales: str) -> tuple[np.ndarray, np.ndarray]:
    """DELF descriptors of a folder, with the number of their photo; cached."""
    from delfsearch import DelfExtractor, LocalFeatures

    file = cache / f"descriptors_{folder.resolve().name}_{scales}.npz"
    if not file.exists():
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
        if not paths:
            raise SystemExit(f"{folder} holds no photos")
        extractor = DelfExtractor(scales=scales, n_jobs=-1)
        rows, photos = [], []
        start = time.perf_counter()
        for number, (_, features) in enumerate(extractor.stream(paths)):
            if isinstance(features, LocalFeatures) and len(features):
                rows.append(features.descriptors)
                photos.append(np.full(len(features), number))
            if number % 100 == 99:
                spent = time.perf_counter() - start
                left = spent / (number + 1) * (len(paths) - number - 1)
                print(f"{number + 1} of {len(paths)} photos, {left:.0f} s left", file=sys.stderr)
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_name("partial_" + file.name)
        np.savez(partial, descriptors=np.concatenate(rows), photos=np.concatenate(photos))
        partial.rename(file)
    stored = np.load(file)
    return stored["descriptors"], stored["photos"]


def make_workload(
    descriptors: np.ndarray, photos: np.ndarray, n_database: int, n_batches: int, seed: int
) -> Workload:
    """Whole photos to the database until it has n_database rows, other photos to the queries."""
    rng = np.random.default_rng(seed)
    numbers, counts = np.unique(photos, return_counts=True)
    full = numbers[counts >= min(1000, np.quantile(counts, 0.5))]
    queries = rng.permutation(full)[:n_batches]
    others = rng.permutation(np.setdiff1d(numbers, queries))
    sizes = np.cumsum(counts[np.searchsorted(numbers, others)])
    kept = others[: int(np.searchsorted(sizes, n_database)) + 1]
    database = np.ascontiguousarray(descriptors[np.isin(photos, kept)])
    if len(database) < n_database:
        print(f"only {len(database)} database descriptors (asked: {n_database})", file=sys.stderr)
    return Workload(database, [descriptors[photos == q][:1000] for q in queries])


def exact_neighbours(database: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Exact float search in double precision where it decides."""
    squares = (database.astype(np.float64) ** 2).sum(1).astype(np.float32)
    ids = np.empty((len(queries), K), np.int64)
    for begin in range(0, len(queries), 100):
        block = queries[begin : begin + 100]
        near = np.argpartition(squares - 2 * block @ database.T, 2 * K, axis=1)[:, : 2 * K]
        exact = ((block[:, None].astype(np.float64) - database[near]) ** 2).sum(-1)
        order = np.argsort(exact, axis=1, kind="stable")[:, :K]
        ids[begin : begin + 100] = np.take_along_axis(near, order, 1)
    return ids


def recall_of(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, exact)]))


def ours(leaf_sizes: list[int], splits: str, refine_steps: int, threads: int) -> list[Method]:
    def build(leaf_size: int) -> Any:
        def fit(database: np.ndarray) -> tuple[Any, float]:
            tree = QuantizedKDTree(
                leaf_size=leaf_size, splits=splits, refine_steps=refine_steps, n_jobs=threads
            )
            tree.fit(database)
            return tree, sum(a.nbytes for a in tree.arrays().values()) / len(database)

        return fit

    def search(tree: QuantizedKDTree, queries: np.ndarray, leaves: int) -> np.ndarray:
        return tree.query(queries, k=K, max_leaves=leaves)[1]

    return [
        Method(
            name=f"delfsearch {splits}+{refine_steps} leaf {leaf_size}",
            build=build(leaf_size),
            search=search,
            settings=[max(1, rows // leaf_size) for rows in SCANNED],
        )
        for leaf_size in leaf_sizes
    ]


def measure(methods: list[Method], work: Workload, rounds: int, threads: int) -> list[dict]:
    """Build everything, then time everything in turns."""
    built: dict[str, Any] = {}
    results: dict[str, dict] = {}
    calls = {}
    for method in methods:
        try:
            start = time.perf_counter()
            made: list[Any] = []
            cpu = seconds_of(lambda m=method, out=made: out.append(m.build(work.database)), 1)
            index, bytes_each = made[0]
        except Unavailable as reason:
            results[method.name] = {"method": method.name, "left_out": str(reason)}
            print(f"{method.name}: left out, {reason}", file=sys.stderr)
            continue
        built[method.name] = index
        results[method.name] = {
            "method": method.name,
            "bytes_per_descriptor": bytes_each,
            "build_cpu_s": cpu,
            "build_wall_s": time.perf_counter() - start,
            "curve": [],
        }
        for setting in method.settings:
            n = method.max_queries or 10**9
            found = [method.search(index, b[:n], setting) for b in work.batches]
            recalls = [recall_of(f, e[:n]) for f, e in zip(found, work.exact)]
            results[method.name]["curve"].append(
                {"setting": setting, "recall": float(np.mean(recalls))}
            )

            def call(number: int, m: Method = method, s: Any = setting, n: int = n) -> None:
                batch = work.batches[number % len(work.batches)]
                m.search(built[m.name], batch[:n], s)

            calls[method.name, setting] = call
        print(f"built {method.name} in {cpu:.1f} CPU s", file=sys.stderr)
    medians = interleaved_medians(calls, rounds, threads)
    for method in methods:
        result = results[method.name]
        if "curve" not in result:
            continue
        n = min(method.max_queries or 10**9, len(work.batches[0]))
        for point in result["curve"]:
            point["queries_per_s"] = n / medians[method.name, point["setting"]]
        curve = [(p["recall"], p["queries_per_s"]) for p in result["curve"]]
        result["at_recall"] = {str(r): at_recall(curve, r) for r in RECALLS}
        if method.name.startswith("delfsearch"):
            visits = [(p["recall"], 1 / p["setting"]) for p in result["curve"]]
            rates = {str(r): at_recall(visits, r) for r in RECALLS}
            result["leaves_at_recall"] = {r: rate and 1 / rate for r, rate in rates.items()}
    result_list = list(results.values())
    if threads == 1:
        add_single_queries(methods, built, work, result_list)
    return result_list


def add_single_queries(
    methods: list[Method], built: dict[str, Any], work: Workload, results: list[dict]
) -> None:
    """CPU microseconds of one query alone, at recall .95 between settings."""
    chosen = {r["method"]: r for r in results if "curve" in r}
    calls = {}
    queries = work.batches[0][:200]
    for method in methods:
        if method.name not in chosen or not method.single:
            continue
        for setting in method.settings:

            def call(_: int, m: Method = method, s: Any = setting) -> None:
                for query in queries:
                    m.search(built[m.name], query[None], s)

            calls[method.name, setting] = call
    medians = interleaved_medians(calls, 3, 1)
    for (name, setting), median in medians.items():
        for point in chosen[name]["curve"]:
            if point["setting"] == setting:
                point["single_query_us"] = median / len(queries) * 1e6
    for name in {name for name, _ in medians}:
        curve = [(p["recall"], 1 / p["single_query_us"]) for p in chosen[name]["curve"]]
        rate = at_recall(curve, 0.95)
        chosen[name]["single_query_us_at_0.95"] = rate and 1 / rate


def other_instruction_sets(arguments: argparse.Namespace, work: Workload) -> dict[str, Any]:
    """Our own curve again in a process of its own for each instruction set that can be forced."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "work.npz"
        np.savez(file, database=work.database, batches=work.batches, exact=work.exact)
        for simd in arguments.simd:
            command = [sys.executable, __file__, "--worker", str(file)]
            command += ["--rounds", str(arguments.rounds), "--threads", str(arguments.threads)]
            command += ["--splits", arguments.splits]
            command += ["--refine-steps", str(arguments.refine_steps)]
            command += ["--leaf-sizes", *map(str, arguments.leaf_sizes)]
            done = subprocess.run(
                command,
                env={**os.environ, "DELFSEARCH_SIMD": simd},
                capture_output=True,
                text=True,
            )
            if done.returncode == 0:
                found[simd] = json.loads(done.stdout)
            else:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                found[simd] = {"left_out": last}
    return found


def print_table(result: dict[str, Any]) -> None:
    print(
        f"{result['n_database']} database descriptors, batches of {result['batch']}, K = {K}, "
        f"{result['threads']} thread(s), kernels: {result['simd']}"
    )
    head = "".join(f"{f'q/s at {r}':>14}" for r in RECALLS)
    print(f"{'':34}{'bytes':>7}{head}{'one query, us':>15}{'build s':>9}")

    def line(name: str, row: dict[str, Any]) -> None:
        if "left_out" in row:
            print(f"{name:34}left out: {row['left_out']}")
            return
        rates = [row["at_recall"][str(r)] for r in RECALLS]
        cells = "".join(f"{rate:>14,.0f}" if rate else f"{'-':>14}" for rate in rates)
        single = row.get("single_query_us_at_0.95")
        alone = f"{single:>15.0f}" if single else f"{'-':>15}"
        print(
            f"{name:34}{row['bytes_per_descriptor']:>7.1f}{cells}{alone}{row['build_cpu_s']:>9.1f}"
        )

    for row in result["methods"]:
        line(row["method"], row)
        if "leaves_at_recall" in row:
            leaves = [f"{n:.0f}" if n else "-" for n in row["leaves_at_recall"].values()]
            print(f"  leaves visited at these recalls: {', '.join(leaves)}")
    for simd, rows in result["other_instruction_sets"].items():
        if isinstance(rows, dict):
            print(f"{simd:34}left out: {rows['left_out']}")
            continue
        for row in rows:
            line(f"{row['method']} ({simd})", row)
    for recall, ratio in result["ratio_to_fastest_peer"].items():
        if ratio:
            print(f"recall {recall}: {ratio['ratio']:.1f} x the fastest peer ({ratio['peer']})")


def ratios(rows: list[dict]) -> dict[str, Any]:
    mine = [r for r in rows if r["method"].startswith("delfsearch") and "at_recall" in r]
    peers = [r for r in rows if not r["method"].startswith("delfsearch") and "at_recall" in r]
    found: dict[str, Any] = {}
    for recall in map(str, RECALLS):
        best = max(((r["at_recall"][recall] or 0, r["method"]) for r in mine), default=None)
        peer = max(((r["at_recall"][recall] or 0, r["method"]) for r in peers), default=None)
        ok = best and peer and peer[0]
        found[recall] = ok and {"ratio": best[0] / peer[0], "ours": best[1], "peer": peer[1]}
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=os.environ.get("DELFSEARCH_PHOTOS"))
    parser.add_argument("--descriptors", type=Path, help="instead of --photos: a .npy (n, d)")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/delfsearch/benchmarks")
    parser.add_argument("--scales", default="0.25-1", help="of the extraction")
    parser.add_argument("--n-database", type=int, default=430_000)
    parser.add_argument("--n-batches", type=int, default=4, help="query photos")
    parser.add_argument("--leaf-sizes", type=int, nargs="+", default=[64])
    parser.add_argument("--splits", choices=("means", "axis"), default="means")
    parser.add_argument("--refine-steps", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--simd", nargs="*", default=["avx512", "avx2"], help="to measure as well")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    methods = ours(
        arguments.leaf_sizes, arguments.splits, arguments.refine_steps, arguments.threads
    )
    if arguments.worker:
        stored = np.load(arguments.worker)
        work = Workload(stored["database"], list(stored["batches"]), list(stored["exact"]))
        rows = measure(methods, work, arguments.rounds, arguments.threads)
        print(json.dumps(rows))
        return
    if arguments.descriptors:
        descriptors = np.load(arguments.descriptors, mmap_mode="r")
        photos = np.load(arguments.descriptors.with_name(arguments.descriptors.stem + "_image.npy"))
    elif arguments.photos:
        descriptors, photos = extract(Path(arguments.photos), arguments.cache, arguments.scales)
    else:
        raise SystemExit("--photos FOLDER, DELFSEARCH_PHOTOS or --descriptors FILE is needed")
    work = make_workload(
        descriptors, photos, arguments.n_database, arguments.n_batches, arguments.seed
    )
    work.batches = [b[: min(map(len, work.batches))] for b in work.batches]
    work.exact = [exact_neighbours(work.database, batch) for batch in work.batches]
    for name in arguments.peers:
        methods.extend(PEERS[name](arguments.threads))
    rows = measure(methods, work, arguments.rounds, arguments.threads)
    result = {
        "environment": environment(),
        "simd": _core.simd(),
        "n_database": len(work.database),
        "batch": len(work.batches[0]),
        "k": K,
        "threads": arguments.threads,
        "methods": rows,
        "other_instruction_sets": other_instruction_sets(arguments, work),
        "ratio_to_fastest_peer": ratios(rows),
    }
    print_table(result)
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
