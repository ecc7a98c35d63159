"""The steps of billion.py: what one folder and one size go through."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from _answers import RANKS, Found, exact_rows, latency_of, overlap, planted_results, recall_of
from _common import environment, write_json
from _exact import exact_pass
from _ids import code_entropy_bits, id_costs
from _memory import AnonymousPeak, memory
from _resemblance import compare, table
from _stream import Feed, Queries, Stream, plant
from _synthetic import Mixture, Synthetic
from _synthetic_fit import fit, starts_of
from threadpoolctl import threadpool_limits

from delfsearch import _core
from delfsearch.index.code_model import CodeModel, parse_code
from delfsearch.index.inverted_file import InvertedFile
from delfsearch.index.list_builder import InvertedFileBuilder

OF_SIZE = ("build", "search", "exact", "recall", "faiss")
STEPS = ("prepare", "model", *OF_SIZE)
_MORE_PROBES = 64
_CLUTTER_PHOTOS = 1000  # real ones that rows of queries come from


def parse_size(text: str) -> int:
    units = {"K": 10**3, "M": 10**6, "B": 10**9}
    factor = units.get(text[-1:].upper(), 1)
    return round(float(text[:-1] if factor > 1 else text) * factor)


def name_of(size: int) -> str:
    for unit, factor in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


class Run:
    """One folder and what was asked."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.folder: Path = arguments.folder

    def of_size(self, size: int) -> Path:
        return self.folder / name_of(size)

    def result(self, step: str, size: int) -> Path:
        return (self.of_size(size) if step in OF_SIZE else self.folder) / f"{step}.json"

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
        whole = len(settings)
        settings += [{**one, "max_leaves": n} for n in a.max_leaves for one in settings[:whole]]
        settings += [{**one, "eps": eps} for eps in a.eps for one in settings[:whole]]
        photos_of = self.photos_of(file, stream)
        allowed, prepare_s = self._allowed(file, stream, size)
        settings += [{**one, "share": share} for share in a.share for one in settings[:whole]]
        latency: list[dict[str, list[float]]] = [{"cpu": [], "wall": []} for _ in settings]
        answers: list[list[Found]] = [[] for _ in settings]
        for warm in (False, True):
            for X in queries.X:
                for i, setting in enumerate(settings):
                    asked = {key: value for key, value in setting.items() if key != "share"}
                    bits = allowed.get(setting.get("share"))
                    clocks = time.process_time(), time.perf_counter()
                    squared, ids = file.query(X, allowed=bits, **asked)
                    took = time.process_time() - clocks[0], time.perf_counter() - clocks[1]
                    if warm:
                        latency[i]["cpu"].append(took[0])
                        latency[i]["wall"].append(took[1])
                        answers[i].append((photos_of(ids), squared))
        after = memory()
        rows = []
        for setting, times, found in zip(settings, latency, answers):
            rows.append({**setting, **latency_of(times), **planted_results(queries, found)})
            if "max_leaves" in setting or "eps" in setting:
                rows[-1]["kept"] = kept(found, answers[(len(rows) - 1) % whole])
            print(f"{name_of(size)} {json.dumps(rows[-1])}", flush=True)
        arrays = file.arrays()
        sizes = arrays["sizes"].astype(np.int64)
        usage = file.memory_usage()
        in_memory = {name: usage[name] for name in ("codes", "ids", "leaves")}
        in_memory["codebooks"] = model.nbytes
        n_blocks = stream.n_blocks(size)
        in_memory["photo_table"] = 8 * (stream.n_photos(n_blocks) + 1)
        in_memory["total"] = sum(in_memory.values())
        result = {
            "n": len(file),
            "load_s": load_s,
            "of_it_model_s": model_s,
            "first_query_s": first_query_s,
            "filter_s": prepare_s,
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
        self.save("search", size, result)

    def _allowed(
        self, file: InvertedFile, stream: Stream, size: int
    ) -> tuple[dict[float | None, Any], dict[float, float]]:
        """Filters that let pass a share of the photos, drawn at random, and seconds of making."""
        n_photos = stream.n_photos(stream.n_blocks(size))
        allowed: dict[float | None, Any] = {None: None}
        seconds = {}
        for share in self.arguments.share:
            photos = np.random.default_rng(self.arguments.seed).random(n_photos) < share
            grouped = self.arguments.postings == "photos"
            mask = photos if grouped else photos[stream.photo_of(np.arange(len(file)))]
            start = time.perf_counter()
            allowed[share] = file.prepare(mask)
            seconds[share] = time.perf_counter() - start
            print(f"{name_of(size)} filter of {share}: made in {seconds[share]:.2f} s", flush=True)
        return allowed, seconds

    def photos_of(self, file: InvertedFile, stream: Stream) -> Any:
        if self.arguments.postings == "photos":
            return lambda ids: ids
        return stream.photo_of

    def _agreement(self, file: InvertedFile, queries: Queries, photos_of: Any) -> dict[str, Any]:
        """How much of what many lists give is in few lists, for what exact search cannot tell."""
        a = self.arguments
        rows = exact_rows(queries, a.exact_rows)
        more = photos_of(file.query(rows, k=max(RANKS), n_probe=_MORE_PROBES)[1])
        found = {}
        for probes in a.n_probe:
            few = photos_of(file.query(rows, k=max(RANKS), n_probe=probes)[1])
            found[str(probes)] = {f"first_{r}": overlap(few[:, :r], more[:, :r]) for r in RANKS}
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
            ids = photos_of(file.query(rows, k=max(RANKS), n_probe=probes)[1])
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
            result = {"method": name, **latency_of(times[name])}
            result |= planted_results(queries, answers[name])
            if exact.exists():
                with np.load(exact) as stored:
                    result |= recall_of(
                        to_photos[name](call(rows)[0]), stream.photo_of(stored["rows"])
                    )
            if name in peers:
                result["bytes_per_descriptor"] = peers[name].bytes / stream.n_rows(n_blocks)
                result["build_s"] = peers[name].build_s
            else:
                usage = file.memory_usage()
                inside = sum(usage[part] for part in ("codes", "ids", "leaves"))
                result["bytes_per_descriptor"] = inside / len(file)
            methods.append(result)
            print(f"{name_of(size)} {json.dumps(result)}", flush=True)
        self.save("faiss", size, {"k": k, "n_probe": probes, "methods": methods})


def kept(some: list[Found], whole: list[Found]) -> float:
    """Return how many of the nearest in whole lists were found in some of their leaves."""
    found = sum(int((a[1] <= b[1][:, -1:])[np.isfinite(a[1])].sum()) for a, b in zip(some, whole))
    return found / sum(int(np.isfinite(b[1]).sum()) for b in whole)


def _photos_of(
    X: np.ndarray, starts: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    rows = [X[starts[p] : starts[p + 1]] for p in chosen]
    ends = np.cumsum([0, *map(len, rows)])
    return np.concatenate(rows) if rows else X[:0], ends
