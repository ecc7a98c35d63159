"""ProductQuantizer, OptimizedPQ and LocallyOptimizedPQ beside FAISS's at the same bytes.

Learns on one sample of descriptors, codes another, and asks how often the true nearest neighbour of
a query (exact float search) is among the R nearest codes, by the distance from the query to what a
code stands for. Where codes tie, the true one counts as the middle of them. All codes are searched:
nothing is lost to lists. Training and encoding: CPU seconds, one thread. Encoding is the median of
three rounds in turns; k-means runs once for each, and on a shared machine CPU seconds still differ
by a third from run to run.

    python benchmarks/quantizers.py --photos FOLDER --json out.json

--descriptors takes the place of the extraction: a .npy (n, d) float32. With a .npy of photo numbers
(n,) beside it, `_image` before the suffix, queries come from photos of their own; without, rows are
drawn at random.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _common import environment, interleaved_medians, seconds_of, write_json
from neighbors import extract

from delfsearch import LocallyOptimizedPQ, OptimizedPQ, ProductQuantizer, _core

RANKS = (1, 10, 64)


@dataclass
class Method:
    """train(X) -> a model; encode(model, X) -> codes; decode(model, codes) -> vectors."""

    name: str
    train: Callable[[np.ndarray], Any]
    encode: Callable[[Any, np.ndarray], Any]
    decode: Callable[[Any, Any], np.ndarray]
    model_bytes: Callable[[Any], int]
    cells: int = 1


def draw(
    descriptors: np.ndarray, photos: np.ndarray | None, sizes: tuple[int, int, int], seed: int
) -> list[np.ndarray]:
    """Distinct rows to learn from, to code and to ask for, in this order."""
    rng = np.random.default_rng(seed)
    n = len(descriptors)
    is_query = np.zeros(n, bool)
    if photos is None:
        is_query[rng.permutation(n)[: sizes[2]]] = True
    else:
        numbers, counts = np.unique(photos, return_counts=True)
        order = rng.permutation(len(numbers))
        # A few times as many photos as it takes, so that no photo makes up the queries.
        enough = int(np.searchsorted(np.cumsum(counts[order]), 8 * sizes[2])) + 1
        is_query = np.isin(photos, numbers[order[:enough]])
    queries, others = (rng.permutation(np.flatnonzero(a)) for a in (is_query, ~is_query))
    if len(queries) < sizes[2] or len(others) < sizes[0] + sizes[1]:
        raise SystemExit(
            f"{n} descriptors are too few for {sizes[0]} to learn from, {sizes[1]} to code and "
            f"{sizes[2]} queries: set --n-train, --n-base, --n-queries"
        )
    rows = others[: sizes[0]], others[sizes[0] : sizes[0] + sizes[1]], queries[: sizes[2]]
    return [np.ascontiguousarray(descriptors[np.sort(r)], np.float32) for r in rows]


def squared_distances(queries: np.ndarray, base: np.ndarray) -> np.ndarray:
    return (
        (queries.astype(np.float64) ** 2).sum(1)[:, None]
        - 2.0 * queries.astype(np.float64) @ base.T.astype(np.float64)
        + (base.astype(np.float64) ** 2).sum(1)
    )


def nearest(queries: np.ndarray, base: np.ndarray) -> np.ndarray:
    blocks = range(0, len(queries), 100)
    return np.concatenate([squared_distances(queries[b : b + 100], base).argmin(1) for b in blocks])


def ranks_of(true: np.ndarray, queries: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """How many codes are nearer than that of the true neighbour; half of those that tie count."""
    ranks = []
    for begin in range(0, len(queries), 100):
        block = slice(begin, begin + 100)
        squared = squared_distances(queries[block], decoded)
        own = squared[np.arange(len(squared)), true[block]][:, None]
        rounding = 1e-9 * (1 + own)
        nearer = (squared < own - rounding).sum(1)
        ties = (np.abs(squared - own) <= rounding).sum(1) - 1
        ranks.append(nearer + ties / 2)
    return np.concatenate(ranks)


def ours(arguments: argparse.Namespace) -> list[Method]:
    split = {"n_subquantizers": arguments.parts, "bits": arguments.bits}

    def method(name: str, make: Callable[[], Any], cells: int = 1) -> Method:
        def encode(model: Any, X: np.ndarray) -> Any:
            return (model.transform(X), *([model.predict(X)] if cells > 1 else []))

        return Method(
            f"delfsearch {name}",
            lambda X: make().fit(X),
            encode,
            lambda model, codes: model.inverse_transform(*codes),
            lambda model: sum(a.nbytes for a in model._arrays.values()),
            cells,
        )

    n = arguments.n_lists
    return [
        method("ProductQuantizer", lambda: ProductQuantizer(**split)),
        method("OptimizedPQ", lambda: OptimizedPQ(**split)),
        method(f"LocallyOptimizedPQ {n}", lambda: LocallyOptimizedPQ(n_lists=n, **split), n),
    ]


def peers(arguments: argparse.Namespace) -> list[Method]:
    try:
        import faiss
    except ImportError:
        print("faiss is left out: not installed (pip install faiss-cpu)", file=sys.stderr)
        return []
    faiss.omp_set_num_threads(1)

    def method(factory: str, cells: int = 1) -> Method:
        def train(X: np.ndarray) -> Any:
            index = faiss.index_factory(X.shape[1], factory)
            if factory.startswith("OPQ"):
                # By itself the rotation is learned for 8 bits, whatever the codes have.
                rotation = faiss.downcast_VectorTransform(index.chain.at(0))
                rotation.pq = code_of_rotation = faiss.ProductQuantizer(
                    X.shape[1], arguments.parts, arguments.bits
                )
                index.train(X)
                rotation.pq = None
                del code_of_rotation
            else:
                index.train(X)
            return index

        return Method(
            f"faiss {faiss.__version__} {factory}",
            train,
            lambda model, X: model.sa_encode(X),
            lambda model, codes: model.sa_decode(codes),
            lambda model: len(faiss.serialize_index(model)),
            cells,
        )

    n, code = arguments.n_lists, f"PQ{arguments.parts}x{arguments.bits}"
    turn = f"OPQ{arguments.parts}"
    return [
        method(code),
        method(f"{turn},{code}"),
        method(f"IVF{n},{code}", n),
        method(f"{turn},IVF{n},{code}", n),
    ]


def measure(
    methods: list[Method], bits: int, train: np.ndarray, base: np.ndarray, queries: np.ndarray
) -> list[dict[str, Any]]:
    true = nearest(queries, base)
    models: dict[str, Any] = {}
    rows = []
    for method in methods:
        print(f"{method.name} ...", file=sys.stderr)
        train_s = seconds_of(lambda m=method: models.update({m.name: m.train(train)}), 1)
        model = models[method.name]
        decoded = method.decode(model, method.encode(model, base))
        ranks = ranks_of(true, queries, decoded)
        rows.append(
            {
                "method": method.name,
                "code_bytes": bits / 8,
                "cell_bytes": float(np.log2(method.cells)) / 8,
                "model_bytes": method.model_bytes(model),
                "recall": {str(r): float((ranks < r).mean()) for r in RANKS},
                "squared_error": float(((decoded - base).astype(np.float64) ** 2).sum(1).mean()),
                "train_cpu_s": train_s,
            }
        )
    calls = {m.name: lambda _, m=m: m.encode(models[m.name], base) for m in methods}
    for name, seconds in interleaved_medians(calls, 3, 1).items():
        row = next(row for row in rows if row["method"] == name)
        row["encode_cpu_us_each"] = 1e6 * seconds / len(base)
    return rows


def print_table(result: dict[str, Any]) -> None:
    print(
        f"{result['n_train']} descriptors to learn from, {result['n_base']} coded, "
        f"{result['n_queries']} queries, dimension {result['dimension']}; "
        f"kernels: {result['simd']}; load {result['environment']['load_average']}"
    )
    head = "".join(f"{f'R@{r}':>8}" for r in RANKS)
    print(
        f"{'':36}{'bytes':>6}{'+cell':>6}{'model KB':>9}{head}{'error':>8}{'train s':>9}{'us':>7}"
    )
    for row in result["methods"]:
        recalls = "".join(f"{value:>8.3f}" for value in row["recall"].values())
        print(
            f"{row['method']:36}{row['code_bytes']:>6.2f}{row['cell_bytes']:>6.2f}"
            f"{row['model_bytes'] / 1000:>9.0f}{recalls}{row['squared_error']:>8.4f}"
            f"{row['train_cpu_s']:>9.1f}{row['encode_cpu_us_each']:>7.2f}"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=os.environ.get("DELFSEARCH_PHOTOS"))
    parser.add_argument("--descriptors", type=Path, help="instead of --photos: a .npy (n, d)")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/delfsearch/benchmarks")
    parser.add_argument("--scales", default="0.25-1", help="of the extraction")
    parser.add_argument("--n-train", type=int, default=100_000)
    parser.add_argument("--n-base", type=int, default=100_000)
    parser.add_argument("--n-queries", type=int, default=2000)
    parser.add_argument("--parts", type=int, default=10)
    parser.add_argument("--bits", type=int, default=5)
    parser.add_argument("--n-lists", type=int, default=64, help="cells of what has cells")
    parser.add_argument("--no-peers", action="store_true", help="leave FAISS out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    photos = None
    if arguments.descriptors:
        descriptors = np.load(arguments.descriptors, mmap_mode="r")
        beside = arguments.descriptors.with_name(arguments.descriptors.stem + "_image.npy")
        photos = np.load(beside) if beside.exists() else None
    elif arguments.photos:
        descriptors, photos = extract(Path(arguments.photos), arguments.cache, arguments.scales)
    else:
        raise SystemExit("--photos FOLDER, DELFSEARCH_PHOTOS or --descriptors FILE is needed")
    sizes = arguments.n_train, arguments.n_base, arguments.n_queries
    train, base, queries = draw(descriptors, photos, sizes, arguments.seed)
    methods = ours(arguments) + ([] if arguments.no_peers else peers(arguments))
    result = {
        "environment": environment(),
        "simd": _core.simd(),
        "n_train": len(train),
        "n_base": len(base),
        "n_queries": len(queries),
        "dimension": train.shape[1],
        "photos_of_their_own": photos is not None,
        "methods": measure(methods, arguments.parts * arguments.bits, train, base, queries),
    }
    print_table(result)
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
