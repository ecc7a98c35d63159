"""What runs the network: weights on a device in a precision, from a pyramid level to its cells.

A level always runs on one thread of the processor, and different levels on different threads, so a
photo's features do not depend on n_jobs, on the other photos, or on the order of work.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delfsearch._validation import check_choice
from delfsearch.extraction.network import FoldedTrunk, layers
from delfsearch.extraction.pyramid import Level
from delfsearch.extraction.receptive_field import receptive_field, to_photo_pixels
from delfsearch.extraction.scores import Scorer
from delfsearch.extraction.strips import features_in_strips
from delfsearch.extraction.weights import Weights

PRECISIONS = ("auto", "fp32", "bf16")


class Cells(NamedTuple):
    """Cells of one pyramid level, in row-major order of the grid.

    scale : the pyramid scale. keypoints_xy (n, 2) float32 : centres in pixels of the original
    photo. half_box : half the sides (x, y) of the receptive field, in the same pixels. scores (n,)
    float32. features (n, 1024) float32, raw.
    """

    scale: float
    keypoints_xy: NDArray[np.float32]
    half_box: tuple[float, float]
    scores: NDArray[np.float32]
    features: NDArray[np.float32]


def processor_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware (AVX512_BF16, AMX or Arm BF16)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux: torch knows, in the versions that tell
        probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return bool(probe()) if probe is not None else False
    flags = {
        flag
        for line in text.splitlines()
        if line.startswith(("flags", "Features"))
        for flag in line.partition(":")[2].split()
    }
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def resolve_device(device: str) -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1" ... into a device that is there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"device must be 'auto', 'cpu' or another torch device; got {device!r}"
        ) from None
    if not _is_there(resolved):
        raise ValueError(
            f"device={device!r} is not there: torch sees {', '.join(_devices_here())}; use one of "
            "these, or device='auto'"
        )
    return resolved


def _is_there(device: torch.device) -> bool:
    if device.type == "cuda":  # asked without beginning to use it
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError):  # as each of torch's backends says it
        return False
    return True


def _devices_here() -> list[str]:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *(f"cuda:{i}" for i in range(gpus)), *mps]


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Turn "auto", "fp32" or "bf16" into a dtype that the device has.

    "auto" is bf16 on x86 processors and GPUs that multiply it in hardware (benchmarks/extraction.py
    prints what it costs in accuracy), fp32 elsewhere.
    """
    check_choice(precision, "precision", PRECISIONS)
    if precision == "fp32":
        return torch.float32
    on_gpu = device.type == "cuda"
    available = on_gpu or (device.type == "cpu" and processor_has_bf16())
    if precision == "bf16" and not available:
        if device.type != "cpu":
            raise ValueError(
                f"precision='bf16' needs a CUDA GPU or a processor; got device {device.type!r}: "
                "use precision='auto' or 'fp32'"
            )
        raise ValueError(
            f"precision='bf16' needs a processor with AVX512_BF16, AMX or Arm BF16; this one "
            f"({platform.machine()}) has none: use precision='auto' or 'fp32'"
        )
    if precision == "auto" and on_gpu:
        available = torch.cuda.get_device_capability(device)[0] >= 8  # older ones emulate it
    elif precision == "auto":
        available = available and platform.machine() in ("x86_64", "AMD64")
    return torch.bfloat16 if available else torch.float32


