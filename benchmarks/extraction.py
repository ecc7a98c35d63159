"""Speed and accuracy of extraction beside the eager network, on real photographs.

Prints, for each precision that this processor has: CPU seconds of the network on one level of
1024 x 768 beside plain eager PyTorch (float32, NCHW, nothing folded or fused), interleaved photo by
photo, medians; the cosine with the eager features per cell over a whole pyramid, raw (1,024-D) and
final (40-D); the share of selected keypoints that agree; then CPU seconds per photo of the whole
extractor for both presets, its own estimate, and peak memory for few and for many photos.

    python benchmarks/extraction.py --photos FOLDER [--n 8] [--threads 1] [--json out.json]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from delfsearch import DelfExtractor
from delfsearch.extraction.network import ResNet50Conv4
from delfsearch.extraction.photos import open_photo
from delfsearch.extraction.pyramid import SCALE_SETS, pyramid
from delfsearch.extraction.reduction import PcaReduction
from delfsearch.extraction.runtime import Runtime, processor_has_bf16
from delfsearch.extraction.weights import Weights, load_weights

LEVEL_SIZE = (1024, 768)
CHILD = """
import sys
from pathlib import Path
from delfsearch import DelfExtractor
precision, preset, *paths = sys.argv[1:]
extractor = DelfExtractor.preset(preset, precision=precision, n_jobs=1, device="cpu")
n = sum(1 for _ in extractor.stream(paths))
# Not getrusage: its maximum begins with what the parent process had.
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
"""


def photo_paths(folder: Path, n: int) -> list[Path]:
    """Return n photos spread evenly over the folder's table."""
    with open(folder / "photos.csv", encoding="utf-8", newline="") as file:
        paths = [folder / row["path"] for row in csv.DictReader(file)]
    rows = np.linspace(0, len(paths) - 1, min(n, len(paths))).astype(int)
    return [paths[row] for row in rows]


def eager_network(weights: Weights) -> Any:
    """Return what a straightforward implementation runs: rgb (h, w, 3) uint8 -> (h', w', 1024)."""
    model = ResNet50Conv4(weights.layout, weights.bn_eps).eval()
    model.load_state_dict({**model.state_dict(), **weights.tensors})
    mean, std = (torch.tensor(v)[:, None, None] for v in (weights.input_mean, weights.input_std))

    def run(rgb: np.ndarray) -> torch.Tensor:
        x = ((torch.from_numpy(rgb).permute(2, 0, 1).float() - mean) / std)[None].contiguous()
        with torch.inference_mode():
            return model(x)[0].permute(1, 2, 0)

    return run


