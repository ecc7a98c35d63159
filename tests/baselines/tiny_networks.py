"""Small networks with seeded random weights, and synthetic photos: nothing needs a download."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def resnet_tensors(depths=(1, 2, 1, 2), width: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """A bottleneck ResNet of any depth and width under torchvision's names."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def put(conv: str, bn: str, n_out: int, n_in: int, kernel: int) -> None:
        shape = (n_out, n_in, kernel, kernel)
        gain = (2.0 / (n_in * kernel * kernel)) ** 0.5
        tensors[f"{conv}.weight"] = torch.randn(shape, generator=generator) * gain
        tensors[f"{bn}.weight"] = torch.rand(n_out, generator=generator) + 0.5
        tensors[f"{bn}.bias"] = torch.randn(n_out, generator=generator) * 0.1
        tensors[f"{bn}.running_mean"] = torch.randn(n_out, generator=generator) * 0.1
        tensors[f"{bn}.running_var"] = torch.rand(n_out, generator=generator) + 0.5

    put("conv1", "bn1", width, 3, 7)
    n_in = width
    for block, depth in enumerate(depths):
        inner = width * 2**block
        for i in range(depth):
            prefix = f"layer{block + 1}.{i}"
            put(f"{prefix}.conv1", f"{prefix}.bn1", inner, n_in, 1)
            put(f"{prefix}.conv2", f"{prefix}.bn2", inner, inner, 3)
            put(f"{prefix}.conv3", f"{prefix}.bn3", 4 * inner, inner, 1)
            if i == 0:
                put(f"{prefix}.downsample.0", f"{prefix}.downsample.1", 4 * inner, n_in, 1)
            n_in = 4 * inner
    return tensors


def vgg_tensors(widths=(4, 6, 8, 8, 10), seed: int = 0) -> dict[str, Tensor]:
    """A VGG16 of other widths under torchvision's names."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    blocks = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    n_in = 3
    for numbers, width in zip(blocks, widths):
        for number in numbers:
            kernel = torch.randn((width, n_in, 3, 3), generator=generator)
            tensors[f"features.{number}.weight"] = kernel * (2.0 / (9 * n_in)) ** 0.5
            tensors[f"features.{number}.bias"] = torch.randn(width, generator=generator) * 0.1
            n_in = width
    return tensors


def photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """Smooth random blobs in colour, with some noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(0, 255, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = generator.uniform(-10, 10, (height, width, 3))
    return Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8))


def xfeat_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """XFeat of its own shape with fewer channels."""
    g = torch.Generator().manual_seed(seed)
    t: dict[str, torch.Tensor] = {}

    def layer(name: str, n_in: int, n_out: int, kernel: int) -> None:
        gain = (2.0 / (n_in * kernel**2)) ** 0.5
        t[f"{name}.layer.0.weight"] = torch.randn((n_out, n_in, kernel, kernel), generator=g) * gain
        t[f"{name}.layer.1.running_mean"] = torch.randn(n_out, generator=g) * 0.1
        t[f"{name}.layer.1.running_var"] = torch.rand(n_out, generator=g) + 0.5

    def last(name: str, n_in: int, n_out: int) -> None:
        t[f"{name}.weight"] = torch.randn((n_out, n_in, 1, 1), generator=g) * n_in**-0.5
        t[f"{name}.bias"] = torch.randn(n_out, generator=g) * 0.1

    blocks = {
        "block1": [(1, 4, 3), (4, 4, 3), (4, 4, 3), (4, 6, 3)],
        "block2": [(6, 6, 3), (6, 6, 3)],
        "block3": [(6, 8, 3), (8, 8, 3), (8, 8, 1)],
        "block4": [(8, 8, 3), (8, 8, 3), (8, 8, 3)],
        "block5": [(8, 8, 3), (8, 8, 3), (8, 8, 3), (8, 8, 1)],
        "block_fusion": [(8, 8, 3), (8, 8, 3)],
        "heatmap_head": [(8, 8, 1), (8, 8, 1)],
        "keypoint_head": [(64, 8, 1), (8, 8, 1), (8, 8, 1)],
    }
    for block, layers in blocks.items():
        for i, sizes in enumerate(layers):
            layer(f"{block}.{i}", *sizes)
    last("skip1.1", 1, 6)
    last("block_fusion.2", 8, 8)
    last("heatmap_head.2", 8, 1)
    last("keypoint_head.3", 8, 65)
    return t


def aliked_tensors(seed: int = 0, n_places: int = 4) -> dict[str, torch.Tensor]:
    """ALIKED of its own shape with fewer channels."""
    g = torch.Generator().manual_seed(seed)
    t: dict[str, torch.Tensor] = {}

    def conv(name: str, n_in: int, n_out: int, kernel: int, bias: bool = False) -> None:
        gain = (1.0 / (n_in * kernel**2)) ** 0.5
        t[f"{name}.weight"] = torch.randn((n_out, n_in, kernel, kernel), generator=g) * gain
        if bias:
            t[f"{name}.bias"] = torch.randn(n_out, generator=g)

    channels = (3, 4, 6, 8, 8)
    for i in (1, 2, 3, 4):
        n_in, n_out = channels[i - 1], channels[i]
        for j, first in ((1, n_in), (2, n_out)):
            name = f"block{i}.conv{j}"
            if i > 2:
                conv(f"{name}.offset_conv", first, 18, 3, bias=True)
                name += ".regular_conv"
            conv(name, first, n_out, 3)
            t[f"block{i}.bn{j}.weight"] = torch.rand(n_out, generator=g) + 0.5
            t[f"block{i}.bn{j}.bias"] = torch.randn(n_out, generator=g) * 0.1
            t[f"block{i}.bn{j}.running_mean"] = torch.randn(n_out, generator=g) * 0.1
            t[f"block{i}.bn{j}.running_var"] = torch.rand(n_out, generator=g) + 0.5
        if i > 1:
            conv(f"block{i}.downsample", n_in, n_out, 1, bias=True)
        conv(f"conv{i}", n_out, 2, 1)
    for layer, (n_in, n_out, kernel) in zip(
        (0, 2, 4, 6), ((8, 4, 1), (4, 4, 3), (4, 4, 3), (4, 1, 3))
    ):
        conv(f"score_head.{layer}", n_in, n_out, kernel)
    conv("desc_head.offset_conv.0", 8, 2 * n_places, 3, bias=True)
    conv("desc_head.offset_conv.2", 2 * n_places, 2 * n_places, 1, bias=True)
    conv("desc_head.sf_conv", 8, 8, 1)
    t["desc_head.agg_weights"] = torch.randn((n_places, 8, 8), generator=g)
    return t
