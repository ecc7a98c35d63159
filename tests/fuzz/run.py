"""Hostile files and arguments: whatever comes, a clear error or a right answer, never a crash.

Each target takes a random generator, damages something that a stranger could hand us, and uses it.
Allowed are the library's own errors; anything else is a finding, printed with the seed that repeats
it:  python tests/fuzz/run.py --target index --seed 17 --runs 1
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from search_helpers import make_collection, make_features
from tensor_bundles import (
    GOLDEN,
    entry,
    finished,
    header,
    message,
    sealed,
    shape_message,
    varint,
    write_bundle,
)

from delfsearch import DelfIndex, IndexFormatError, Matches, PhotoError, QuantizedKDTree, Verifier
from delfsearch.errors import WeightsError
from delfsearch.extraction.photos import open_photo
from delfsearch.extraction.weights import load_weights, save_weights
from delfsearch.extraction.weights_io.graph_def import read_operations
from delfsearch.extraction.weights_io.object_graph import GRAPH_KEY, ObjectGraph
from delfsearch.extraction.weights_io.protobuf import Malformed
from delfsearch.extraction.weights_io.tensor_bundle import TensorBundle, slice_key

Rng = np.random.Generator


def damage(rng: Rng, data: bytes) -> bytes:
    """Flip, cut, double or overwrite some bytes."""
    raw = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not raw:
            return b"\0"
        at = int(rng.integers(len(raw)))
        kind = rng.integers(5)
        if kind == 0:
            raw[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del raw[at:]
        elif kind == 2:
            length = int(rng.integers(1, 64))
            raw[at : at + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
        elif kind == 3:
            raw[at:at] = raw[: int(rng.integers(1, 64))]
        else:
            raw[at : at + 4] = b"\xff\xff\xff\x7f"
    return bytes(raw)


class Fuzzer:
    """The targets, each a method; files that they start from are made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = folder / "index"
        DelfIndex(leaf_size=8).fit(make_collection()).save(self.index)
        self.query = make_features(np.random.default_rng(1), 20)
        rng = np.random.default_rng(2)
        self.tree = QuantizedKDTree(leaf_size=16).fit(rng.normal(size=(200, 6)))
        image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        self.photos = []
        for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
            stream = io.BytesIO()
            image.save(stream, kind)
            self.photos.append(stream.getvalue())
        self.weights = folder / "weights.safetensors"
        save_weights(self.weights, {"conv1.weight": np.zeros((4, 3, 2, 2), np.float32)}, {})
        self.graph = TensorBundle(GOLDEN / "objects").string(GRAPH_KEY)
        self.saved_model = (GOLDEN / "saved/saved_model.pb").read_bytes()

    def target_index(self, rng: Rng) -> None:
        """A damaged index folder is refused or still answers; `check` never calls it sound."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.index, copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        victim = files[int(rng.integers(len(files)))]
        before = victim.read_bytes()
        after = damage(rng, before)
        victim.write_bytes(after)
        try:
            index = DelfIndex.load(copy)
            found = index.check()
            index.query(self.query)
            for image_id in index.ids[:3]:
                index.features_of(int(image_id))
        except IndexFormatError:
            return
        if not found and after != before:
            raise AssertionError(f"check found nothing wrong with {victim.relative_to(copy)}")

    def target_tree(self, rng: Rng) -> None:
        """Damaged arrays of a tree are refused, or searched without leaving their memory."""
        arrays = {name: array.copy() for name, array in self.tree.arrays().items()}
        name = sorted(arrays)[int(rng.integers(len(arrays)))]
        array = arrays[name]
        kind = rng.integers(4)
        if kind == 0 and array.size:
            raw = array.view(np.uint8).reshape(-1)
            raw[int(rng.integers(raw.size))] = rng.integers(256)
        elif kind == 1:
            arrays[name] = array[: int(rng.integers(len(array) + 1))] if array.ndim else array
        elif kind == 2:
            arrays[name] = array.astype(rng.choice(["float64", "int8", "uint16", "float32"]))
        else:
            del arrays[name]
        try:
            tree = QuantizedKDTree.from_arrays(arrays, self.tree.get_params())
            tree.query(rng.normal(size=(5, 6)), k=9, max_leaves=int(rng.integers(1, 20)))
            tree.codes()
        except IndexFormatError:
            return

    def target_photo(self, rng: Rng) -> None:
        """A damaged photo opens or is a PhotoError."""
        path = self.folder / "photo.bin"
        path.write_bytes(damage(rng, self.photos[int(rng.integers(len(self.photos)))]))
        try:
            open_photo(path, max_side=64, max_pixels=1_000_000)
        except PhotoError:
            return

    def target_weights(self, rng: Rng) -> None:
        """A damaged weights file is a WeightsError."""
        path = self.folder / "damaged.safetensors"
        path.write_bytes(damage(rng, self.weights.read_bytes()))
        try:
            load_weights(path)
        except WeightsError:
            return
        raise AssertionError("weights without most of their tensors were taken")

    def target_bundle(self, rng: Rng) -> None:
        """A damaged TensorFlow checkpoint is refused, or gives the tensors that are in it."""
        folder = self.folder / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        kind = str(rng.choice(["single", "sharded", "objects"]))
        expected = {
            name: read_tensor(TensorBundle(GOLDEN / kind), name)
            for name in TensorBundle(GOLDEN / kind)
        }
        files = sorted(GOLDEN.glob(f"{kind}.*"))
        for file in files:
            shutil.copy(file, folder)
        victim = folder / files[int(rng.integers(len(files)))].name
        victim.write_bytes(damage(rng, victim.read_bytes()))
        try:
            bundle = TensorBundle(folder / kind)
            found = {name: read_tensor(bundle, name) for name in bundle}
        except WeightsError:
            return
        if found != expected:
            raise AssertionError(f"damage to {victim.name} went unnoticed")

    def target_bundle_numbers(self, rng: Rng) -> None:
        """Numbers and blocks that are wrong under right checksums do no harm."""
        folder = self.folder / "numbers"
        shutil.rmtree(folder, ignore_errors=True)

        def one() -> int:
            return int(rng.choice([0, 1, 2, 3, 6, 24, 2**31, 2**40, 2**62]))

        shape = [one() for _ in range(int(rng.integers(4)))]
        extents = [(one(), one()) for _ in shape]
        sliced = message(*((1, message((1, start), (2, n))) for start, n in extents))
        part = entry(1, [n for _, n in extents], 0, 4 * int(rng.integers(7)), 0)
        values = {
            b"number": entry(one() % 24, shape, one(), one(), 0, shard=int(rng.integers(2))),
            b"sliced": message((1, 1), (2, shape_message(shape)), (7, sliced)),
            slice_key(b"sliced", tuple(extents)): part,
        }
        if rng.random() < 0.2:
            values[b""] = header(one(), one() % 2, message((1, one()), (2, one())))
        if rng.random() < 0.2:
            values[b"damaged"] = damage(rng, values[b"number"])
        arrays = {"a": np.arange(6, dtype=np.float32)}
        snappy = bool(rng.random() < 0.5)
        write_bundle(folder / "b", arrays, extra=values, snappy=snappy)
        index = folder / "b.index"
        if rng.random() < 0.2:
            block = damage(rng, index.read_bytes()[:-100])
            handle = varint(0) + varint(len(block))
            index.write_bytes(finished(sealed(block, int(snappy)), [(b"z", handle)]))
        try:
            bundle = TensorBundle(folder / "b")
        except WeightsError:
            return
        for name in bundle:
            try:
                read_tensor(bundle, name)
            except WeightsError:
                continue

    def target_graph(self, rng: Rng) -> None:
        """Damaged object graphs and operations of TensorFlow are refused, or read as they are."""
        try:
            graph = ObjectGraph(damage(rng, self.graph))
            for node in graph.breadth_first():
                graph.tensor(node, "model", "backbone", "first", "kernel")
        except Malformed:
            pass
        path = self.folder / "saved_model.pb"
        path.write_bytes(damage(rng, self.saved_model))
        try:
            read_operations(path)
        except WeightsError:
            return

    def target_verifier(self, rng: Rng) -> None:
        """Any finite matches are verified; malformed ones are a ValueError or TypeError."""
        counts = rng.integers(0, 40, int(rng.integers(0, 6)))
        m = int(counts.sum())
        spread = float(rng.choice([0, 1e-3, 1, 1e3, 1e18, 3e38]))
        xy = [np.clip(rng.normal(size=(m, 2)) * spread, -3e38, 3e38) for _ in "qd"]
        if m and rng.random() < 0.3:
            xy[int(rng.integers(2))][:] = xy[0][0]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        if rng.random() < 0.2:
            offsets[int(rng.integers(len(offsets)))] += int(rng.integers(-50, 50))
        matches = Matches(
            image_ids=rng.integers(-(2**62), 2**62, len(counts)),
            offsets=offsets.astype(np.int64),
            query_indices=rng.integers(0, 30, m).astype(np.int32),
            database_indices=rng.integers(0, 30, max(0, m - int(rng.random() < 0.1))),
            query_xy=xy[0].astype(np.float32),
            database_xy=xy[1].astype(np.float32),
            squared_distances=rng.uniform(0, 2, m).astype(np.float32),
        )
        try:
            hits = Verifier(max_error=float(rng.choice([1e-3, 20.0, 1e5]))).verify(matches)
        except (ValueError, TypeError):
            return
        for hit in hits:
            if not np.isfinite(hit.affine).all() or len(hit.inliers) != hit.n_inliers:
                raise AssertionError(f"a hit that is not sound: {hit}")

    def target_query(self, rng: Rng) -> None:
        """Any finite matrix is indexed and searched, whatever its scale."""
        n, d = int(rng.integers(1, 60)), int(rng.integers(2, 40))
        scale = float(rng.choice([1e-30, 1e-6, 1, 1e6, 1e30]))
        X = rng.normal(size=(n, d)) * scale
        X[:, rng.random(d) < 0.2] = 3.0
        if rng.random() < 0.3:
            X[:] = X[0]
        try:
            tree = QuantizedKDTree(leaf_size=int(rng.integers(1, 40))).fit(X)
            squared, ids = tree.query(X * rng.choice([0, 1, -5]), k=int(rng.integers(1, 80)))
        except ValueError:
            return
        missing = ids < 0
        if (np.isinf(squared) != missing).any() or (np.diff(squared[:, :n], axis=1) < 0).any():
            raise AssertionError("neighbours are not in order")


def read_tensor(bundle: TensorBundle, name: str) -> bytes:
    """Return a tensor's bytes, of numbers or of one string."""
    if bundle[name].dtype_name == "string":
        return bundle.string(name)
    return bundle.array(name).tobytes()


