"""What 8-bit integers cost the features: which convolutions, and where the scales come from.

The network runs in float32 with what it multiplies rounded: kernels to 127 steps a channel,
activations to 255 steps from 0 to a limit. Prints, for sets of convolutions and for calibrations,
the mean cosine per cell with the exact raw features, its 1% quantile, and the share of the best
cells (one in twelve, by the weights' own score) that stay the best. "own" scales come from a small
copy of the same photo, "others" from photos that are not measured. The time, and the accuracy of a
network in real int8, are beside the others in benchmarks/extraction.py ("int8 trial").

    python benchmarks/quantization.py --photos FOLDER [--weights FILE] [--n 3] [--scales 0.5 1]
        [--json out.json]
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _common import environment, write_json
from PIL import Image

from delfsearch.extraction.network import FoldedTrunk, _conv1_padding, _pad_conv1, _pool
from delfsearch.extraction.photos import open_photo
from delfsearch.extraction.pyramid import level_size, resized
from delfsearch.extraction.scores import Scorer
from delfsearch.extraction.weights import Weights, load_weights

PHOTO_SIZE, SMALL_SIZE = (1024, 768), (256, 192)
N_OTHERS = 8
SETS = {
    "3x3": ("conv2",),
    "3x3 and the 1x1 after": ("conv2", "conv3"),
    "all but the first": ("conv1", "conv2", "conv3", "downsample"),
    "all but the first, sums too": ("conv1", "conv2", "conv3", "downsample", "sum"),
}
OURS = "3x3 and the 1x1 after"
CALIBRATIONS = ("own, largest", "own, least squares", "others, largest", "others, 99.99%",
                "others, least squares")  # fmt: skip
Limits = dict[str, float]


class Rounded:
    """The network in float32 with rounded operands."""

    def __init__(self, weights: Weights) -> None:
        self.trunk = FoldedTrunk(
            weights.tensors, weights.layout, bn_eps=weights.bn_eps, input_std=weights.input_std
        )
        self.mean = torch.tensor(weights.input_mean)[:, None, None]
        self.kernels = {
            name: _steps(kernel, kernel.abs().amax((1, 2, 3), keepdim=True) / 127)
            for name, (kernel, _) in self.trunk._weights.items()
        }

    def __call__(
        self,
        rgb: np.ndarray,
        *,
        kinds: tuple[str, ...] = (),
        limits: Limits | None = None,
        otherwise: torch.dtype = torch.float32,
        observe: Callable[[str, torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Return the features (n, 1024); kinds : of convolutions in 8 bits, `limits` for each."""
        trunk, layout = self.trunk, self.trunk.layout
        limits = limits or {}

        def operand(x: torch.Tensor, key: str, kind: str) -> torch.Tensor:
            if observe is not None:
                observe(key, x)
            if kind in kinds:
                return _steps(x, torch.tensor(limits[key] / 255)).clamp_(0, limits[key])
            return x.to(otherwise).float()

        def conv(x: torch.Tensor, name: str, key: str, stride: int, padding: int) -> torch.Tensor:
            kind = name.rpartition(".")[2] if "." in name else "first"
            kernel, bias = trunk._weights[name]
            kernel = self.kernels[name] if kind in kinds else kernel.to(otherwise).float()
            return F.conv2d(operand(x, key, kind), kernel, bias, stride, padding)

        x = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() - self.mean
        x = conv(_pad_conv1(x, layout), "conv1", "image", 2, _conv1_padding(layout)).relu_()
        x = _pool(x, layout)
        for unit in trunk.units:
            name, stride = unit.prefix, unit.stride_1x1 * unit.stride_3x3
            if "sum" in kinds:
                x = operand(x, f"{name}.in", "sum")
            y = conv(x, f"{name}.conv1", f"{name}.in", unit.stride_1x1, 0).relu_()
            y = conv(y, f"{name}.conv2", f"{name}.1", unit.stride_3x3, 1).relu_()
            shortcut = x[:, :, ::stride, ::stride]
            if unit.projects:
                shortcut = conv(x, f"{name}.downsample", f"{name}.in", stride, 0)
            x = conv(y, f"{name}.conv3", f"{name}.2", 1, 0).add_(shortcut).relu_()
            x = x.to(otherwise).float()
        return x[0].flatten(1).T


