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
