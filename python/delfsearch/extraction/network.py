"""ResNet50 up to conv4_x, fully convolutional, in plain PyTorch, for the stride layouts in use.

Every known set of ResNet50 weights computes the same units of a 1x1, a 3x3 and a 1x1 convolution,
but they put the strides in different places and pad differently; running weights under another
layout than they were trained in silently ruins them.

    layout       stride of 2 on                            first pooling          RF/stride/padding
    keras        first 1x1 of blocks 3, 4 (Keras v1,       pads 1 on each side    291 / 16 / 145
                 He et al.'s Caffe model)
    torchvision  first 3x3 of blocks 3, 4                  pads 1 on each side    267 / 16 / 133
    slim         last 3x3 of blocks 2, 3, 4 (TF-slim,      TensorFlow's "SAME"    291 / 32 / 145
                 official DELF of 2017 and 2019)
    slim16       last 3x3 of blocks 2, 3                   TensorFlow's "SAME"    291 / 16 / 145
    delg         as keras, and every other cell of the     none                   291 / 32 / 143
                 last (official DELF and DELG, TF2 code)
    delg16       as keras (the same, block3_strides off)   none                   291 / 16 / 143

conv1 pads 3 and the 3x3 convolutions 1 on each side in all of them (TF-slim too pads explicitly
where it strides), except that conv1 of delg and delg16 is padded by TensorFlow's "SAME". Under
"SAME" the odd cell of padding lies on the high side: in slim an axis whose length after conv1 is
even is padded there only, which moves all centres by 2 pixels and the padding to 143, in delg an
even axis has a padding of 142. Receptive fields are derived per axis and per length, see
receptive_field.py. slim16 and delg16 compute the features of slim and delg and three more between.

ResNet50Conv4 is the reference: unfused, NCHW, trainable, torchvision's tensor names. FoldedTrunk
is for inference: batch normalisation and input normalisation folded into the convolutions,
channels_last, ReLU and residual additions fused into the convolutions where oneDNN or cuDNN can.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delfsearch.extraction.receptive_field import Layer

STRIDE_LAYOUTS = ("keras", "torchvision", "slim", "slim16", "delg", "delg16")
N_CHANNELS = 1024
_BLOCKS = ((64, 3), (128, 4), (256, 6))  # conv2_x, conv3_x, conv4_x: width, units


class Unit(NamedTuple):
    """One bottleneck unit: its name prefix, width, the strides of its 1x1 and 3x3 convolution."""

    prefix: str
    width: int
    stride_1x1: int
    stride_3x3: int
    projects: bool

    @property
    def block(self) -> int:
        """0 for conv2_x (layer1) to 2 for conv4_x (layer3)."""
        return int(self.prefix[5]) - 1


def units(layout: str) -> list[Unit]:
    """Return the 13 bottleneck units of conv2_x to conv4_x under a stride layout."""
    if layout not in STRIDE_LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(STRIDE_LAYOUTS)}; got {layout!r}")
    result = []
    for block, (width, n_units) in enumerate(_BLOCKS):
        for i in range(n_units):
            first = 2 if i == 0 and block > 0 else 1
            last = 2 if i == n_units - 1 and (block < 2 or layout == "slim") else 1
            strides = (1, last)
            if layout == "torchvision":
                strides = (1, first)
            elif layout in ("keras", "delg", "delg16"):
                strides = (first, 1)
            result.append(Unit(f"layer{block + 1}.{i}", width, *strides, projects=i == 0))
    return result


def economical_units(layout: str) -> list[Unit]:
    """Return units that compute the same features with the strides where they save most work.

    Only where batch normalisation has fixed statistics: see FoldedTrunk.
    """
    return units({"keras": "slim16", "delg16": "slim16", "delg": "slim"}.get(layout, layout))


def layers(layout: str) -> list[Layer]:
    """Return the layers of the path through all 3x3 convolutions, for receptive_field()."""
    result = [Layer(7, 2, 3), Layer(3, 2, 1)]
    if layout.startswith("slim"):
        result[1] = Layer(3, 2, "same")
    elif layout.startswith("delg"):
        result = [Layer(7, 2, "same"), Layer(3, 2, 0)]
    for unit in units(layout):
        result += [Layer(1, unit.stride_1x1, 0), Layer(3, unit.stride_3x3, 1), Layer(1, 1, 0)]
    if layout == "delg":
        result.append(Layer(1, 2, 0))
    return result


def _pad_conv1(x: Tensor, layout: str) -> Tensor:
    """Pad the input for conv1, which then pads nothing itself (delg) or 3 on each side."""
    if not layout.startswith("delg"):
        return x
    height, width = x.shape[-2:]  # "SAME": 5 cells in all where the length is even, 6 where odd
    return F.pad(x, (2 + width % 2, 3, 2 + height % 2, 3))


def _conv1_padding(layout: str) -> int:
    return 0 if layout.startswith("delg") else 3


def _pool(x: Tensor, layout: str) -> Tensor:
    if layout.startswith("slim"):  # "SAME"; x >= 0 after ReLU, so zeros pad like -inf
        height, width = x.shape[-2:]
        x = F.pad(x, (width % 2, 1, height % 2, 1))
        return F.max_pool2d(x, 3, 2)
    return F.max_pool2d(x, 3, 2, 0 if layout.startswith("delg") else 1)


class _Bottleneck(nn.Module):
    def __init__(self, n_in: int, unit: Unit, eps: float) -> None:
        super().__init__()
        width, n_out = unit.width, 4 * unit.width
        self.stride = unit.stride_1x1 * unit.stride_3x3
        self.conv1 = nn.Conv2d(n_in, width, 1, unit.stride_1x1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, unit.stride_3x3, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps)
        self.conv3 = nn.Conv2d(width, n_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out, eps)
        self.downsample: nn.Module | None = None
        if unit.projects:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, self.stride, bias=False), nn.BatchNorm2d(n_out, eps)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            shortcut = self.downsample(x)
        else:
            shortcut = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(y + shortcut)


class ResNet50Conv4(nn.Module):
    """The reference network: (n, 3, h, w) normalised RGB -> (n, 1024, h', w') conv4_x features.

    layout : one of STRIDE_LAYOUTS. bn_eps : batch normalisation's epsilon, as in training.
    Tensor names are torchvision's (conv1, bn1, layer1 to layer3).
    """

    def __init__(self, layout: str = "keras", bn_eps: float = 1e-5) -> None:
        super().__init__()
        self.layout = layout
        self.conv1 = nn.Conv2d(3, 64, 7, 2, _conv1_padding(layout), bias=False)
        self.bn1 = nn.BatchNorm2d(64, bn_eps)
        n_in = 64
        blocks: dict[str, list[nn.Module]] = {}
        for unit in units(layout):
            blocks.setdefault(unit.prefix[:6], []).append(_Bottleneck(n_in, unit, bn_eps))
            n_in = 4 * unit.width
        self.layer1, self.layer2, self.layer3 = (nn.Sequential(*b) for b in blocks.values())

    def forward(self, x: Tensor) -> Tensor:
        """Return the (n, 1024, h', w') features of a (n, 3, h, w) batch."""
        x = torch.relu(self.bn1(self.conv1(_pad_conv1(x, self.layout))))
        x = self.layer3(self.layer2(self.layer1(_pool(x, self.layout))))
        return x[:, :, ::2, ::2] if self.layout == "delg" else x


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that conv4_x features need."""
    with torch.device("meta"):
        state = ResNet50Conv4().state_dict()
    return {k: tuple(v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}


def _fold(tensors: Mapping[str, Tensor], conv: str, bn: str, eps: float) -> tuple[Tensor, Tensor]:
    """Fold y = gamma (conv(x) - mean) / sqrt(var + eps) + beta into one convolution, in float64."""
    kernel = tensors[f"{conv}.weight"].double()
    mean, var = tensors[f"{bn}.running_mean"].double(), tensors[f"{bn}.running_var"].double()
    gain = tensors[f"{bn}.weight"].double() / torch.sqrt(var + eps)
    return kernel * gain[:, None, None, None], tensors[f"{bn}.bias"].double() - mean * gain


class FoldedTrunk:
    """Inference only: (1, 3, h, w) float32 RGB in 0 ... 255 minus input_mean -> conv4_x features.

    tensors : as tensor_shapes() names them. input_std (3,) is folded into conv1. dtype : float32 or
    bfloat16, of weights and activations. n_blocks : 3 for conv4_x; 0 to 2 stop after that many
    blocks (training keeps those that it doesn't change here). Runs channels_last on `device`.

    In the "keras" layout the stride of a block's first 1x1 (both the unit's and the shortcut's)
    drops three of four outputs of the block before it. We move it back to that block's last 3x3:
    the same numbers, since 1x1 convolutions, ReLU and sums act per pixel, for 8% less work. The
    "delg" layouts likewise.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        layout: str,
        *,
        bn_eps: float,
        input_std: tuple[float, float, float] = (1.0, 1.0, 1.0),
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        n_blocks: int = 3,
    ) -> None:
        self.layout = layout
        self.dtype = dtype
        self.device = torch.device(device)
        self.units = [unit for unit in economical_units(layout) if unit.block < n_blocks]
        self._weights: dict[str, tuple[Tensor, Tensor]] = {}

        def put(name: str, kernel: Tensor, bias: Tensor) -> None:
            kernel = kernel.to(self.device, dtype).contiguous(memory_format=torch.channels_last)
            self._weights[name] = kernel, bias.to(self.device, dtype)

        kernel, bias = _fold(tensors, "conv1", "bn1", bn_eps)
        put("conv1", kernel / torch.tensor(input_std, dtype=torch.float64)[:, None, None], bias)
        for unit in self.units:
            for i in "123":
                name = f"{unit.prefix}.conv{i}"
                put(name, *_fold(tensors, name, f"{unit.prefix}.bn{i}", bn_eps))
            if unit.projects:
                name = f"{unit.prefix}.downsample"
                put(name, *_fold(tensors, f"{name}.0", f"{name}.1", bn_eps))
        self.fused = fused_operators(self.device, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (n, 1024, h', w') features of dtype, channels_last."""
        if self.device.type == "cuda" and self.dtype == torch.float32:
            # Without this a GPU rounds float32 factors to 11 bits (TF32).
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                return self._run(x)
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        x = x.to(self.device, self.dtype, memory_format=torch.channels_last)
        x = self.conv_relu("conv1", _pad_conv1(x, self.layout), 2, _conv1_padding(self.layout))
        x = _pool(x, self.layout)
        for unit in self.units:
            y = self.conv_relu(f"{unit.prefix}.conv1", x, unit.stride_1x1, 0)
            y = self.conv_relu(f"{unit.prefix}.conv2", y, unit.stride_3x3, 1)
            x = self.conv_add_relu(f"{unit.prefix}.conv3", y, self.shortcut(unit, x))
        return x

    def shortcut(self, unit: Unit, x: Tensor) -> Tensor:
        """Return what a unit adds to its last convolution: x itself, thinned out or projected."""
        stride = unit.stride_1x1 * unit.stride_3x3
        if unit.projects:
            return self._convolve(f"{unit.prefix}.downsample", x, stride, 0)
        if stride > 1:
            return x[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)
        return x

    def conv_relu(
        self, name: str, x: Tensor, stride: int, padding: int | tuple[int, int]
    ) -> Tensor:
        """Return ReLU of the named convolution of x; padding : of both axes, or (rows, columns)."""
        if self.fused is not None and not _errs_in_bf16(x):
            sides = [padding] * 2 if isinstance(padding, int) else list(padding)
            return self.fused.conv_relu(x, *self._weights[name], stride, sides)
        return self._convolve(name, x, stride, padding).relu_()

    def conv_add_relu(self, name: str, x: Tensor, shortcut: Tensor) -> Tensor:
        """Return ReLU of the named convolution of x plus shortcut, whose memory may be reused."""
        if self.fused is not None and not _errs_in_bf16(x):
            return self.fused.conv_add_relu(shortcut, x, *self._weights[name])
        return self._convolve(name, x, 1, 0).add_(shortcut).relu_()

    def _convolve(
        self, name: str, x: Tensor, stride: int, padding: int | tuple[int, int]
    ) -> Tensor:
        kernel, bias = self._weights[name]
        if not _errs_in_bf16(x):
            return F.conv2d(x, kernel, bias, stride, padding)
        return F.conv2d(x.float(), kernel.float(), bias.float(), stride, padding).to(
            self.dtype, memory_format=torch.channels_last
        )


def _errs_in_bf16(x: Tensor) -> bool:
    """Whether torch's bfloat16 convolutions cannot be trusted with x.

    Where an axis has one cell, before or after a stride, its layouts are ambiguous, and on
    processors with AMX the values are wrong. Such activations are small.
    """
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and min(x.shape[2:]) <= 2


class _OneDnn:
    """The operators that torch.compile itself emits for convolutions on a CPU."""

    @staticmethod
    def conv_relu(
        x: Tensor, kernel: Tensor, bias: Tensor, stride: int, padding: list[int]
    ) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
            x, kernel, bias, padding, [stride] * 2, [1, 1], 1, "relu", [], ""
        )

    @staticmethod
    def conv_add_relu(shortcut: Tensor, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise_.binary(  # type: ignore[no-any-return]
            shortcut, x, kernel, bias, [0, 0], [1, 1], [1, 1], 1, "add", 1.0, "relu", [], None
        )


class _CuDnn:
    """The operators that TorchScript emits for frozen convolutions on a GPU."""

    @staticmethod
    def conv_relu(
        x: Tensor, kernel: Tensor, bias: Tensor, stride: int, padding: list[int]
    ) -> Tensor:
        return torch.cudnn_convolution_relu(x, kernel, bias, [stride] * 2, padding, [1, 1], 1)

    @staticmethod
    def conv_add_relu(shortcut: Tensor, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return torch.cudnn_convolution_add_relu(
            x, kernel, shortcut, 1.0, bias, [1, 1], [0, 0], [1, 1], 1
        )


def fused_operators(
    device: torch.device, dtype: torch.dtype
) -> type[_OneDnn] | type[_CuDnn] | None:
    """Return the fused operators that this torch has for a device and that compute the same.

    They are not public: where there are none, or they fail, the public ones take over.
    """
    operators: type[_OneDnn] | type[_CuDnn]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        operators = _OneDnn
    elif device.type == "cuda" and torch.backends.cudnn.is_available():  # type: ignore[no-untyped-call]
        operators = _CuDnn
    else:
        return None
    n = 16 * 5 * 7
    x = (torch.arange(n).remainder(13).reshape(1, 16, 5, 7) - 6) / 8
    kernel = (torch.arange(8 * 16).remainder(11).reshape(8, 16, 1, 1) - 5) / 8
    bias = (torch.arange(8) - 4) / 4
    x, kernel, bias = (t.to(device, dtype) for t in (x, kernel, bias))
    x, kernel = (t.contiguous(memory_format=torch.channels_last) for t in (x, kernel))
    shortcut = x[:, :8].contiguous(memory_format=torch.channels_last)
    plain = F.conv2d(x, kernel, bias)
    try:
        relu = operators.conv_relu(x, kernel, bias, 1, [0, 0])
        added = operators.conv_add_relu(shortcut.clone(), x, kernel, bias)
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    if device.type == "cuda" and dtype == torch.float32:
        tolerance = 1e-2  # a GPU may round the factors to TF32
    same = torch.allclose(relu, plain.relu(), atol=tolerance, rtol=tolerance) and torch.allclose(
        added, (plain + shortcut).relu(), atol=tolerance, rtol=tolerance
    )
    return operators if same else None
