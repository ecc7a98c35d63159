"""Speed and accuracy of extraction beside other ways to run the network, on real photographs.

On a CPU, for whole seven-level pyramids of photographs resized to 1024 x 768, photo by photo, one
network after the other, medians: CPU seconds of the network and of the whole extractor around it,
ours beside eager PyTorch, torch.compile, OpenVINO and onnxruntime; cosines of each network's
features with the eager ones per cell, raw (1,024-D) and reduced (40-D), and the share of the best
1,000 keypoints that agree; then the extractor's presets, its own estimate, and peak memory for few
and for many photos. --device cuda prints photos per second instead, of the extractor and of the
network alone, beside what the arithmetic allows.

    python benchmarks/extraction.py --photos FOLDER [--n 4] [--threads 1] [--json out.json]
        [--weights FILE] [--networks NAME ...] [--parts network extractor presets memory]
    python benchmarks/extraction.py --photos FOLDER --device cuda --peak-tflops 989
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import _networks as nets
import numpy as np
import torch
from _common import environment, write_json
from PIL import Image

from delfsearch import DelfExtractor
from delfsearch.extraction.photos import open_photo
from delfsearch.extraction.pyramid import SCALE_SETS, pyramid
from delfsearch.extraction.reduction import PcaReduction
from delfsearch.extraction.runtime import Runtime, processor_has_bf16
from delfsearch.extraction.scores import Scorer
from delfsearch.extraction.weights import Weights, load_weights

PHOTO_SIZE = (1024, 768)
GFLOP_PER_PHOTO = 824  # of that size, at seven scales, a multiply-add being two
EAGER = "eager fp32"
INT8 = "int8 trial"  # of the network alone
N_ON_DEVICE, REPEATS = 256, 3  # photos of a run on a GPU, and runs
PARTS = ("network", "extractor", "presets", "memory")
CHILD = """
import sys
from pathlib import Path
from delfsearch import DelfExtractor
weights, precision, *paths = sys.argv[1:]
extractor = DelfExtractor.preset("full", weights=weights, precision=precision, n_jobs=1,
                                 device="cpu")
n = sum(1 for _ in extractor.stream(paths))
# Not getrusage: its maximum begins with what the parent process had.
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
"""


def resized_photos(folder: Path, n: int, target: Path) -> list[Path]:
    """Write n photos spread evenly over the folder's table as JPEGs of PHOTO_SIZE."""
    with open(folder / "photos.csv", encoding="utf-8", newline="") as file:
        paths = [folder / row["path"] for row in csv.DictReader(file)]
    rows = np.linspace(0, len(paths) - 1, min(n, len(paths)) + 2).astype(int)[1:-1]
    result = []
    for i, row in enumerate(rows):
        result.append(target / f"{i}.jpg")
        image = open_photo(paths[row]).image.resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
        image.save(result[-1], quality=92)
    return result


def make_networks(
    weights: Weights, names: list[str] | None, threads: int
) -> tuple[dict[str, nets.Network], dict[str, str]]:
    """Return the networks, and why others are missing."""
    makers: dict[str, Any] = {
        EAGER: lambda: nets.eager(weights),
        "onnxruntime fp32": lambda: nets.onnxruntime(weights, threads),
        "torch.compile bf16": lambda: nets.compiled(weights),
        "OpenVINO bf16": lambda: nets.openvino(weights, threads),
    }
    for precision in our_precisions():
        makers[f"delfsearch {precision}"] = lambda precision=precision: nets.ours(
            Runtime(weights, score="l2", precision=precision, device="cpu")
        )
    makers[INT8] = lambda: nets.int8_trial(weights)
    unknown = sorted(set(names or ()) - set(makers))
    if unknown:
        raise SystemExit(f"--networks must be of {', '.join(makers)}; got {unknown[0]!r}")
    networks, missing = {}, {}
    for name, make in makers.items():
        if names and name not in names:
            continue
        try:
            networks[name] = make()
        except nets.Absent as error:
            missing[name] = str(error)
    return networks, missing


def our_precisions() -> list[str]:
    return ["fp32", "bf16"] if processor_has_bf16() else ["fp32"]


class Accuracy:
    """Cosines with the reference over all cells, and kept keypoints, of one network."""

    def __init__(self, pca: PcaReduction | None, scorer: Scorer) -> None:
        self.pca, self.scorer = pca, scorer
        self.cosines: dict[str, list[np.ndarray]] = {"raw": [], "final": []}
        self.kept: list[float] = []

    def add(self, features: torch.Tensor, reference: torch.Tensor) -> None:
        """Count the cells of a photo, (n, 1024) each."""
        mine, theirs = (
            set(np.argsort(-self.scorer(x).numpy(), kind="stable")[:1000])
            for x in (features, reference)
        )
        self.kept.append(len(mine & theirs) / len(theirs))
        pairs = {"raw": (features.numpy(), reference.numpy())}
        if self.pca is not None:
            pairs["final"] = tuple(self.pca.transform(x) for x in pairs["raw"])
        for kind, (a, b) in pairs.items():
            dots = np.einsum("ij,ij->i", a, b)
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            self.cosines[kind].append((dots / lengths).astype(np.float64))

    def report(self) -> dict[str, float]:
        row: dict[str, float] = {}
        for kind, parts in self.cosines.items():
            if parts:
                joined = np.concatenate(parts)
                row[f"{kind}_mean"] = float(joined.mean())
                row[f"{kind}_permille"] = float(np.quantile(joined, 0.001))
                row[f"{kind}_min"] = float(joined.min())
        return {**row, "keypoints_kept": float(np.mean(self.kept))}


