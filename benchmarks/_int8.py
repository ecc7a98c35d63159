"""The trial of 8-bit integers that benchmarks/extraction.py shows: not part of the library.

The 3x3 convolutions, and the 1x1 ones after them, run in int8. These are three quarters of the
arithmetic, and processors with VNNI do it twice as fast as in bfloat16. What they read is narrow
and not negative, so one scale serves a whole tensor. The sums that run through a block and the 1x1
convolutions that read them (a few channels are hundreds of times as large as others) stay in
floating point; so do the first convolution, the shortcuts and the features.

Kernels have a scale for each output channel. The scale of an activation is its largest value in a
small copy of the same photo. benchmarks/quantization.py compares other sets and calibrations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from delfsearch.extraction.network import FoldedTrunk, _fold
from delfsearch.extraction.strips import features_in_strips

_LEVELS = 255
# Kernels are laid out once, for tensors of about so many rows and columns. oneDNN wants another
# layout for tiny ones, and it takes a hundred times as long to get from one to the other.
_PACKED_FOR = ((48, 64), (2, 4))
_TINY = 64  # rows times columns


class Int8Trunk(FoldedTrunk):
    """FoldedTrunk that makes trunks with the conv2 and conv3 of every unit in int8.

    Its arguments are FoldedTrunk's. It computes in floating point itself.
    """

    def __init__(self, tensors: Mapping[str, Tensor], layout: str, **options: Any) -> None:
        super().__init__(tensors, layout, **options)
        eps = options["bn_eps"]
        self.inner: dict[str, tuple[Tensor, Tensor]] = {}  # conv1 in float32
        self.kernels: dict[str, _Kernel] = {}
        for unit in self.units:
            conv1, conv2, conv3 = (
                (f"{unit.prefix}.conv{i}", f"{unit.prefix}.bn{i}") for i in (1, 2, 3)
            )
            kernel, bias = _fold(tensors, *conv1, eps)
            self.inner[conv1[0]] = kernel.float(), bias.float()
            for names, stride in ((conv2, unit.stride_3x3), (conv3, 1)):
                self.kernels[names[0]] = _quantized(*_fold(tensors, *names, eps), stride)

    def calibrated(self, rgb: Tensor, mean: Tensor) -> FoldedTrunk:
        """Return the trunk in int8 for images like this one: (h, w, 3) uint8; mean (3,)."""
        observed = _Observed(self)
        features_in_strips(observed, rgb, mean)
        return _CalibratedTrunk(self, observed.largest)


class _Observed(FoldedTrunk):
    """A trunk that notes the largest output of each of its convolutions with a ReLU."""

    def __init__(self, trunk: FoldedTrunk) -> None:
        self.__dict__.update(vars(trunk))
        self.largest: dict[str, float] = {}

    def conv_relu(
        self, name: str, x: Tensor, stride: int, padding: int | tuple[int, int]
    ) -> Tensor:
        y = super().conv_relu(name, x, stride, padding)
        self.largest[name] = max(self.largest.get(name, 0.0), float(y.amax()))
        return y


class _CalibratedTrunk(FoldedTrunk):
    def __init__(self, trunk: Int8Trunk, largest: Mapping[str, float]) -> None:
        self.__dict__.update(vars(trunk))
        self._kernels = trunk.kernels
        self._scales = {name: max(value, 1e-6) / _LEVELS for name, value in largest.items()}
        # conv1 counts in steps of its scale, so that rounding is all that is left to do.
        scaled = {}
        for name, (kernel, bias) in trunk.inner.items():
            kernel, bias = kernel / self._scales[name], bias / self._scales[name]
            kernel = kernel.to(self.dtype).contiguous(memory_format=torch.channels_last)
            scaled[name] = kernel, bias.to(self.dtype)
        self._weights = {**trunk._weights, **scaled}

    def conv_relu(
        self, name: str, x: Tensor, stride: int, padding: int | tuple[int, int]
    ) -> Tensor:
        """As FoldedTrunk's; within a unit the result is uint8."""
        prefix, _, kind = name.rpartition(".")
        if not prefix:
            return super().conv_relu(name, x, stride, padding)
        sides = [padding] * 2 if isinstance(padding, int) else list(padding)
        if kind == "conv1":
            x = _fused_conv_clamp(x, *self._weights[name], stride, sides).round_()
            return x.short().byte()  # torch has fast code for both steps, but not for them at once
        scales = self._scales[f"{prefix}.conv1"], self._scales[name]
        return _int8_conv_relu(x, self._kernels[name], *scales, stride, sides)

    def conv_add_relu(self, name: str, x: Tensor, shortcut: Tensor) -> Tensor:
        """As FoldedTrunk's, of a uint8 x."""
        scale = self._scales[f"{name.rpartition('.')[0]}.conv2"]
        return _int8_conv_add_relu(shortcut, x, self._kernels[name], scale)


class _Kernel(NamedTuple):
    """A convolution in int8: its kernel in two layouts, scale and zero of each output channel."""

    packed_large: Tensor
    packed_tiny: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor

    def packed(self, x: Tensor) -> Tensor:
        """Return the layout for an input (1, c, h, w)."""
        return self.packed_tiny if x.shape[2] * x.shape[3] < _TINY else self.packed_large


# The operators that torch.compile emits for quantized networks and, with "hardtanh", for others.
def _quantized(kernel: Tensor, bias: Tensor, stride: int) -> _Kernel:
    scales = kernel.abs().amax((1, 2, 3)).clamp(min=1e-12) / 127
    rounded = (kernel / scales[:, None, None, None]).round().to(torch.int8)
    padding = [kernel.shape[2] // 2] * 2
    packed = [
        torch.ops.onednn.qconv_prepack(
            rounded, scales.float(), 1.0, 0, [stride] * 2, padding, [1, 1], 1,
            [1, kernel.shape[1], *size],
        )
        for size in _PACKED_FOR
    ]  # fmt: skip
    zeros = torch.zeros(len(scales), dtype=torch.long)
    return _Kernel(packed[0], packed[1], scales.float(), zeros, bias.float())


def _int8_conv_relu(
    x: Tensor, k: _Kernel, scale: float, scale_out: float, stride: int, padding: list[int]
) -> Tensor:
    return torch.ops.onednn.qconv2d_pointwise(
        x, scale, 0, k.packed(x), k.scales, k.zeros, k.bias, [stride] * 2, padding, [1, 1], 1,
        scale_out, 0, torch.uint8, "relu", [], "",
    )  # fmt: skip


def _int8_conv_add_relu(shortcut: Tensor, x: Tensor, k: _Kernel, scale: float) -> Tensor:
    return torch.ops.onednn.qconv2d_pointwise.binary(
        x, scale, 0, k.packed(x), k.scales, k.zeros, shortcut, k.bias, [1, 1], [0, 0], [1, 1], 1,
        1.0, 0, shortcut.dtype, 1.0, 0, "sum", 1.0, "relu", [], "",
    )  # fmt: skip


def _fused_conv_clamp(
    x: Tensor, kernel: Tensor, bias: Tensor, stride: int, padding: list[int]
) -> Tensor:
    limits = [0.0, float(_LEVELS)]
    return torch.ops.mkldnn._convolution_pointwise(
        x, kernel, bias, padding, [stride] * 2, [1, 1], 1, "hardtanh", limits, ""
    )
