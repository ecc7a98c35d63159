"""The trunk with its 3x3 convolutions, and the 1x1 ones after them, in 8-bit integers.

These are three quarters of the arithmetic, and processors with VNNI do it twice as fast as in
bfloat16. What they read is narrow and not negative, so one scale serves a whole tensor. The sums
that run through a block and the 1x1 convolutions that read them (a few channels are hundreds of
times as large as others) stay in floating point; so do the first convolution, the shortcuts and the
features.

Kernels have a scale for each output channel. The scale of an activation is its largest value in a
small copy of the same photo, which the network first sees in floating point: nothing needs to be
calibrated beforehand, whatever the weights, and a photo's features follow from the photo alone.
docs/extraction.md says what it costs in accuracy and what other calibrations would.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from delfsearch.extraction.network import FoldedTrunk, _fold, packed_kernel
from delfsearch.extraction.strips import features_in_strips

_LEVELS = 255
# Kernels are laid out once, for tensors of about so many rows and columns. oneDNN wants another
# layout for tiny ones, and it takes a hundred times as long to get from one to the other.
_PACKED_FOR = ((48, 64), (2, 4))
_TINY = 64  # rows times columns


def processor_has_int8() -> bool:
    """Whether processor and torch multiply 8-bit integers fast (VNNI) and rightly."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = text.partition("\nflags")[2].partition("\n")[0].split()
    return bool({"avx512_vnni", "avx_vnni"} & set(flags)) and _int8_works()


class Int8Trunk(FoldedTrunk):
    """FoldedTrunk that makes trunks with the conv2 and conv3 of every unit in int8, on a processor.

    Its arguments are FoldedTrunk's. It computes in floating point itself.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        layout: str,
        *,
        bn_eps: float,
        input_std: tuple[float, float, float] = (1.0, 1.0, 1.0),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(tensors, layout, bn_eps=bn_eps, input_std=input_std, dtype=dtype)
        self.inner: dict[str, tuple[Tensor, Tensor]] = {}  # conv1 in float32
        self.kernels: dict[str, _Kernel] = {}
        for unit in self.units:
            conv1, conv2, conv3 = (
                (f"{unit.prefix}.conv{i}", f"{unit.prefix}.bn{i}") for i in (1, 2, 3)
            )
            kernel, bias = _fold(tensors, *conv1, bn_eps)
            self.inner[conv1[0]] = kernel.float(), bias.float()
            for names, stride in ((conv2, unit.stride_3x3), (conv3, 1)):
                self.kernels[names[0]] = _quantized(*_fold(tensors, *names, bn_eps), stride)

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
        steps = {f"{unit.prefix}.conv1": unit.stride_1x1 for unit in self.units}
        packed = {n: packed_kernel(scaled[n][0], steps[n]) for n in scaled if n in trunk._packed}
        self._packed = {**trunk._packed, **{n: k for n, k in packed.items() if k is not None}}

    def conv_relu(
        self, name: str, x: Tensor, stride: int, padding: int | tuple[int, int]
    ) -> Tensor:
        """As FoldedTrunk's; within a unit the result is uint8."""
        prefix, _, kind = name.rpartition(".")
        if not prefix:
            return super().conv_relu(name, x, stride, padding)
        sides = [padding] * 2 if isinstance(padding, int) else list(padding)
        if kind == "conv1":
            x = _fused_conv_clamp(x, *self._kernel(name, x), stride, sides).round_()
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
# They are not public, so processor_has_int8() tries them first.
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
    return torch.ops.onednn.qconv2d_pointwise(  # type: ignore[no-any-return]
        x, scale, 0, k.packed(x), k.scales, k.zeros, k.bias, [stride] * 2, padding, [1, 1], 1,
        scale_out, 0, torch.uint8, "relu", [], "",
    )  # fmt: skip


def _int8_conv_add_relu(shortcut: Tensor, x: Tensor, k: _Kernel, scale: float) -> Tensor:
    return torch.ops.onednn.qconv2d_pointwise.binary(  # type: ignore[no-any-return]
        x, scale, 0, k.packed(x), k.scales, k.zeros, shortcut, k.bias, [1, 1], [0, 0], [1, 1], 1,
        1.0, 0, shortcut.dtype, 1.0, 0, "sum", 1.0, "relu", [], "",
    )  # fmt: skip


def _fused_conv_clamp(
    x: Tensor, kernel: Tensor, bias: Tensor, stride: int, padding: list[int]
) -> Tensor:
    limits = [0.0, float(_LEVELS)]
    return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
        x, kernel, bias, padding, [stride] * 2, [1, 1], 1, "hardtanh", limits, ""
    )


def _int8_works() -> bool:
    """Whether this torch has the operators, and they compute the same as in floating point."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    n = 16 * 5 * 7
    x = 255 - torch.arange(n).remainder(13).reshape(1, 16, 5, 7).float()
    kernel = (torch.arange(8 * 16).remainder(11).reshape(8, 16, 1, 1) - 4) / 8
    kernel[:, :8] = kernel.amax()  # with x so large, sums of pairs saturate where VNNI is missing
    bias = (torch.arange(8) - 4) / 4
    x, kernel = (t.contiguous(memory_format=torch.channels_last) for t in (x, kernel))
    shortcut = x[:, :8].contiguous(memory_format=torch.channels_last)
    plain = F.conv2d(x, kernel, bias)
    top = float(plain.max())
    try:
        k = _quantized(kernel, bias, 1)
        clamped = _fused_conv_clamp(x, kernel / 8, bias / 8, 1, [0, 0])
        relu = _int8_conv_relu(x.byte(), k, 1.0, top / _LEVELS, 1, [0, 0])
        added = _int8_conv_add_relu(shortcut.clone(), x.byte(), k, 1.0)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    return (
        torch.allclose(clamped, (plain / 8).clamp(0, _LEVELS), rtol=1e-4, atol=1e-3)
        and torch.allclose(relu * (top / _LEVELS), plain.relu(), rtol=0.02, atol=0.02 * top)
        and torch.allclose(added, (plain + shortcut).relu(), rtol=0.02, atol=0.02 * top)
    )