def _steps(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return (x / step).round_().mul_(step)


def calibrate(network: Rounded, images: list[np.ndarray], rule: str) -> Limits:
    """Return the limit of each activation over some images."""
    drawn: dict[str, list[torch.Tensor]] = {}
    largest: Limits = {}
    generator = torch.Generator().manual_seed(0)

    def observe(key: str, x: torch.Tensor) -> None:
        values = x.flatten()
        rows = torch.randint(len(values), (40_000 // len(images),), generator=generator)
        drawn.setdefault(key, []).append(values[rows])
        largest[key] = max(largest.get(key, 1e-6), float(x.max()))

    for image in images:
        network(image, observe=observe)
    if rule == "largest":
        return largest
    values = {key: torch.cat(parts) for key, parts in drawn.items()}
    if rule == "least squares":
        return {key: _least_squares(v, largest[key]) for key, v in values.items()}
    share = float(rule.removesuffix("%")) / 100
    return {key: max(1e-6, float(v.quantile(share))) for key, v in values.items()}


def _least_squares(values: torch.Tensor, largest: float) -> float:
    def error(limit: float) -> float:
        return float(
            (_steps(values, torch.tensor(limit / 255)).clamp(0, limit) - values).square().mean()
        )

    return min((largest * f for f in np.geomspace(0.1, 1, 24)), key=error)


def measure(weights: Weights, photos: list[Path], others: list[Path], scales: list[float]) -> Any:
    """Return rows of (convolutions, calibration) -> figures, means over the photos and scales."""
    network = Rounded(weights)
    scorer = Scorer("auto", weights.attention, torch.device("cpu"))
    small_others = [_photo(path, SMALL_SIZE) for path in others]
    rules = {c: c.partition(", ")[2] for c in CALIBRATIONS}
    known = {c: calibrate(network, small_others, r) for c, r in rules.items() if c[:6] == "others"}
    cases = [("none: bfloat16", "")]
    cases += [(OURS, calibration) for calibration in CALIBRATIONS]
    cases += [(name, "own, largest") for name in SETS if name != OURS]
    cases += [("all but the first, sums too", c) for c in CALIBRATIONS[2:]]
    cosines: dict[tuple[str, str], list[torch.Tensor]] = {case: [] for case in cases}
    kept: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for path in photos:
        photo, small = _photo(path, PHOTO_SIZE), _photo(path, SMALL_SIZE)
        own = {c: calibrate(network, [small], r) for c, r in rules.items() if c[:3] == "own"}
        for scale in scales:
            size = level_size(PHOTO_SIZE, scale)
            assert size is not None
            rgb = resized(photo, size)
            exact = network(rgb)
            for case in cases:
                name, calibration = case
                if calibration:
                    limits = {**known, **own}[calibration]
                    got = network(rgb, kinds=SETS[name], limits=limits, otherwise=torch.bfloat16)
                else:
                    got = network(rgb, otherwise=torch.bfloat16)
                cosines[case].append(F.cosine_similarity(got, exact, dim=1))
                n = max(1, len(exact) // 12)
                best = [set(scorer(x).topk(n).indices.tolist()) for x in (got, exact)]
                kept[case].append(len(best[0] & best[1]) / n)
    rows = []
    for case in cases:
        joined = torch.cat(cosines[case])
        rows.append(
            {
                "convolutions": case[0],
                "scales_from": case[1],
                "cosine_mean": float(joined.mean()),
                "cosine_p1": float(joined.sort().values[len(joined) // 100]),
                "keypoints_kept": float(np.mean(kept[case])),
            }
        )
    return rows


def _photo(path: Path, size: tuple[int, int]) -> np.ndarray:
    return np.array(open_photo(path).image.resize(size, Image.Resampling.BICUBIC))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("DELFSEARCH_PHOTOS")
    parser.add_argument("--photos", type=Path, default=default, required=default is None)
    parser.add_argument("--weights", default="resnet50-imagenet")
    parser.add_argument("--n", type=int, default=3, help="photos to measure on")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with open(args.photos / "photos.csv", encoding="utf-8", newline="") as file:
        paths = [args.photos / row["path"] for row in csv.DictReader(file)]
    n = args.n + N_OTHERS
    rows = np.linspace(0, len(paths) - 1, n + 2).astype(int)[1:-1]
    chosen = [paths[row] for row in rows]
    photos = [chosen[i] for i in np.linspace(0, n - 1, args.n + 2).astype(int)[1:-1]]
    others = [path for path in chosen if path not in photos]
    with torch.inference_mode():
        table = measure(load_weights(args.weights), photos, others, args.scales)
    print(f"{args.weights}, {len(photos)} photos, scales {args.scales}; in 8 bits, scales from:")
    for row in table:
        print(
            f"  {row['convolutions']:28} {row['scales_from']:22} cosine {row['cosine_mean']:.5f} "
            f"p1 {row['cosine_p1']:.4f}  kept {row['keypoints_kept']:.3f}"
        )
    report = {**environment(), "weights": args.weights, "photos": len(photos)}
    write_json(args.json, {**report, "scales": args.scales, "rows": table})


if __name__ == "__main__":
    main()
