"""An inverted file at 1 million to 1 billion descriptors: building, memory, latency, recall.

Descriptors are made on the fly by a mixture fitted on real ones (_synthetic.py); real photos lie
among them. The photos of a small size are the first ones of a larger one, so that the same query
photos, with known answers, are asked at all sizes.

    python benchmarks/billion.py FOLDER --descriptors FILE.npy --sizes 1M 10M 100M 1B

Everything lies in FOLDER: where a run was stopped, at whatever moment, the same command goes on.
Each step is a process of its own, so that its peak memory is its own. What is done leaves a JSON;
growth.json, growth.md and growth.svg put them together. Latency: a query photo of 500 descriptors,
one thread, warm, CPU seconds and the wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import environment, write_json
from _exact import K as EXACT_K
from _exact import exact_pass
from _growth import write_growth
from _ids import code_entropy_bits, id_costs
from _resemblance import compare, table
from _stream import Feed, Queries, Stream, plant, votes_of
from _synthetic import Mixture, Synthetic
from _synthetic_fit import fit, starts_of
from threadpoolctl import threadpool_limits

from delfsearch import _core
from delfsearch.index.code_model import CodeModel
from delfsearch.index.inverted_file import InvertedFile, parse_code
from delfsearch.index.list_builder import InvertedFileBuilder

_OF_SIZE = ("build", "search", "exact", "recall", "faiss")
STEPS = ("prepare", "model", *_OF_SIZE)
_MORE_PROBES = 64
_CLUTTER_PHOTOS = 1000  # real ones that rows of queries come from
_RANKS = (1, 10, 64)
Found = tuple[np.ndarray, np.ndarray]  # photo numbers (m, k) and squared distances


def parse_size(text: str) -> int:
    units = {"K": 10**3, "M": 10**6, "B": 10**9}
    factor = units.get(text[-1:].upper(), 1)
    return round(float(text[:-1] if factor > 1 else text) * factor)


def name_of(size: int) -> str:
    for unit, factor in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def memory() -> dict[str, int]:
    """Bytes of this process: resident, of these anonymous and mapped, highest so far."""
    names = {"VmRSS": "resident", "RssAnon": "anonymous", "RssFile": "mapped", "VmHWM": "highest"}
    found = {}
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            key, _, value = line.partition(":")
            if key in names:
                found[names[key]] = int(value.split()[0]) * 1024
    smaps = Path("/proc/self/smaps_rollup")
    if smaps.exists():
        for line in smaps.read_text().splitlines():
            if line.startswith("Pss:"):
                found["proportional"] = int(line.split()[1]) * 1024
    return found


class AnonymousPeak:
    """Watches memory that no file stands behind: what a build cannot do without."""

    def __init__(self) -> None:
        self.highest = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            self.look()

    def look(self) -> None:
        self.highest = max(self.highest, memory().get("anonymous", 0))

    def __enter__(self) -> AnonymousPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        self._end.set()
        self._thread.join()


class Run:
    """One folder and what was asked."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.folder: Path = arguments.folder

    def of_size(self, size: int) -> Path:
        return self.folder / name_of(size)

    def result(self, step: str, size: int) -> Path:
        return (self.of_size(size) if step in _OF_SIZE else self.folder) / f"{step}.json"

    def is_done(self, step: str, size: int) -> bool:
        if step in ("exact", "recall") and size > self.arguments.exact_up_to:
            return True
        if step == "exact":
            return (self.folder / f"exact_{size}.npz").exists()
        if step == "faiss" and size > self.arguments.faiss_up_to:
            return True
        return self.result(step, size).exists()

    def save(self, step: str, size: int, found: dict[str, Any]) -> None:
        path = self.result(step, size)
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"environment": environment(), "simd": _core.simd(), **found}
        partial = path.with_name("partial_" + path.name)
        write_json(str(partial), found)
        partial.rename(path)

    # Once

    def prepare(self) -> None:
        """Fit the mixture, compare it with what it was fitted on, choose real photos, plant."""
        a = self.arguments
        X, photos = self._descriptors()
        unit = np.abs((X[:1000].astype(np.float64) ** 2).sum(1) - 1).max() < 1e-3
        if not unit:
            raise SystemExit("descriptors must have length 1: divide each by its norm")
        path = self.folder / "mixture.npz"
        if not path.exists():
            fit(X, photos, a.seed, a.n_jobs).save(path)
        synthetic = Synthetic(Mixture.load(path), a.seed)
        print("comparing real and synthetic descriptors", flush=True)
        compared = compare(X, photos, synthetic, a.n_jobs)
        print(table(compared), flush=True)
        with threadpool_limits(1):
            start = time.process_time()
            n_made = sum(len(synthetic.block(i)[0]) for i in range(10))
            rate = n_made / (time.process_time() - start)
        print(f"{rate:,.0f} synthetic descriptors a CPU second", flush=True)
        starts = starts_of(photos)
        order = np.random.default_rng([a.seed, 4]).permutation(len(starts) - 1)
        n_real = min(a.real_photos, len(order) // 2)
        real = _photos_of(X, starts, np.sort(order[:n_real]))
        clutter, _ = _photos_of(X, starts, np.sort(order[n_real : n_real + _CLUTTER_PHOTOS]))
        np.save(self.folder / "real.npy", real[0])
        np.savez(self.folder / "setup.npz", real_starts=real[1], seed=a.seed)
        stream = Stream.open(self.folder)
        blocks = stream.n_blocks(min(a.sizes))
        planted = plant(stream, blocks, clutter, a.queries, a.queries_without, a.planted, a.seed)
        planted.save(self.folder / "queries.npz")
        found = {"resemblance": compared, "synthetic_per_cpu_s": rate, "smallest": min(a.sizes)}
        self.save("prepare", 0, {**found, "n_real_photos": n_real, "n_real_rows": len(real[0])})

    def _descriptors(self) -> tuple[np.ndarray, np.ndarray]:
        a = self.arguments
        if a.descriptors:
            beside = a.descriptors.with_name(a.descriptors.stem + "_image.npy")
            if not beside.exists():
                raise SystemExit(f"photo numbers are needed: no {beside}")
            return np.load(a.descriptors), np.load(beside)
        if a.photos:
            from neighbors import extract

            return extract(Path(a.photos), a.cache, a.scales)
        raise SystemExit("--descriptors FILE, --photos FOLDER or DELFSEARCH_PHOTOS is needed")

    def model(self) -> None:
        """Learn what codes mean, once for all sizes."""
        a, stream = self.arguments, Stream.open(self.folder)
        n_parts, bits = parse_code(a.code)
        X = stream.sample(a.train_rows, stream.n_blocks(max(a.sizes)), a.seed)
        start = time.perf_counter(), time.process_time()
        with AnonymousPeak() as peak:
            model = CodeModel.learn(
                X,
                n_lists=a.n_lists,
                n_parts=n_parts,
                bits=bits,
                min_rotation_rows=InvertedFile().min_rotation_rows,
                min_codebook_rows=InvertedFile().min_codebook_rows,
                clip_quantile=InvertedFile().clip_quantile,
                seed=a.seed,
                n_threads=a.n_jobs,
            )
        found = {
            "rows": len(X),
            "n_lists": model.n_lists,
            "wall_s": time.perf_counter() - start[0],
            "cpu_s": time.process_time() - start[1],
            "peak_anonymous": peak.highest,
        }
        partial = self.folder / "partial_model.npz"
        np.savez(partial, **model.arrays())
        partial.rename(self.folder / "model.npz")
        self.save("model", 0, found)

    def load_model(self) -> CodeModel:
        with np.load(self.folder / "model.npz") as stored:
            return CodeModel.from_arrays(dict(stored), str(self.folder / "model.npz"))

    def exact(self, size: int) -> None:
        """Exact neighbours of some rows of the query photos."""
        exact_pass(self.folder, size, exact_rows(self.queries(), self.arguments.exact_rows))

    def queries(self) -> Queries:
        return Queries.load(self.folder / "queries.npz")

    # For each size

    def build(self, size: int) -> None:
        """Build the inverted file, from descriptors that another process makes meanwhile."""
        a, folder, model = self.arguments, self.of_size(size) / "index", self.load_model()
        stream = Stream.open(self.folder)
        n_blocks = stream.n_blocks(size)
        n_photos, n_rows = stream.n_photos(n_blocks), stream.n_rows(n_blocks)
        progress = self.of_size(size) / "progress.json"
        spent = {"wall_s": 0.0, "cpu_s": 0.0, "maker_cpu_s": 0.0, "peak_anonymous": 0, "peak": 0}
        spent["interruptions"] = 0
        if progress.exists():
            spent.update(json.loads(progress.read_text()))
            spent["interruptions"] += 1
        before, start = dict(spent), (time.perf_counter(), time.process_time())
        feed = None

        def note() -> None:
            spent["wall_s"] = before["wall_s"] + time.perf_counter() - start[0]
            spent["cpu_s"] = before["cpu_s"] + time.process_time() - start[1]
            made = feed.maker_cpu_s if feed else 0.0
            spent["maker_cpu_s"] = before["maker_cpu_s"] + made
            peak.look()
            spent["peak_anonymous"] = max(before["peak_anonymous"], peak.highest)
            spent["peak"] = max(before["peak"], memory().get("highest", 0))
            partial = progress.with_name("partial_progress.json")
            partial.write_text(json.dumps(spent))
            partial.rename(progress)

        finished = (folder / "lists").exists() and not (folder / "state.json").exists()
        merge_s = 0.0
        progress.parent.mkdir(parents=True, exist_ok=True)
        with AnonymousPeak() as peak:
            if not finished:
                builder = InvertedFileBuilder(
                    model,
                    folder,
                    postings=a.postings,
                    keep_exact=size <= a.keep_exact_up_to,
                    leaf_size=a.leaf_size,
                    part_rows=a.part_rows,
                    n_jobs=a.n_jobs,
                )
                there = builder.n_photos
                first = 0
                while first < n_blocks and stream.n_photos(first + 1) <= there:
                    first += 1
                done = stream.n_rows(first) if first else 0
                last, at_start = time.perf_counter(), done
                feed = Feed(self.folder, first, n_blocks, model.quantizer)
                for number, codes, counts in feed:
                    # The builder may have ended within a block.
                    skip = max(0, there - (stream.n_photos(number) if number else 0))
                    skipped = int(counts[:skip].sum())
                    builder.add(codes[skipped:], counts[skip:])
                    done = stream.n_rows(number + 1)
                    if time.perf_counter() - last > a.report_every:
                        last = time.perf_counter()
                        rate = (done - at_start) / (last - start[0])
                        m = memory()
                        print(
                            f"{name_of(size)}: {done:,} of {n_rows:,} descriptors, {rate:,.0f}/s, "
                            f"{(n_rows - done) / rate:,.0f} s left and merging; resident "
                            f"{m.get('resident', 0) / 1e9:.2f} GB, of it anonymous "
                            f"{m.get('anonymous', 0) / 1e9:.2f}",
                            flush=True,
                        )
                        note()
                note()
                merging = time.perf_counter()
                print(f"{name_of(size)}: merging", flush=True)
                builder.finish()
                merge_s = time.perf_counter() - merging
            note()
        file = self.open_index(size, model)
        if len(file) != n_rows:
            raise SystemExit(f"{folder} holds {len(file)} codes, not {n_rows}: remove it")
        found = {
            "n": n_rows,
            "n_photos": n_photos,
            "postings": a.postings,
            "keeps_exact": size <= a.keep_exact_up_to,
            "leaf_size": a.leaf_size,
            "n_lists": model.n_lists,
            "code": a.code,
            "n_jobs": a.n_jobs,
            "descriptors_per_s": n_rows / spent["wall_s"],
            "merge_s": merge_s,
            **spent,
            "disk_bytes": sum(p.stat().st_size for p in (folder / "lists").iterdir()),
        }
        self.save("build", size, found)
        progress.unlink(missing_ok=True)
        print(
            f"{name_of(size)}: built, {found['descriptors_per_s']:,.0f} descriptors/s", flush=True
        )

    def open_index(self, size: int, model: CodeModel) -> InvertedFile:
        lists = self.of_size(size) / "index" / "lists"
        arrays = {p.stem: np.load(p, mmap_mode="r") for p in lists.glob("*.npy")}
        return InvertedFile.from_arrays(arrays, model, {"leaf_size": self.arguments.leaf_size})

    def search(self, size: int) -> None:
        """Load, count bytes, ask the query photos one by one, on one thread."""
        a, queries, stream = self.arguments, self.queries(), Stream.open(self.folder)
        before = memory()
        start = time.perf_counter()
        model = self.load_model()
        model_s = time.perf_counter() - start
        file = self.open_index(size, model)
        load_s = time.perf_counter() - start
        file.set_params(n_jobs=1)
        file.query(queries.X[0], k=1)
        first_query_s = time.perf_counter() - start - load_s
        settings = [{"k": k, "n_probe": p} for p in a.n_probe for k in a.k]
        settings += [{**settings[0], "max_leaves": leaves} for leaves in a.max_leaves]
        photos_of = self.photos_of(file, stream)
        latency: list[dict[str, list[float]]] = [{"cpu": [], "wall": []} for _ in settings]
        answers: list[list[Found]] = [[] for _ in settings]
        for warm in (False, True):
            for X in queries.X:
                for i, setting in enumerate(settings):
                    clocks = time.process_time(), time.perf_counter()
                    squared, ids = file.query(X, **setting)
                    took = time.process_time() - clocks[0], time.perf_counter() - clocks[1]
                    if warm:
                        latency[i]["cpu"].append(took[0])
                        latency[i]["wall"].append(took[1])
                        answers[i].append((photos_of(ids), squared))
        after = memory()
        rows = []
        for setting, times, found in zip(settings, latency, answers):
            rows.append({**setting, **_latency_of(times), **planted_results(queries, found)})
            print(f"{name_of(size)} {json.dumps(rows[-1])}", flush=True)
        arrays = file.arrays()
        sizes = arrays["sizes"].astype(np.int64)
        usage = file.memory_usage()
        in_memory = {name: usage[name] for name in ("codes", "ids", "leaves")}
        in_memory["codebooks"] = sum(v.nbytes for v in model.arrays().values())
        n_blocks = stream.n_blocks(size)
        in_memory["photo_table"] = 8 * (stream.n_photos(n_blocks) + 1)
        in_memory["total"] = sum(in_memory.values())
        found = {
            "n": len(file),
            "load_s": load_s,
            "of_it_model_s": model_s,
            "first_query_s": first_query_s,
            "settings": rows,
            "bytes_in_memory": in_memory,
            "bytes_on_disk_alone": {k: v for k, v in usage.items() if k not in in_memory},
            "floors": {
                "code_bits_at_most": float(np.prod(parse_code(a.code))),
                "code_bits_entropy": code_entropy_bits(file, model, a.seed),
                "id_bits": id_costs(sizes, stream.n_photos(n_blocks), a.leaf_size),
            },
            "memory_before": before,
            "memory_after_queries": after,
            "agreement": self._agreement(file, queries, photos_of),
        }
        self.save("search", size, found)

    def photos_of(self, file: InvertedFile, stream: Stream) -> Any:
        if self.arguments.postings == "photos":
            return lambda ids: ids
        return stream.photo_of

    def _agreement(self, file: InvertedFile, queries: Queries, photos_of: Any) -> dict[str, Any]:
        """How much of what many lists give is in few lists, for what exact search cannot tell."""
        a = self.arguments
        rows = exact_rows(queries, a.exact_rows)
        more = photos_of(file.query(rows, k=max(_RANKS), n_probe=_MORE_PROBES)[1])
        found = {}
        for probes in a.n_probe:
            few = photos_of(file.query(rows, k=max(_RANKS), n_probe=probes)[1])
            found[str(probes)] = {f"first_{r}": overlap(few[:, :r], more[:, :r]) for r in _RANKS}
        return {"with_n_probe": _MORE_PROBES, "rows": len(rows), "n_probe": found}

    def recall(self, size: int) -> None:
        """Recall beside exact float search of the same rows."""
        a, stream, model = self.arguments, Stream.open(self.folder), self.load_model()
        file, queries = self.open_index(size, model), self.queries()
        rows = exact_rows(queries, a.exact_rows)
        with np.load(self.folder / f"exact_{size}.npz") as stored:
            true, seconds = stream.photo_of(stored["rows"]), float(stored["seconds"])
        photos_of = self.photos_of(file, stream)
        found = []
        for probes in (*a.n_probe, _MORE_PROBES):
            ids = photos_of(file.query(rows, k=max(_RANKS), n_probe=probes)[1])
            found.append({"n_probe": probes, **recall_of(ids, true)})
            print(f"{name_of(size)} {json.dumps(found[-1])}", flush=True)
        self.save("recall", size, {"rows": len(rows), "exact_s": seconds, "settings": found})

    def faiss(self, size: int) -> None:
        """FAISS with the same cells, beside ours, photo by photo in turns."""
        from _faiss_lists import build_peers

        a, stream, model = self.arguments, Stream.open(self.folder), self.load_model()
        file, queries = self.open_index(size, model), self.queries()
        file.set_params(n_jobs=1)
        n_blocks = stream.n_blocks(size)
        train = stream.sample(min(a.train_rows, 500_000), n_blocks, a.seed)
        peers = build_peers(model, train, Feed(self.folder, 0, n_blocks), a.n_jobs)
        if not peers:
            return
        photos_of, k, probes = self.photos_of(file, stream), max(a.k), a.n_probe[0]
        calls: dict[str, Any] = {
            "delfsearch": lambda X: file.query(X, k=k, n_probe=probes)[::-1],
            **{name: lambda X, p=peer: p.search(X, k, probes) for name, peer in peers.items()},
        }
        times: dict[str, dict[str, list[float]]] = {n: {"cpu": [], "wall": []} for n in calls}
        to_photos = {name: photos_of if name == "delfsearch" else stream.photo_of for name in calls}
        answers: dict[str, list[Found]] = {name: [] for name in calls}
        for warm in (False, True):
            for X in queries.X:
                for name, call in calls.items():
                    clocks = time.process_time(), time.perf_counter()
                    ids, squared = call(X)
                    if warm:
                        times[name]["cpu"].append(time.process_time() - clocks[0])
                        times[name]["wall"].append(time.perf_counter() - clocks[1])
                        answers[name].append((to_photos[name](ids), squared))
        exact = self.folder / f"exact_{size}.npz"
        rows = exact_rows(queries, a.exact_rows)
        methods = []
        for name, call in calls.items():
            result = {"method": name, **_latency_of(times[name])}
            result |= planted_results(queries, answers[name])
            if exact.exists():
                with np.load(exact) as stored:
                    result |= recall_of(
                        to_photos[name](call(rows)[0]), stream.photo_of(stored["rows"])
                    )
            if name in peers:
                result["bytes_per_descriptor"] = peers[name].bytes / stream.n_rows(n_blocks)
                result["build_s"] = peers[name].build_s
            methods.append(result)
            print(f"{name_of(size)} {json.dumps(result)}", flush=True)
        self.save("faiss", size, {"k": k, "n_probe": probes, "methods": methods})


def _photos_of(
    X: np.ndarray, starts: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    rows = [X[starts[p] : starts[p + 1]] for p in chosen]
    ends = np.cumsum([0, *map(len, rows)])
    return np.concatenate(rows) if rows else X[:0], ends


def exact_rows(queries: Queries, n: int) -> np.ndarray:
    """The same rows of all query photos that have an answer: every so many."""
    rows = queries.X[queries.true >= 0].reshape(-1, queries.X.shape[2])
    return np.ascontiguousarray(rows[:: max(1, len(rows) // n)][:n])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Share of photo numbers (m, r) of b that a has too, each as often."""
    shared = 0
    for found, wanted in zip(a, b):
        numbers, counts = np.unique(found[found >= 0], return_counts=True)
        there, needed = np.unique(wanted[wanted >= 0], return_counts=True)
        both, at, of = np.intersect1d(numbers, there, return_indices=True)
        shared += int(np.minimum(counts[at], needed[of]).sum()) if len(both) else 0
    return shared / max(1, int((b >= 0).sum()))


def recall_of(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Of photos: those of the nearest row among the first R, and of the R nearest rows."""
    result = {f"nearest_in_{r}": float((found[:, :r] == true[:, :1]).any(1).mean()) for r in _RANKS}
    most = min(EXACT_K, found.shape[1])
    return {
        **result,
        **{f"recall_{r}": overlap(found[:, :r], true[:, :r]) for r in _RANKS if r <= most},
    }


def _latency_of(times: dict[str, list[float]]) -> dict[str, float]:
    found = {}
    for clock, values in times.items():
        found[f"{clock}_ms_median"] = 1e3 * float(np.median(values))
        found[f"{clock}_ms_p90"] = 1e3 * float(np.quantile(values, 0.9))
    return found


def planted_results(queries: Queries, found: list[Found]) -> dict[str, Any]:
    """Photos that come first by votes, planted rows that find theirs, votes without an answer."""
    planted = queries.true >= 0
    result: dict[str, Any] = {}
    columns = {}
    for name, weighed in (("", False), ("_weighed", True)):
        first, votes_true, votes_none = [], [], []
        for true, (photos, squared) in zip(queries.true, found):
            numbers, votes = votes_of(photos, squared if weighed else None)
            if true < 0:
                votes_none.append(float(votes[0]) if len(votes) else 0.0)
                continue
            first.append(bool(len(numbers)) and bool(numbers[0] == true))
            votes_true.append(float(votes[numbers == true].sum()))
        most = max(votes_none, default=0.0)
        columns["first" + name] = np.array(first)
        columns["above_all_without_answer" + name] = np.array(votes_true) > most
        result["most_votes_without_answer" + name] = most
    columns["planted_recall"] = np.array(
        [
            (photos == true).any(1)[rows].mean()
            for true, rows, (photos, _) in zip(queries.true, queries.is_planted, found)
            if true >= 0
        ]
    )
    groups = {"real": queries.is_real[planted], "synthetic": ~queries.is_real[planted]}
    for share in np.unique(queries.share[planted]):
        groups[f"planted {share:g}"] = queries.share[planted] == share
    return {
        **{name: float(values.mean()) for name, values in columns.items()},
        **result,
        "by": {
            group: {name: float(values[of].mean()) for name, values in columns.items()}
            for group, of in groups.items()
            if of.any()
        },
    }


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of all that is made; goes on where it stopped")
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=[10**6, 10**7, 10**8, 10**9])
    parser.add_argument("--descriptors", type=Path, help="a .npy (n, d), lengths 1; see quantizers")
    parser.add_argument("--photos", default=os.environ.get("DELFSEARCH_PHOTOS"))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/delfsearch/benchmarks")
    parser.add_argument("--scales", default="0.25-1", help="of the extraction")
    parser.add_argument("--real-photos", type=int, default=200, help="in the database")
    parser.add_argument("--queries", type=int, default=120)
    parser.add_argument("--queries-without", type=int, default=40, help="with no true photo")
    parser.add_argument("--planted", type=float, nargs="+", default=[0.04, 0.1, 0.2])
    parser.add_argument("--n-lists", type=int, default=8000)
    parser.add_argument("--train-rows", type=int, default=2_000_000)
    parser.add_argument("--code", default="10x5")
    parser.add_argument("--leaf-size", type=int, default=2048)
    parser.add_argument("--postings", choices=("photos", "features"), default="photos")
    parser.add_argument("--keep-exact-up-to", type=parse_size, default=10**8)
    parser.add_argument("--n-probe", type=int, nargs="+", default=[5])
    parser.add_argument("--k", type=int, nargs="+", default=[10, 64])
    parser.add_argument("--max-leaves", type=int, nargs="*", default=[], help="settings besides")
    parser.add_argument("--exact-rows", type=int, default=1000, help="that exact search is asked")
    parser.add_argument("--exact-up-to", type=parse_size, default=10**8)
    parser.add_argument("--faiss-up-to", type=parse_size, default=10**7)
    parser.add_argument("--n-jobs", type=int, default=os.cpu_count() or 1, help="of building")
    parser.add_argument("--part-rows", type=parse_size, default=1 << 22, help="held, of a build")
    parser.add_argument("--report-every", type=float, default=10.0, help="seconds")
    parser.add_argument("--discard", action="store_true", help="an index once it is measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=STEPS, help="one step, in this process")
    parser.add_argument("--child-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.sizes = sorted(set(arguments.sizes))
    return arguments


_FIXED = ("n_lists", "train_rows", "code", "leaf_size", "postings", "seed", "planted", "queries",
          "queries_without", "real_photos", "exact_rows")  # fmt: skip


def check_same(run: Run) -> None:
    """A folder holds one set of parameters: what is half done cannot go on with others."""
    path = run.folder / "parameters.json"
    mine = {name: getattr(run.arguments, name) for name in _FIXED}
    if not path.exists():
        run.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name("partial_parameters.json")
        partial.write_text(json.dumps(mine, indent=1))
        partial.rename(path)
    theirs = json.loads(path.read_text())
    for name, value in mine.items():
        if theirs.get(name) != value:
            option = "--" + name.replace("_", "-")
            raise SystemExit(
                f"{run.folder} was begun with {option} {theirs.get(name)}; got {value}: go on with "
                "that, or take another folder"
            )
    prepared = run.folder / "prepare.json"
    if prepared.exists():
        smallest = json.loads(prepared.read_text())["smallest"]
        if min(run.arguments.sizes) < smallest:
            raise SystemExit(
                f"queries in {run.folder} ask for photos of the first {name_of(smallest)} "
                "descriptors: take no smaller size, or another folder"
            )


def _end_with(parent: int) -> None:
    """No step outlives what started it: the next run would work on the same files."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    argv = sys.argv[1:]
    arguments = parse(argv)
    run = Run(arguments)
    check_same(run)
    if arguments.child_of:
        threading.Thread(target=_end_with, args=(arguments.child_of,), daemon=True).start()
    if arguments.only:
        step, size = arguments.only, arguments.sizes[0]
        if step in _OF_SIZE:
            getattr(run, step)(size)
        else:
            getattr(run, step)()
        return

    def do(step: str, size: int = 0) -> None:
        if run.is_done(step, size):
            return
        print(f"== {step} {name_of(size) if size else ''}", flush=True)
        options = ["--only", step, "--child-of", str(os.getpid())]
        options += ["--sizes", str(size)] if size else []
        code = subprocess.run([sys.executable, __file__, *argv, *options]).returncode
        if code:
            raise SystemExit(f"{step} ended with {code}; the same command goes on from here")

    do("prepare")
    do("model")
    for size in arguments.sizes:
        index = run.of_size(size) / "index"
        # Discarded lists are built anew for what is left to be measured.
        if not all(run.is_done(step, size) for step in ("search", "recall", "faiss")):
            if run.is_done("build", size) and not (index / "lists").exists():
                run.result("build", size).unlink()
            do("build", size)
            do("search", size)
            do("exact", size)
            do("recall", size)
            do("faiss", size)
        if arguments.discard:
            shutil.rmtree(index, ignore_errors=True)
        write_growth(run.folder, [(s, run.of_size(s)) for s in arguments.sizes])
    print((run.folder / "growth.md").read_text(), flush=True)


if __name__ == "__main__":
    main()