def run(fuzzer: Fuzzer, name: str, seconds: float, seed: int, runs: int | None) -> tuple[int, int]:
    target: Callable[[Rng], None] = getattr(fuzzer, f"target_{name}")
    end = time.monotonic() + seconds
    done = failed = 0
    while (time.monotonic() < end) if runs is None else (done < runs):
        try:
            target(np.random.default_rng([seed + done, 7]))
        except Exception:
            failed += 1
            print(f"FOUND by --target {name} --seed {seed + done} --runs 1")
            traceback.print_exc()
            if failed == 5:
                break
        done += 1
    return done, failed


def main() -> int:
    names = [name[7:] for name in dir(Fuzzer) if name.startswith("target_")]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=None, help="first seed; the clock if omitted")
    parser.add_argument("--runs", type=int, default=None, help="instead of --seconds")
    parser.add_argument("--target", choices=names, action="append")
    arguments = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")  # what Pillow and NumPy say of damage that we did
    seed = int(time.time()) % 1_000_000 * 1000 if arguments.seed is None else arguments.seed
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder))
        for name in arguments.target or names:
            done, failed = run(fuzzer, name, arguments.seconds, seed, arguments.runs)
            failures += failed
            print(f"fuzz {name}: {done} runs from seed {seed}, {failed} found", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