class Runtime:
    """Trunk and scorer of one set of weights, on one device, in one precision."""

    def __init__(self, weights: Weights, *, score: str, precision: str, device: str) -> None:
        self.weights = weights
        self.device = resolve_device(device)
        self.dtype = resolve_precision(precision, self.device)
        self.layers = layers(weights.layout)
        self.trunk = FoldedTrunk(
            weights.tensors,
            weights.layout,
            bn_eps=weights.bn_eps,
            input_std=weights.input_std,
            dtype=self.dtype,
            device=str(self.device),
        )
        self.scorer = Scorer(
            score,
            weights.attention,
            self.device,
            score_scale=weights.score_scale,
            dtype=self.dtype,
        )
        self._mean = torch.tensor(weights.input_mean, device=self.device)
        self._field = functools.lru_cache(maxsize=4096)(
            functools.partial(receptive_field, self.layers)
        )

    def dense(self, rgb: NDArray[np.uint8]) -> Tensor:
        """Return the raw features (h', w', 1024) of an image (h, w, 3), in the trunk's dtype."""
        image = torch.from_numpy(rgb)
        if self.device.type == "cpu":
            return features_in_strips(self.trunk, image, self._mean)[0].permute(1, 2, 0)
        return self.dense_batch(image[None])[0]

    def dense_batch(self, rgb: Tensor) -> Tensor:
        """Return the raw features (n, h', w', 1024) of images (n, h, w, 3) uint8 of one size."""
        rgb = rgb.to(self.device)
        x = torch.empty(rgb.shape, dtype=self.dtype, device=self.device)
        torch.sub(rgb, self._mean, out=x)  # in float32, rounded once, without a copy between
        return self.trunk(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def cells(
        self,
        level: Level,
        photo_size: tuple[int, int],
        *,
        score_threshold: float | None = None,
        best: int | None = None,
        border_cells: int = 0,
    ) -> Cells:
        """Run the network on one level; keep the cells that reach score_threshold, the best ones.

        best : how many to keep, ties by lower cell; None keeps all. border_cells : so many rows and
        columns along each edge of the grid are left out.
        """
        with torch.inference_mode():
            features = self.dense(level.rgb).flatten(0, 1)
            rows, found = self.candidates(
                level.scale,
                level.size,
                photo_size,
                self.scorer(features).cpu().numpy(),
                score_threshold=score_threshold,
                best=best,
                border_cells=border_cells,
            )
            kept = torch.from_numpy(rows).to(self.device)
            return found._replace(features=features[kept].float().cpu().numpy())

    def candidates(
        self,
        scale: float,
        level_size: tuple[int, int],
        photo_size: tuple[int, int],
        scores: NDArray[np.float32],
        *,
        score_threshold: float | None,
        best: int | None,
        border_cells: int,
    ) -> tuple[NDArray[np.int64], Cells]:
        """Return the rows of the cells that `cells` keeps, given all scores, and them bare.

        Without features: (n, 0).
        """
        (x, y), half_box = self._axes(level_size, photo_size)
        inner = _inner_rows(len(y), len(x), border_cells)
        rows = inner[_select(scores[inner], score_threshold, best)]
        return rows, Cells(
            scale=scale,
            keypoints_xy=np.stack([x[rows % len(x)], y[rows // len(x)]], axis=1),
            half_box=half_box,
            scores=scores[rows],
            features=np.zeros((len(rows), 0), np.float32),
        )

    def n_inner_cells(self, level_size: tuple[int, int], border_cells: int) -> int:
        """Return how many cells of a level `cells` chooses from."""
        sides = [self._field(side).n_cells for side in level_size]
        return max(0, sides[0] - 2 * border_cells) * max(0, sides[1] - 2 * border_cells)

    def score_grid(self, level: Level) -> NDArray[np.float32]:
        """Return the scores (h', w') of all cells of a level."""
        with torch.inference_mode():
            grid: NDArray[np.float32] = self.scorer(self.dense(level.rgb)).cpu().numpy()
        return grid

    def geometry(
        self, level_size: tuple[int, int], photo_size: tuple[int, int]
    ) -> tuple[NDArray[np.float32], tuple[float, float]]:
        """Return the cells' centres (h', w', 2) and half box sides (x, y), in photo pixels."""
        (x, y), half_box = self._axes(level_size, photo_size)
        return np.stack(np.meshgrid(x, y), axis=-1), half_box

    def _axes(
        self, level_size: tuple[int, int], photo_size: tuple[int, int]
    ) -> tuple[list[NDArray[np.float32]], tuple[float, float]]:
        """Return the x of the grid's columns and the y of its rows, and half box sides."""
        axes: list[NDArray[np.float32]] = []
        halves = []
        for level_side, photo_side in zip(level_size, photo_size):
            field = self._field(level_side)
            centres = to_photo_pixels(field.centres(), level_side, photo_side)
            axes.append(centres.astype(np.float32))
            halves.append(field.size * photo_side / level_side / 2)
        return axes, (halves[0], halves[1])


def _inner_rows(height: int, width: int, border: int) -> NDArray[np.int64]:
    """Return the row-major numbers of the cells of a grid that are not on its border."""
    numbers = np.arange(height * width, dtype=np.int64).reshape(height, width)
    return numbers[
        border : max(border, height - border), border : max(border, width - border)
    ].ravel()


def _select(
    scores: NDArray[np.float32], threshold: float | None, best: int | None
) -> NDArray[np.int64]:
    """Return the rows to keep, rising: those that reach the threshold, of these the best."""
    rows = np.arange(len(scores)) if threshold is None else np.flatnonzero(scores >= threshold)
    if best is not None and len(rows) > best:
        values = scores[rows]
        least = np.partition(values, len(values) - best)[len(values) - best]
        wanted = values > least
        ties = np.flatnonzero(values == least)
        wanted[ties[: best - np.count_nonzero(wanted)]] = True
        rows = rows[wanted]
    return rows.astype(np.int64)