def compare_networks(
    networks: dict[str, nets.Network], weights: Weights, paths: list[Path]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the median CPU seconds of a pyramid and, beside the eager network, the accuracy."""
    pca = PcaReduction.from_arrays(weights.pca, 40) if weights.pca else None
    scorer = Scorer("auto", weights.attention, torch.device("cpu"))
    accuracy = {name: Accuracy(pca, scorer) for name in networks if name != EAGER}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for i, path in enumerate([paths[0], *paths]):
        levels = levels_of(path)
        reference: torch.Tensor | None = None
        for name, run in networks.items():  # the eager one comes first
            start = time.process_time()
            outputs = [run(level.rgb).float().reshape(-1, 1024) for level in levels]
            spent = time.process_time() - start
            if i == 0:  # kernels and graphs are compiled
                continue
            seconds[name].append(spent)
            features = torch.cat(outputs)
            if name == EAGER:
                reference = features
            elif reference is not None:
                accuracy[name].add(features, reference)
    medians = {name: median(values) for name, values in seconds.items()}
    return medians, {n: a.report() for n, a in accuracy.items()} if EAGER in networks else {}


def levels_of(path: Path) -> list[Any]:
    return pyramid(open_photo(path, max_side=1024).image, SCALE_SETS["0.25-2"])


def compare_extractors(
    networks: dict[str, nets.Network], weights: str, paths: list[Path], threads: int
) -> dict[str, float]:
    """Return the median CPU seconds per photo of the whole extractor around each network."""
    extractors = {}
    for name, network in networks.items():
        if name == INT8:
            continue
        own = name.partition("delfsearch ")[2]
        extractor = DelfExtractor.preset(
            "full", weights=weights, precision=own or "fp32", n_jobs=threads, device="cpu"
        )
        if not own:
            runtime = nets.PeerRuntime(
                load_weights(weights), score="auto", precision="fp32", device="cpu"
            )
            runtime.network = network
            extractor._loaded = ((weights, "auto", "fp32", "cpu"), runtime)
        extractors[name] = extractor
    seconds: dict[str, list[float]] = {name: [] for name in extractors}
    for i, path in enumerate([paths[0], *paths]):
        for name, extractor in extractors.items():
            start = time.process_time()
            extractor.transform([path])
            if i > 0:
                seconds[name].append(time.process_time() - start)
    return {name: median(values) for name, values in seconds.items()}


def preset(
    name: str, precision: str, weights: str, paths: list[Path], threads: int
) -> dict[str, float]:
    """Return CPU and wall seconds per photo of the extractor as a user calls it."""
    extractor = DelfExtractor.preset(
        name, weights=weights, precision=precision, n_jobs=threads, device="cpu"
    )
    extractor.transform(paths[:1])
    cpu, wall = time.process_time(), time.perf_counter()
    extractor.transform(paths)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "cpu_s_per_photo": cpu / len(paths),
        "wall_s_per_photo": wall / len(paths),
        "estimated_s_per_photo": extractor.estimate_seconds(1, image_size=PHOTO_SIZE),
    }


def peak_mb(precision: str, weights: str, paths: list[Path]) -> float:
    """Return the peak resident memory in MiB of a fresh process."""
    command = [sys.executable, "-c", CHILD, weights, precision, *map(str, paths)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def on_device(args: argparse.Namespace, paths: list[Path]) -> dict[str, Any]:
    """Return photos per second of the full preset on a GPU, and what its arithmetic allows."""
    extractor = DelfExtractor.preset("full", weights=args.weights, device=args.device)
    many = (paths * N_ON_DEVICE)[:N_ON_DEVICE]
    rates = []
    for _ in range(1 + REPEATS):  # the first time kernels are chosen and memory is taken
        start = time.perf_counter()
        extractor.transform(many)
        rates.append(len(many) / (time.perf_counter() - start))
    runtime = extractor._runtime()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(runtime.device),
        "precision": str(runtime.dtype).removeprefix("torch."),
        "photos": len(many),
        "photos_per_s": median(rates[1:]),
        "network_photos_per_s": network_rate(runtime, paths),
        "matmul_tflops": matmul_tflops(runtime.device, runtime.dtype),
        "peak_mb": torch.cuda.max_memory_allocated(runtime.device) / 2**20,
    }
    result["limit_photos_per_s"] = (
        (args.peak_tflops or result["matmul_tflops"]) * 1e3 / GFLOP_PER_PHOTO
    )
    return result


def network_rate(runtime: Runtime, paths: list[Path]) -> float:
    """Return photos per second of the network alone, photos on the device, in batches of 16."""
    levels = levels_of(paths[0])
    batches = [torch.from_numpy(np.stack([level.rgb] * 16)).to(runtime.device) for level in levels]
    rates = []
    with torch.inference_mode():
        for _ in range(2 + REPEATS):
            torch.cuda.synchronize(runtime.device)
            start = time.perf_counter()
            for batch in batches:
                for part in batch.split(max(1, (16 << 20) // (batch.shape[1] * batch.shape[2]))):
                    runtime.scorer(runtime.dense_batch(part))
            torch.cuda.synchronize(runtime.device)
            rates.append(16 / (time.perf_counter() - start))
    return median(rates[2:])


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Return what a large matrix product reaches: what the GPU gives, whatever it is said to."""
    n, rates = 8192, []
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    for _ in range(3 + REPEATS):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        torch.cuda.synchronize(device)
        rates.append(10 * 2 * n**3 / (time.perf_counter() - start) / 1e12)
    return median(rates[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("DELFSEARCH_PHOTOS")
    parser.add_argument("--photos", type=Path, default=default, required=default is None)
    parser.add_argument("--n", type=int, default=4, help="photos to measure on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", default="resnet50-imagenet")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="default: all there are")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--peak-tflops", type=float, help="of the GPU; default: what a product reaches"
    )
    parser.add_argument("--json")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {
        **environment(),
        "torch": torch.__version__,
        "threads": args.threads,
        "weights": args.weights,
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = resized_photos(args.photos, args.n, Path(folder))
        report["photos"] = len(paths)
        if args.device != "cpu":
            report["on_device"] = on_device(args, paths)
        else:
            measure(args, paths, report)
    write_json(args.json, report)
    show(report)


def measure(args: argparse.Namespace, paths: list[Path], report: dict[str, Any]) -> None:
    """Fill the report with the parts that were asked for."""
    weights = load_weights(args.weights)
    if {"network", "extractor"} & set(args.parts):
        networks, report["missing"] = make_networks(weights, args.networks, args.threads)
        if "network" in args.parts:
            report["network_cpu_s"], report["accuracy"] = compare_networks(networks, weights, paths)
        if "extractor" in args.parts:
            report["extractor_cpu_s"] = compare_extractors(
                networks, args.weights, paths, args.threads
            )
    if "presets" in args.parts:
        report["presets"] = {
            f"{name} {precision}": preset(name, precision, args.weights, paths, args.threads)
            for name in ("fast", "full")
            for precision in our_precisions()
        }
    if "memory" in args.parts and sys.platform == "linux":
        report["peak_mb"] = {
            f"full {precision}, {n} photos": peak_mb(precision, args.weights, (paths * n)[:n])
            for precision in our_precisions()
            for n in (2, 6)
        }


def show(report: dict[str, Any]) -> None:
    width, height = PHOTO_SIZE
    unit = "" if "on_device" in report else ", CPU seconds per photo"
    print(f"{report['photos']} photos of {width} x {height}, seven scales{unit}")
    print(f"({report['processor']}, {report['threads']} thread(s), torch {report['torch']})")
    for part in ("network", "extractor"):
        seconds = report.get(f"{part}_cpu_s", {})
        if not seconds:
            continue
        print(f"{part}:")
        eager = seconds.get(EAGER)
        for name, value in seconds.items():
            line = f"  {name:19} {value:7.3f}"
            line += f"  x{eager / value:5.2f}" if eager else ""
            row = report.get("accuracy", {}).get(name) if part == "network" else None
            if row:
                line += "  cosine raw {raw_mean:.5f} p0.1 {raw_permille:.4f}".format(**row)
                if "final_mean" in row:
                    line += ", final {final_mean:.5f} p0.1 {final_permille:.4f}".format(**row)
                line += f", keypoints kept {row['keypoints_kept']:.3f}"
            print(line)
    for name, reason in report.get("missing", {}).items():
        print(f"  {name:19} {reason}")
    if "presets" in report:
        print("presets, seconds per photo (CPU, wall, its estimate):")
        for name, row in report["presets"].items():
            print(f"  {name:19} " + "  ".join(f"{value:7.3f}" for value in row.values()))
    if "peak_mb" in report:
        print("peak memory, MiB:")
        for name, value in report["peak_mb"].items():
            print(f"  {name:22} {value:7.0f}")
    if "on_device" in report:
        row = report["on_device"]
        print("{device}, {precision}, {peak_mb:.0f} MiB".format(**row))
        for name, what in (
            ("photos_per_s", "photo to features"),
            ("network_photos_per_s", "network"),
        ):
            share = row[name] / row["limit_photos_per_s"]
            print(f"  {what:18} {row[name]:7.1f} photos/s, {share:.1%} of the arithmetic limit")
        print("  arithmetic limit   {limit_photos_per_s:7.1f}".format(**row))
        print("  a matrix product reaches {matmul_tflops:.0f} TFLOP/s".format(**row))


if __name__ == "__main__":
    main()
