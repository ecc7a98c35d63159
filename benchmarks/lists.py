"""InvertedFile beside FAISS's inverted files of product codes: recall, milliseconds, bytes.

The descriptors of all photos but a few are the database, those few are the queries, 500 of each.
All search the same number of lists of as many. Recall at R: how many of the R nearest by exact
float search are among the first R found. Times are CPU seconds of one thread for the 500 queries of
a photo, medians of interleaved rounds; each instruction set in a process of its own.

    python benchmarks/lists.py --descriptors FILE --n-database 397279 --json out.json
    python benchmarks/lists.py --descriptors FILE --n-database 1250000 --n-lists 10 --probes 5 \\
        --alone --eps 0.2 --max-leaves 24 --peers OPQ12_36,IVF{n},PQ12x4fsr

The second is about long lists: 125,000 codes each, the length at a billion over 8,000 lists.
--alone: also one query a call, where nothing is shared. Rates count all codes of the lists that a
query chose, seen or left out. --descriptors is a .npy (n, d) float32 beside a .npy of photo numbers
(n,) with `_image` before the suffix; --photos FOLDER extracts them.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _common import environment, interleaved_medians, seconds_of, write_json
from neighbors import K, exact_neighbours, extract, make_workload

from delfsearch import _core
from delfsearch.index.inverted_file import InvertedFile

RANKS = (1, 10, 64)
PEERS = (
    "IVF{n},PQ10x5",
    "OPQ10,IVF{n},PQ10x5",
    "OPQ12_36,IVF{n},PQ12x4fsr",
    "IVF{n},RQ10x4fsr_Nrq2x4",
)
FAISS_LEVELS = {"avx512": "AVX512", "avx2": "AVX2"}
OURS = "delfsearch 10x5"


class Ours:
    """InvertedFile, with the codes that are compared again and the leaves left out of lists."""

    def __init__(self, file: InvertedFile, **options: Any) -> None:
        self.file, self.options = file, options

    def search(self, queries: np.ndarray, n_probe: int) -> np.ndarray:
        return self.file.query(queries, k=K, n_probe=n_probe, **self.options)[1]

    def codes_seen(self, queries: np.ndarray, n_probe: int) -> int:
        probes = self.file.model_.choose_lists(queries, n_probe, 1)
        return int(self.file.arrays()["sizes"][probes].sum())

    def bytes_each(self) -> dict[str, float]:
        usage = self.file.memory_usage()
        model = sum(a.nbytes for a in self.file.model_.arrays().values())
        n = len(self.file)
        stored = sum(usage[part] for part in ("codes", "ids", "leaves"))
        return {"stored": stored / n, "codebooks": model / n, "on_disk": usage["exact"] / n}


class Faiss:
    """An index of FAISS, behind a rotation or not."""

    def __init__(self, index: Any, size: int) -> None:
        import faiss

        self.index, self.size = index, size
        self.lists = faiss.extract_index_ivf(index)

    def search(self, queries: np.ndarray, n_probe: int) -> np.ndarray:
        self.lists.nprobe = n_probe
        return self.index.search(queries, K)[1]

    def codes_seen(self, queries: np.ndarray, n_probe: int) -> int:
        for at in range(self.index.chain.size() if hasattr(self.index, "chain") else 0):
            queries = self.index.chain.at(at).apply(queries)
        _, probes = self.lists.quantizer.search(queries, n_probe)
        return sum(self.lists.invlists.list_size(int(number)) for number in probes.ravel())

    def bytes_each(self) -> dict[str, float]:
        return {"stored": self.size / self.index.ntotal, "codebooks": 0.0, "on_disk": 0.0}


def build_faiss(factory: str, database: np.ndarray) -> Any:
    import faiss

    index = faiss.index_factory(database.shape[1], factory)
    if factory.startswith("OPQ10,"):
        # By itself the rotation is learned for 8 bits, whatever the codes have.
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.pq = code = faiss.ProductQuantizer(database.shape[1], 10, 5)
        index.train(database)
        rotation.pq = None
        del code
    else:
        index.train(database)
    index.add(database)
    return index


def build(arguments: argparse.Namespace, database: np.ndarray, folder: Path) -> None:
    """Put every index into a file of the folder that is not there yet."""
    file = folder / f"{OURS}.pickle"
    if not file.exists():
        made = InvertedFile(n_lists=arguments.n_lists, n_jobs=-1).fit(database)
        made.set_params(n_jobs=1)
        file.write_bytes(pickle.dumps(made))
    if not arguments.peers:
        return
    try:
        import faiss
    except ImportError:
        print("faiss is left out: not installed (pip install faiss-cpu)", file=sys.stderr)
        return
    for template in arguments.peers:
        factory = template.format(n=arguments.n_lists)
        file = folder / f"faiss {factory}.faiss"
        if not file.exists():
            print(f"{factory} ...", file=sys.stderr)
            faiss.write_index(build_faiss(factory, database), str(file))


def load(arguments: argparse.Namespace, folder: Path) -> dict[str, Ours | Faiss]:
    file = pickle.loads((folder / f"{OURS}.pickle").read_bytes())
    found: dict[str, Ours | Faiss] = {OURS: Ours(file)}
    for rerank in arguments.rerank:
        found[f"{OURS} rerank={rerank}"] = Ours(file, rerank=rerank)
    for leaves in arguments.max_leaves:
        found[f"{OURS} max_leaves={leaves}"] = Ours(file, max_leaves=leaves)
    for eps in arguments.eps:
        found[f"{OURS} eps={eps}"] = Ours(file, eps=eps)
    for name in sorted(folder.glob("*.faiss")):
        import faiss

        faiss.omp_set_num_threads(1)
        if hasattr(faiss, "SIMDConfig"):  # else FAISS_OPT_LEVEL has chosen
            level = getattr(faiss, f"SIMDLevel_{FAISS_LEVELS[arguments.worker_simd]}")
            faiss.SIMDConfig.set_level(level)
        found[name.stem] = Faiss(faiss.read_index(str(name)), name.stat().st_size)
    return found


def recall(found: np.ndarray, exact: np.ndarray, rank: int) -> float:
    hits = [len(np.intersect1d(a[:rank], b[:rank])) for a, b in zip(found, exact)]
    return float(np.mean(hits) / rank)


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    stored = np.load(folder / "queries.npz")
    batches, exact = stored["batches"], stored["exact"]
    methods = load(arguments, folder)
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    calls, alone = {}, {}
    for name, method in methods.items():
        for n_probe in arguments.probes:
            found = [method.search(batch, n_probe) for batch in batches]
            seen = sum(method.codes_seen(batch, n_probe) for batch in batches) / len(batches)
            rows[name, n_probe] = {
                "method": name,
                "n_probe": n_probe,
                **{f"bytes_{part}": value for part, value in method.bytes_each().items()},
                "recall": {
                    str(r): float(np.mean([recall(f, e, r) for f, e in zip(found, exact)]))
                    for r in RANKS
                },
                "codes_of_lists": seen,
            }

            def call(number: int, m: Any = method, p: int = n_probe) -> None:
                m.search(batches[number % len(batches)], p)

            def one_by_one(number: int, m: Any = method, p: int = n_probe) -> None:
                for query in batches[number % len(batches)]:
                    m.search(query[None], p)

            calls[name, n_probe] = call
            alone[name, n_probe] = one_by_one
    for key, seconds in interleaved_medians(calls, arguments.rounds, 1).items():
        rows[key]["ms"] = 1e3 * seconds
        rows[key]["codes_per_s"] = rows[key]["codes_of_lists"] / seconds
    if arguments.alone:
        for key, seconds in interleaved_medians(alone, max(3, arguments.rounds // 4), 1).items():
            rows[key]["alone_ms"] = 1e3 * seconds
            rows[key]["alone_codes_per_s"] = rows[key]["codes_of_lists"] / seconds
    ours = next(method for method in methods.values() if isinstance(method, Ours))
    for n_probe in arguments.probes:
        rows[OURS, n_probe]["choose_lists_ms"] = (
            1e3
            * interleaved_medians(
                {0: lambda i, p=n_probe: ours.file.model_.choose_lists(batches[0], p, 1)}, 9, 1
            )[0]
        )
    return list(rows.values())


def with_simd(arguments: argparse.Namespace, folder: Path, simd: str) -> Any:
    command = [sys.executable, __file__, "--worker", str(folder), "--worker-simd", simd]
    command += ["--rounds", str(arguments.rounds), "--probes", *map(str, arguments.probes)]
    command += ["--rerank", *map(str, arguments.rerank), *(["--alone"] if arguments.alone else [])]
    command += ["--max-leaves", *map(str, arguments.max_leaves)]
    command += ["--eps", *map(str, arguments.eps)]
    done = subprocess.run(
        command,
        env={**os.environ, "DELFSEARCH_SIMD": simd, "FAISS_OPT_LEVEL": FAISS_LEVELS[simd]},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        print(f"{simd} is left out: it ended with {done.returncode}", file=sys.stderr)
        return []
    return json.loads(done.stdout)


def ratios(rows: list[dict[str, Any]], part: str) -> dict[str, float]:
    """How many times as long the fastest FastScan and the fastest 5-bit codes take."""
    found = {}
    for n_probe in sorted({row["n_probe"] for row in rows}):
        here = [row for row in rows if row["n_probe"] == n_probe and part in row]
        own = [row for row in here if row["method"] == OURS]
        for kind, mark in (("FastScan", "fs"), ("5-bit codes", "PQ10x5")):
            others = [r for r in here if r["method"].startswith("faiss") and mark in r["method"]]
            if own and others:
                fastest = min(row[part] / row["codes_of_lists"] for row in others)
                # Rates: lists differ a little in length between the two.
                found[f"{kind}, {n_probe} lists"] = fastest / (
                    own[0][part] / own[0]["codes_of_lists"]
                )
    return found


def print_table(result: dict[str, Any]) -> None:
    print(
        f"{result['n_database']} descriptors, {result['n_lists']} lists, "
        f"{result['n_queries']} queries a photo, k = {K}; {result['environment']['processor']}"
    )
    for simd, rows in result["instruction_sets"].items():
        head = "".join(f"{f'r@{r}':>7}" for r in RANKS)
        print(
            f"{simd:38}{'lists':>6}{'bytes':>7}{'+books':>7}{head}{'ms':>9}{'G/s':>7}{'alone':>9}"
        )
        for row in rows:
            recalls = "".join(f"{value:>7.3f}" for value in row["recall"].values())
            alone = f"{row['alone_ms']:>9.1f}" if "alone_ms" in row else ""
            print(
                f"{row['method']:38}{row['n_probe']:>6}{row['bytes_stored']:>7.2f}"
                f"{row['bytes_codebooks']:>7.2f}{recalls}{row['ms']:>9.2f}"
                f"{row['codes_per_s'] / 1e9:>7.2f}{alone}"
            )
        for part in ("ms", "alone_ms"):
            for name, ratio in ratios(rows, part).items():
                print(f"  {name} ({part}): {ratio:.2f} x as long a code")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=os.environ.get("DELFSEARCH_PHOTOS"))
    parser.add_argument("--descriptors", type=Path, help="instead of --photos: a .npy (n, d)")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/delfsearch/benchmarks")
    parser.add_argument("--scales", default="0.25-1", help="of the extraction")
    parser.add_argument("--built", type=Path, help="folder that keeps what is built")
    parser.add_argument("--n-database", type=int, default=397_279)
    parser.add_argument("--n-batches", type=int, default=4, help="query photos")
    parser.add_argument("--n-queries", type=int, default=500, help="of a photo")
    parser.add_argument("--n-lists", type=int, default=1024)
    parser.add_argument("--probes", type=int, nargs="+", default=[5, 64])
    parser.add_argument("--rerank", type=int, nargs="*", default=[])
    parser.add_argument("--max-leaves", type=int, nargs="*", default=[], help="measured as well")
    parser.add_argument("--eps", type=float, nargs="*", default=[], help="measured as well")
    parser.add_argument("--alone", action="store_true", help="one query a call as well")
    parser.add_argument("--simd", nargs="+", default=["avx512", "avx2"], choices=FAISS_LEVELS)
    parser.add_argument(
        "--peers", nargs="*", default=PEERS, help="FAISS's factory strings, {n} for --n-lists"
    )
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker-simd", help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(arguments: argparse.Namespace, folder: Path) -> int:
    """Draw the work, build the indexes into the folder; how many descriptors they hold."""
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
    database = work.database[: arguments.n_database]
    rng = np.random.default_rng(arguments.seed)
    n = min([arguments.n_queries, *map(len, work.batches)])
    batches = np.stack([b[np.sort(rng.permutation(len(b))[:n])] for b in work.batches])
    file = folder / "queries.npz"
    if not file.exists():
        exact = np.stack([exact_neighbours(database, batch) for batch in batches])
        np.savez(file, batches=batches, exact=exact)
    seconds = seconds_of(lambda: build(arguments, database, folder), 1)
    print(f"built in {seconds:.0f} CPU s", file=sys.stderr)
    return len(database)


def main() -> None:
    arguments = parse()
    if arguments.worker:
        print(json.dumps(measure(arguments, arguments.worker)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.built or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        n = prepare(arguments, folder)
        rows = {simd: with_simd(arguments, folder, simd) for simd in arguments.simd}
    result = {
        "environment": environment(),
        "simd": _core.simd(),
        "n_database": n,
        "n_lists": arguments.n_lists,
        "n_queries": arguments.n_queries,
        "k": K,
        "instruction_sets": rows,
        "times_as_long": {simd: ratios(found, "ms") for simd, found in rows.items()},
        "times_as_long_alone": {simd: ratios(found, "alone_ms") for simd, found in rows.items()},
    }
    print_table(result)
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