def ours(runtime: Runtime) -> Any:
    def run(rgb: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            return runtime.dense(rgb)

    return run


def speed(networks: dict[str, Any], paths: list[Path]) -> dict[str, float]:
    """Return the median CPU seconds per network, one level of LEVEL_SIZE per photo."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for i, path in enumerate([paths[0], *paths]):
        rgb = np.array(open_photo(path).image.resize(LEVEL_SIZE, Image.Resampling.BICUBIC))
        for name, run in networks.items():
            start = time.process_time()
            run(rgb)
            if i > 0:  # the first round compiles oneDNN's kernels
                seconds[name].append(time.process_time() - start)
    return {name: median(values) for name, values in seconds.items()}


def accuracy(networks: dict[str, Any], pca: PcaReduction, paths: list[Path]) -> dict[str, Any]:
    """Return cosines with the eager features over all cells of the pyramid, and kept keypoints."""
    cosines: dict[str, dict[str, list[np.ndarray]]] = {}
    agree: dict[str, list[float]] = {}
    for path in paths:
        features: dict[str, list[np.ndarray]] = {name: [] for name in networks}
        for level in pyramid(open_photo(path, max_side=1024).image, SCALE_SETS["0.25-2"]):
            for name, run in networks.items():
                values = run(np.array(level.image)).float().reshape(-1, 1024).numpy()
                features[name].append(values)
        stacked = {name: np.concatenate(values) for name, values in features.items()}
        reference = stacked.pop("eager")
        norms = np.linalg.norm(reference, axis=1)
        best = set(np.argsort(-norms, kind="stable")[:1000])
        reduced = pca.transform(reference)
        for name, values in stacked.items():
            lengths = np.linalg.norm(values, axis=1)
            kinds = cosines.setdefault(name, {"raw": [], "final": []})
            kinds["raw"].append((values * reference).sum(1) / (norms * lengths))
            kinds["final"].append((pca.transform(values) * reduced).sum(1))
            same = best & set(np.argsort(-lengths, kind="stable")[:1000])
            agree.setdefault(name, []).append(len(same) / len(best))
    result: dict[str, Any] = {}
    for name, kinds in cosines.items():
        row: dict[str, float] = {}
        for kind, parts in kinds.items():
            joined = np.concatenate(parts).astype(np.float64)
            row[f"{kind}_mean"] = float(joined.mean())
            row[f"{kind}_p0.1"] = float(np.quantile(joined, 0.001))
            row[f"{kind}_min"] = float(joined.min())
        result[name] = {**row, "keypoints_kept": float(np.mean(agree[name])), "cells": len(joined)}
    return result


def whole(precision: str, preset: str, paths: list[Path], threads: int) -> dict[str, float]:
    """Return CPU and wall seconds per photo of the extractor as a user calls it."""
    extractor = DelfExtractor.preset(preset, precision=precision, n_jobs=threads, device="cpu")
    extractor.transform(paths[:1])
    sizes = [open_photo(path).size for path in paths]
    estimate = sum(extractor.estimate_seconds(1, image_size=size) for size in sizes) / len(sizes)
    cpu, wall = time.process_time(), time.perf_counter()
    extractor.transform(paths)
    return {
        "cpu_s_per_photo": (time.process_time() - cpu) / len(paths),
        "wall_s_per_photo": (time.perf_counter() - wall) / len(paths),
        "estimated_s_per_photo": estimate,
    }


def peak_mb(precision: str, preset: str, paths: list[Path]) -> float:
    """Return the peak resident memory in MiB of a fresh process; photos resized to LEVEL_SIZE."""
    with tempfile.TemporaryDirectory() as folder:
        resized = []
        for i, path in enumerate(paths):
            resized.append(os.path.join(folder, f"{i}.jpg"))
            open_photo(path).image.resize(LEVEL_SIZE).save(resized[-1])
        command = [sys.executable, "-c", CHILD, precision, preset, *resized]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("DELFSEARCH_PHOTOS")
    parser.add_argument("--photos", type=Path, default=default, required=default is None)
    parser.add_argument("--n", type=int, default=8, help="photos to measure on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    paths = photo_paths(args.photos, args.n)
    weights = load_weights("resnet50-imagenet")
    precisions = ["fp32", *(["bf16"] if processor_has_bf16() else [])]
    networks = {"eager": eager_network(weights)}
    for precision in precisions:
        networks[precision] = ours(Runtime(weights, score="l2", precision=precision, device="cpu"))
    seconds = speed(networks, paths)
    pca = PcaReduction.from_arrays(weights.pca, 40)
    cosines = accuracy(networks, pca, paths)
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": args.threads,
        "photos": len(paths),
        "network_cpu_s": seconds,
        "speedup": {name: seconds["eager"] / seconds[name] for name in precisions},
        "accuracy": cosines,
        "extractor": {
            f"{preset} {precision}": whole(precision, preset, paths, args.threads)
            for preset in ("fast", "full")
            for precision in precisions
        },
        "peak_mb": {
            f"full {precision}, {n} photos": peak_mb(precision, "full", (paths * n)[:n])
            for precision in precisions
            for n in (4, 16)
        }
        if sys.platform == "linux"
        else {},
    }
    print(f"network, {LEVEL_SIZE[0]} x {LEVEL_SIZE[1]}, {args.threads} thread(s), CPU seconds:")
    for name, value in seconds.items():
        line = f"  {name:6} {value:7.3f}  x{seconds['eager'] / value:5.2f}"
        if name in cosines:
            row = cosines[name]
            line += (
                f"  cosine raw mean {row['raw_mean']:.6f} min {row['raw_min']:.6f}, final mean "
                f"{row['final_mean']:.6f} p0.1 {row['final_p0.1']:.5f} min {row['final_min']:.5f}, "
                f"keypoints kept {row['keypoints_kept']:.3f}"
            )
        print(line)
    print("extractor, seconds per photo (CPU, wall, its estimate):")
    for name, row in report["extractor"].items():
        print(f"  {name:10} " + "  ".join(f"{value:7.3f}" for value in row.values()))
    print("peak memory, MiB:")
    for name, value in report["peak_mb"].items():
        print(f"  {name:22} {value:7.0f}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
